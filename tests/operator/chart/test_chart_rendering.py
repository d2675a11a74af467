"""The chart: lint, both modes, least rights, and manifests that a strict API server takes."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from wrpo_operator.__main__ import run as run_command
from wrpo_operator.cli.install import find_chart, find_tool

JsonObject = dict[str, Any]
CHART = find_chart()
ROOT = CHART.parents[1]
SYNTHETIC = {"CustomResourceDefinition"}


@functools.cache
def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        tool = find_tool("helm")
    except Exception as error:  # noqa: BLE001
        pytest.skip(str(error))
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)


def template(*settings: str, namespace: str = "wrpo-system") -> list[JsonObject]:
    flags = [part for setting in settings for part in ("--set-json", setting)]
    done = helm("template", "wrpo", str(CHART), "-n", namespace, *flags)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(objects: list[JsonObject], kind: str, name: str = "wrpo-operator") -> JsonObject:
    (found,) = [obj for obj in objects if obj["kind"] == kind and obj["metadata"]["name"] == name]
    return found


def rules_of(objects: list[JsonObject]) -> set[tuple[str, str, str]]:
    """Every (role kind, resource, verb)."""
    return {
        (obj["kind"], resource, verb)
        for obj in objects
        if obj["kind"] in {"Role", "ClusterRole"}
        for rule in obj["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


EVERYTHING = (
    "podDisruptionBudget.enabled=true",
    "networkPolicy.enabled=true",
    'stageCommandOverrides={"train":{"image":"busybox","command":["sleep","5"]}}',
    'extraEnv=[{"name":"HTTPS_PROXY","value":"http://proxy:3128"}]',
    'podAnnotations={"a":"b"}',
    'imagePullSecrets=[{"name":"pull"}]',
    'tolerations=[{"operator":"Exists"}]',
    'nodeSelector={"kubernetes.io/os":"linux"}',
    'priorityClassName="high"',
)
VARIANTS = {
    "cluster": (),
    "namespaced": ('mode="namespaced"',),
    "namespaced elsewhere": ('mode="namespaced"', 'watchNamespace="team-a"'),
    "everything on": EVERYTHING,
    "nothing optional": ("progress.enabled=false", "crds.install=false"),
}


def test_helm_lint_finds_nothing() -> None:
    done = helm("lint", str(CHART), "--strict")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_manifest_is_strictly_valid(settings: tuple[str, ...]) -> None:
    objects = template(*settings)
    assert objects
    for obj in objects:
        if obj["kind"] not in SYNTHETIC:
            kubernetes_validate.validate(obj, "1.37", strict=True)


def test_cluster_mode_binds_a_cluster_role_and_lets_the_operator_make_the_stages_account() -> None:
    objects = template()
    rights = rules_of(objects)
    assert ("ClusterRole", "jobs", "create") in rights
    assert ("ClusterRole", "serviceaccounts", "create") in rights
    assert [obj["metadata"]["name"] for obj in objects if obj["kind"] == "ServiceAccount"] == ["wrpo-operator"]
    assert environment(objects)["WATCH_NAMESPACE"] == ""


def test_namespaced_mode_has_cluster_wide_nothing_but_token_reviews() -> None:
    objects = template('mode="namespaced"', 'watchNamespace="team-a"')
    cluster_wide = {(resource, verb) for kind, resource, verb in rules_of(objects) if kind == "ClusterRole"}
    assert cluster_wide == {("tokenreviews", "create")}
    assert one(objects, "Role")["metadata"]["namespace"] == "team-a"
    account = one(objects, "ServiceAccount", "wrpo-stage")
    assert (account["metadata"]["namespace"], account["automountServiceAccountToken"]) == ("team-a", False)
    assert environment(objects)["WATCH_NAMESPACE"] == "team-a"
    assert environment(objects)["WRPO_MANAGE_SERVICE_ACCOUNT"] == "false"
    off = template('mode="namespaced"', "progress.enabled=false")
    assert not [obj for obj in off if obj["kind"] in {"ClusterRole", "Service"}]


def environment(objects: list[JsonObject]) -> dict[str, str]:
    container = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def test_no_right_reads_secrets_or_uses_a_wildcard() -> None:
    for settings in VARIANTS.values():
        rights = rules_of(template(*settings))
        assert not [right for right in rights if "*" in right or right[1] == "secrets" or right[1] == "pods/exec"]


def test_the_operator_runs_restricted() -> None:
    pod = one(template(), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["command"] == ["python", "-m", "wrpo_operator", "run"]


def test_every_variable_the_deployment_sets_is_read_by_the_operator() -> None:
    read = {option.envvar for option in run_command.params if getattr(option, "envvar", None)}
    assert set(environment(template(*EVERYTHING))) - read == {"HTTPS_PROXY"}


def test_stages_reach_the_progress_endpoint_through_the_service() -> None:
    objects = template("progress.port=9000", namespace="here")
    assert environment(objects)["WRPO_PROGRESS_URL"] == "http://wrpo-operator.here.svc:9000"
    service = one(objects, "Service")
    assert service["spec"]["ports"] == [{"name": "progress", "port": 9000, "targetPort": "progress"}]
    template_labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= template_labels.items()


def test_stand_in_commands_reach_the_operator_unharmed() -> None:
    commands = {"train": {"command": ["python", "-c", 'print("a\\n$(X) {{b}}")\n']}}
    found = environment(template(f"stageCommandOverrides={json.dumps(commands)}"))["WRPO_STAGE_COMMANDS"]
    assert json.loads(found) == commands


def test_the_crd_is_the_generated_one_and_survives_uninstall() -> None:
    generated = yaml.safe_load((ROOT / "crds" / "wrpoexperiments.wrpo.ai.yaml").read_text(encoding="utf-8"))
    crd = one(template(), "CustomResourceDefinition", "wrpoexperiments.wrpo.ai")
    assert crd["metadata"].pop("annotations")["helm.sh/resource-policy"] == "keep"
    generated["metadata"].pop("annotations", None)
    assert crd == generated
    assert not [obj for obj in template("crds.install=false") if obj["kind"] == "CustomResourceDefinition"]


def test_the_charts_copy_of_the_crd_is_in_step() -> None:
    name = "wrpoexperiments.wrpo.ai.yaml"
    assert (CHART / "files" / name).read_bytes() == (ROOT / "crds" / name).read_bytes(), (
        f"copy crds/{name} to charts/wrpo-operator/files (make crds does)"
    )


REFUSED = {
    "an unknown mode": ('mode="global"', "/mode"),
    "an unknown value": ("replica=2", "replica"),
    "a port out of range": ("health.port=70000", "/health/port"),
    "a stand-in for no stage": ('stageCommandOverrides={"tarin":{"command":["x"]}}', "tarin"),
    "a stand-in without a command": ('stageCommandOverrides={"train":{"image":"x"}}', "command"),
}


@pytest.mark.parametrize(("setting", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_the_schema_refuses(setting: str, words: str) -> None:
    done = helm("template", "wrpo", str(CHART), "--set-json", setting)
    assert done.returncode != 0
    assert words in done.stderr


def test_every_value_is_explained_and_known_to_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert set(values) <= set(schema["properties"])
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    above = {line.partition(":")[0]: lines[number - 1] for number, line in enumerate(lines) if line[:1].isalpha()}
    assert [key for key in values if not above[key].startswith("# ")] == []


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{chart["appVersion"]}"' in project
    assert Path(CHART / "templates" / "NOTES.txt").is_file()
