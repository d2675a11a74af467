"""Alerts, dashboard and ServiceMonitor: they name metrics that exist, by labels that exist, in queries that parse."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from chart_support import CHART, ROOT, one, refused, render
from promql import PromqlError, parse

from wrpo_operator.api.conditions import MERE_WAITS
from wrpo_operator.runtime.fleet import FleetCollector
from wrpo_operator.runtime.metrics import Metrics

ON = (
    'metrics={"serviceMonitor":{"enabled":true,"labels":{"release":"prom"}},"prometheusRule":{"enabled":true},'
    '"dashboard":{"enabled":true}}'
)
ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))["alerts"]
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
QUERIES = {
    **{alert["alert"]: alert["expr"] for alert in ALERTS},
    **{f"{p['title']} {t['refId']}": t["expr"] for p in DASHBOARD["panels"] for t in p["targets"]},
}
GUIDE = (ROOT / "docs" / "guides" / "monitoring.md").read_text(encoding="utf-8")


def series() -> dict[str, set[str]]:
    """Return what the operator exports: name of a series -> its labels."""
    metrics = Metrics()
    metrics.registry.register(
        FleetCollector(metrics, list, leading=lambda: True, now=lambda: datetime.now(UTC), per_experiment=True)
    )
    found: dict[str, set[str]] = {}
    for collector in [metrics, *vars(metrics).values()]:
        labels = set(getattr(collector, "_labelnames", ()))
        for family in collector.describe() if hasattr(collector, "describe") else ():
            endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            for ending in endings:
                found[family.name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    return {**found, "wrpo_experiments": {"phase"}, "wrpo_experiment_progress_percent": {"namespace", "experiment"}}


EXPORTED = series()


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
def test_every_query_parses_and_names_what_the_operator_exports(query: str) -> None:
    parsed = parse(query)
    assert parsed.selections
    labels: set[str] = set()
    for selection in parsed.selections:
        assert selection.metric in EXPORTED, f"{selection.metric} is not exported"
        assert selection.labels <= EXPORTED[selection.metric]
        labels |= EXPORTED[selection.metric]
    assert parsed.grouped <= labels


BROKEN = ["sum(rate(a[5m])", "rate(a)", "sum by le (a)", 'a{b="c"', "foo(a)", "a ==", 'a{b~"c"}']


@pytest.mark.parametrize("query", BROKEN)
def test_the_checker_finds_what_is_no_query(query: str) -> None:
    with pytest.raises(PromqlError):
        parse(query)


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_every_alert_says_what_to_do_and_has_a_runbook(alert: dict[str, str]) -> None:
    assert set(alert) == {"alert", "expr", "for", "severity", "summary", "description"}
    assert alert["severity"] in {"info", "warning", "critical"}
    assert re.search(rf"^### {alert['alert']}$", GUIDE, re.MULTILINE), f"no runbook of {alert['alert']} in the guide"
    labels = set(re.findall(r"\$labels\.(\w+)", alert["summary"] + alert["description"]))
    assert labels <= parse(alert["expr"]).grouped


def test_no_alert_calls_for_an_experiment_that_merely_waits() -> None:
    (alert,) = (entry for entry in ALERTS if entry["alert"] == "WrpoExperimentsBlocked")
    (left_out,) = re.findall(r'reason!~"([^"]*)"', alert["expr"])
    assert set(left_out.split("|")) == {reason.value for reason in MERE_WAITS}


def test_every_metric_is_explained_in_the_guide() -> None:
    named = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in EXPORTED}
    assert sorted(name for name in named if f"`{name}" not in GUIDE) == []


def test_the_rule_carries_every_alert_with_its_runbook() -> None:
    rule = one(render(ON), "PrometheusRule")
    (group,) = rule["spec"]["groups"]
    assert [entry["alert"] for entry in group["rules"]] == [alert["alert"] for alert in ALERTS]
    for entry, alert in zip(group["rules"], ALERTS, strict=True):
        assert entry["expr"] == alert["expr"]
        assert entry["annotations"]["summary"] == alert["summary"]
        assert entry["annotations"]["runbook_url"].endswith(f"#{alert['alert'].lower()}")


def test_the_dashboard_is_a_config_map_that_grafanas_sidecar_finds() -> None:
    config = one(render(ON), "ConfigMap", "wrpo-operator-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["wrpo.json"]) == DASHBOARD
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    assert not any(_overlap(a, b) for index, a in enumerate(places) for b in places[:index])
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in DASHBOARD["panels"])


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    (ax, ay, aw, ah), (bx, by, bw, bh) = _box(a), _box(b)
    return ax < bx + bw and bx < ax + aw and ay < by + bh and by < ay + ah


def _box(place: tuple[int, ...]) -> tuple[int, int, int, int]:
    x, y, w, h = place
    return x, y, w, h


def test_the_service_monitor_selects_a_service_that_leads_to_the_health_port() -> None:
    objects = render(ON)
    monitor = one(objects, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prom"
    service = one(objects, "Service", "wrpo-operator-metrics")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    (port,) = service["spec"]["ports"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
    progress = one(objects, "Service")
    assert not monitor["spec"]["selector"]["matchLabels"].items() <= progress["metadata"]["labels"].items()


def test_nothing_of_it_is_there_unless_asked_for() -> None:
    kinds = {obj["kind"] for obj in render()}
    assert not kinds & {"ServiceMonitor", "PrometheusRule", "ConfigMap"}
    assert "interval" in refused('metrics={"serviceMonitor":{"interval":"often"}}')


def test_names_of_experiments_are_no_labels() -> None:
    named: dict[str, Any] = {name: labels & {"experiment", "namespace", "name"} for name, labels in EXPORTED.items()}
    assert {name for name, labels in named.items() if labels} == {"wrpo_experiment_progress_percent"}
