"""Names and labels made of odd releases and namespaces, and values that must be texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from chart_support import CHART, JsonObject, helm

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
FOREIGN = {"CustomResourceDefinition", "ServiceMonitor", "PrometheusRule"}
SETTINGS = (
    "podDisruptionBudget.enabled=true",
    "networkPolicy.enabled=true",
    'networkPolicy.stages={"enabled":true,"namespaces":["team-a"]}',
    'metrics={"serviceMonitor":{"enabled":true},"prometheusRule":{"enabled":true},"dashboard":{"enabled":true}}',
    'admissionPolicy={"enabled":true,"claimNames":["artifacts"]}',
)
EVERYTHING = [part for setting in SETTINGS for part in ("--set-json", setting)]
RELEASES = ["wrpo", "7b", "123", "1e3", "on", "null", "llama-3.1-8b", "7" * 53]


def rendered(*arguments: str) -> list[JsonObject]:
    done = helm("template", *arguments, *EVERYTHING)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def labels_in(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name in {"labels", "matchLabels"} and isinstance(value, dict):
                yield from value.items()
            else:
                yield from labels_in(value)
    elif isinstance(node, list):
        for item in node:
            yield from labels_in(item)


def assert_sound(objects: list[JsonObject], namespace: str) -> None:
    for obj in objects:
        name = obj["metadata"]["name"]
        assert isinstance(name, str)
        if obj["kind"] == "Service":
            assert DNS_1035.fullmatch(name), name
            assert len(name) <= 63, name
        assert obj["metadata"].get("namespace", namespace) in {namespace, "team-a"}
        for key, value in labels_in(obj):
            assert isinstance(value, str), (obj["kind"], key, value)
            assert len(value) <= 63, (key, value)
            assert LABEL.fullmatch(value), (key, value)
        if obj["kind"] not in FOREIGN:
            kubernetes_validate.validate(obj, "1.37", strict=True)


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_gives_names_and_labels_that_a_server_takes(release: str) -> None:
    objects = rendered(release, str(CHART), "-n", "lab")
    assert_sound(objects, "lab")
    assert {obj["metadata"]["labels"]["app.kubernetes.io/instance"] for obj in objects if obj["kind"] == "Service"} == {
        release
    }


@pytest.mark.parametrize("namespace", ["123", "on"])
def test_a_namespace_that_looks_like_a_number_stays_a_text(namespace: str) -> None:
    assert_sound(rendered("wrpo", str(CHART), "-n", namespace), namespace)


@pytest.mark.parametrize("name", ["7.b", "on", "x" * 63])
@pytest.mark.parametrize("field", ["fullnameOverride", "nameOverride"])
def test_overridden_names_are_sound_too(field: str, name: str) -> None:
    assert_sound(rendered("wrpo", str(CHART), "-n", "lab", "--set-string", f"{field}={name}"), "lab")


def test_the_operator_finds_its_service_by_the_name_that_it_has() -> None:
    objects = rendered("7b", str(CHART), "-n", "lab")
    services = {obj["metadata"]["name"] for obj in objects if obj["kind"] == "Service"}
    deployment = next(obj for obj in objects if obj["kind"] == "Deployment")
    text = yaml.safe_dump(deployment)
    assert "x7b-wrpo-operator" in services
    assert "x7b-wrpo-operator.lab.svc" in text


NO_TEXTS: dict[str, str] = {
    "a number in the environment": 'extraEnv=[{"name": "LIMIT", "value": 104857600}]',
    "a boolean in the environment": 'extraEnv=[{"name": "FLAG", "value": true}]',
    "an unknown field in the environment": 'extraEnv=[{"name": "FLAG", "vlaue": "x"}]',
    "a number as a toleration's value": 'tolerations=[{"key": "a", "value": 1}]',
    "a number as a pull secret": 'imagePullSecrets=[{"name": 1}]',
    "a number as a volume": 'extraVolumes=[{"name": 1, "emptyDir": {}}]',
    "a number as a path": 'extraVolumeMounts=[{"name": "a", "mountPath": 1}]',
    "a number as a topology": 'topologySpreadConstraints=[{"maxSkew": 1, "topologyKey": 1, "whenUnsatisfiable": "DoNotSchedule"}]',  # noqa: E501
    "a boolean as a label": 'podLabels={"a": true}',
    "a label with a blank": 'podLabels={"a": "b c"}',
    "a number as an annotation": 'podAnnotations={"a": 1}',
    "a boolean in a node selector": 'nodeSelector={"a": true}',
    "a number in a selector": 'admissionPolicy.namespaceSelector={"matchLabels": {"a": 1}}',
    "a boolean as a quantity": 'resources={"limits": {"memory": true}}',
    "a number for stages": 'stageEnv={"A": 1}',
}


@pytest.mark.parametrize("setting", NO_TEXTS.values(), ids=NO_TEXTS.keys())
def test_a_value_that_must_be_a_text_is_refused_with_its_path(setting: str) -> None:
    done = helm("template", "wrpo", str(CHART), "--set-json", setting)
    assert done.returncode != 0
    first = re.split(r"[.=]", setting, maxsplit=1)[0]
    assert f"{first}" in done.stderr
    assert "values don't meet the specifications of the schema" in done.stderr
