"""The chart's values and the operator's settings: each has the other, with the same default and the same bounds."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from annotated_types import Ge, Le
from chart_support import CHART, one, refused, render

from wrpo_operator.runtime.settings import Settings, load, variable_of
from wrpo_operator.sizing.profiles import parse_profiles

VALUES: dict[str, tuple[str, Any]] = {
    "sampler_image": ("engineImages.sampler", "a/sampler:1"),
    "trainer_image": ("engineImages.trainer", "a/trainer:1"),
    "image_pull_policy": ("engineImages.pullPolicy", "Always"),
    "stage_pull_secrets": ("engineImages.pullSecrets", ["one", "two"]),
    "stage_env": ("stageEnv", {"A": "b c"}),
    "stage_service_account": ("stageServiceAccount", "stages"),
    "stage_commands": ("stageCommandOverrides", {"train": {"command": ["sleep", "5"]}}),
    "progress_port": ("progress.port", 9001),
    "health_port": ("health.port", 9000),
    "allow_security_overrides": ("podTemplatePolicy.allowSecurityOverrides", True),
    "accelerators": ("accelerators.enabled", False),
    "accelerator_profiles": ("accelerators.profiles", [{"name": "h100", "memoryGiB": 80, "perNode": 8}]),
    "accelerator_prices": ("accelerators.prices", {"NVIDIA-L40S": 1.5}),
    "metrics_per_experiment": ("metrics.perExperiment", True),
    "workers": ("workers", 64),
    "resync_seconds": ("resyncSeconds", 1.5),
    "audit_seconds": ("auditSeconds", 1000000),
    "log_level": ("logLevel", "debug"),
    "log_format": ("logFormat", "text"),
}
"""Setting -> the value that sets it, and another valid one."""
COMPUTED = {
    "namespace", "own_namespace", "identity", "lease_name", "bind", "manage_service_account", "progress_url",
    "progress_cert_file", "progress_key_file", "progress_ca_file", "read_nodes", "read_queues",
}  # fmt: skip
"""Settings that the chart derives from its mode, its names and the pod."""
NOT_IN_PODS = {"kubeconfig", "context"}
LEAST = {"progress_port": 1, "health_port": 1}
"""Bounds of the chart that are tighter: its Services need a port."""


def settings_of(*values: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return what the operator reads from the Deployment of these values."""
    (container,) = one(render(*values), "Deployment")["spec"]["template"]["spec"]["containers"]
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)
    for entry in container["env"]:
        if "value" in entry and not entry["name"].endswith("_FILE") and entry["name"] != "WRPO_PROGRESS_URL":
            monkeypatch.setenv(entry["name"], entry["value"])
    return load({})


def at(tree: Any, path: str, *between: str) -> Any:
    for key in path.split("."):
        for step in (*between, key):
            tree = tree[step]
    return tree


def test_every_setting_is_a_value_or_derived_by_the_chart() -> None:
    assert set(Settings.model_fields) == set(VALUES) | COMPUTED | NOT_IN_PODS


def test_the_defaults_of_the_values_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings_of("progress.tls.enabled=false", monkeypatch=monkeypatch)
    assert {name: getattr(found, name) for name in VALUES} == {
        name: Settings.model_fields[name].get_default() for name in VALUES
    }


def test_every_value_reaches_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = [f"{path}={json.dumps(value)}" for path, value in VALUES.values()]
    found = settings_of("progress.tls.enabled=false", *changed, monkeypatch=monkeypatch)
    given = {name: value for name, (_, value) in VALUES.items()}
    given |= {"stage_pull_secrets": ("one", "two"), "stage_commands": found.stage_commands}
    given |= {"accelerator_profiles": parse_profiles(given["accelerator_profiles"])}
    assert {name: getattr(found, name) for name in VALUES} == given
    ((kind, command),) = found.stage_commands.items()
    assert (kind, command.command) == ("train", ("sleep", "5"))


def test_the_schema_has_the_bounds_of_the_settings() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    for name, (path, _) in VALUES.items():
        field, rule = Settings.model_fields[name], at(schema, path, "properties")
        if "$ref" in rule:
            rule = schema["definitions"][rule["$ref"].rpartition("/")[2]]
        if get_origin(field.annotation) is Literal:
            assert set(rule["enum"]) == set(get_args(field.annotation)), name
        elif field.annotation in {int, float}:
            low = next(found.ge for found in field.metadata if isinstance(found, Ge))
            high = next((found.le for found in field.metadata if isinstance(found, Le)), None)
            assert rule["type"] == ("integer" if field.annotation is int else "number"), name
            assert (rule["minimum"], rule.get("maximum")) == (LEAST.get(name, low), high), name
        elif field.annotation is bool:
            assert rule == {"type": "boolean"}, name


def test_every_value_of_a_setting_is_described() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    for path, _ in VALUES.values():
        at(values, path)
        assert f"| `{path}` |" in readme


def test_a_value_beyond_its_bounds_is_refused_before_anything_is_installed() -> None:
    assert "workers" in refused("workers=65")
