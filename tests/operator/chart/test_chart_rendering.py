"""The chart: lint, both modes, least rights, and manifests that a strict API server takes."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType

import kubernetes_validate
import pytest
import yaml
from chart_support import CHART, ROOT, JsonObject, helm, one
from chart_support import render as template

from wrpo_devcluster.apiserver.admission.podsecurity import violations
from wrpo_operator.api.backends import BACKENDS
from wrpo_operator.runtime.settings import Settings, variable_of

SYNTHETIC = {"CustomResourceDefinition", "ServiceMonitor", "PrometheusRule"}
"""Kinds whose schema is not Kubernetes' own."""


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
    "replicas=3",
    'topologySpreadConstraints=[{"maxSkew":1,"topologyKey":"kubernetes.io/hostname","whenUnsatisfiable":"DoNotSchedule"}]',
    'extraVolumes=[{"name":"trust","configMap":{"name":"trust"}}]',
    'extraVolumeMounts=[{"name":"trust","mountPath":"/etc/trust"}]',
    'networkPolicy.stages={"enabled":true,"namespaces":["team-a","team-b"]}',
    'networkPolicy.metricsFrom=[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"monitoring"}}}]',
    'admissionPolicy={"enabled":true,"claimNames":["artifacts"],"imageRegistries":["registry.example.com"]}',
    'metrics={"serviceMonitor":{"enabled":true},"prometheusRule":{"enabled":true},"dashboard":{"enabled":true}}',
    "podTemplatePolicy.allowSecurityOverrides=true",
    'podDisruptionBudget.maxUnavailable="50%"',
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


def test_everything_is_valid_for_every_supported_kubernetes() -> None:
    """What is rendered differs at 1.30 alone, where admission policies begin."""
    oldest = template(*(s for s in EVERYTHING if "admission" not in s), flags=("--kube-version", "1.29.0"))
    newest = template(*EVERYTHING, flags=("--kube-version", "1.37.0"))
    assert {obj["kind"] for obj in newest} - {obj["kind"] for obj in oldest} == {
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    for minor in range(29, 38):
        for obj in oldest if minor == 29 else newest:
            if obj["kind"] not in SYNTHETIC:
                kubernetes_validate.validate(obj, f"1.{minor}", strict=True)


def test_a_kubernetes_that_is_too_old_is_refused() -> None:
    done = helm("template", "wrpo", str(CHART), "--kube-version", "1.28.0")
    assert done.returncode != 0
    assert "kubeVersion" in done.stderr


@pytest.mark.parametrize(("mode", "kind"), [("cluster", "ClusterRole"), ("namespaced", "Role")])
def test_the_operators_role_grants_exactly_what_each_training_backend_needs(mode: str, kind: str) -> None:
    rights = {
        (group, resource): set(rule["verbs"])
        for rule in one(template(f'mode="{mode}"'), kind)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    expected: dict[tuple[str, str], set[str]] = {}
    for backend in BACKENDS.values():
        expected[backend.resource.group, backend.resource.plural] = {"list", "watch", "create", "patch", "delete"}
        expected |= {(other.group, other.plural): {"create", "patch"} for other in backend.companions}
    groups = {group for group, _ in expected}
    assert {place: verbs for place, verbs in rights.items() if place[0] in groups} == expected


def test_the_notes_name_every_training_backend_and_what_to_install() -> None:
    done = helm("install", "wrpo", str(CHART), "-n", "wrpo-system", "--dry-run=client")
    assert done.returncode == 0, done.stderr
    for backend in BACKENDS.values():
        assert f"{backend.kind} ({backend.resource.api_version}): install {backend.product}\n" in done.stdout


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


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_all_pods_meet_the_restricted_standard(settings: tuple[str, ...]) -> None:
    objects = template(*settings)
    pods = [obj["spec"] for obj in objects if obj["kind"] == "Pod"]
    pods.append(one(objects, "Deployment")["spec"]["template"]["spec"])
    assert [violations("restricted", pod, {}) for pod in pods] == [[]] * len(pods)


def test_replicas_are_spread_with_the_operators_own_labels() -> None:
    pod = one(template(*EVERYTHING), "Deployment")["spec"]["template"]
    (spread,) = pod["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_only_stages_the_test_and_named_peers_may_reach_the_operator() -> None:
    objects = template(*EVERYTHING)
    policy = one(objects, "NetworkPolicy")["spec"]
    ports = {port["name"] for port in one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert policy["policyTypes"] == ["Ingress"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == ports
    assert all(rule.get("from") for rule in policy["ingress"])
    (health,) = [rule for rule in policy["ingress"] if rule["ports"] == [{"port": "health"}]]
    assert health["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    closed = one(template("networkPolicy.enabled=true", "progress.enabled=false"), "NetworkPolicy")["spec"]
    assert closed["ingress"] in (None, [])


def test_stages_reach_each_other_names_the_operator_and_what_is_allowed() -> None:
    objects = template(*EVERYTHING)
    for namespace in ("team-a", "team-b"):
        (policy,) = [
            obj["spec"]
            for obj in objects
            if obj["kind"] == "NetworkPolicy" and obj["metadata"]["namespace"] == namespace
        ]
        selector = {"matchLabels": {"app.kubernetes.io/managed-by": "wrpo-operator"}}
        assert policy["podSelector"] == selector
        assert policy["ingress"] == [{"from": [{"podSelector": selector}]}]
        assert [rule.get("ports") for rule in policy["egress"]] == [
            None,
            [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
            [{"port": 8081, "protocol": "TCP"}],
            [{"port": 443, "protocol": "TCP"}],
        ]
    watched = template('mode="namespaced"', 'watchNamespace="team-c"', "networkPolicy.stages.enabled=true")
    (policy,) = [obj for obj in watched if obj["kind"] == "NetworkPolicy"]
    assert policy["metadata"]["namespace"] == "team-c"


def test_pods_that_ask_a_judge_and_no_others_reach_its_endpoint() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "10.0.0.7/32"}}]}
    stages = {"enabled": True, "namespaces": ["team-a"], "judgeEgress": [rule]}
    _, judges = (
        obj for obj in template(f"networkPolicy.stages={json.dumps(stages)}") if obj["kind"] == "NetworkPolicy"
    )
    assert (judges["metadata"]["namespace"], judges["spec"]["egress"]) == ("team-a", [rule])
    selector = {"app.kubernetes.io/managed-by": "wrpo-operator", "wrpo.ai/egress": "judge"}
    assert judges["spec"]["podSelector"] == {"matchLabels": selector}
    assert judges["spec"]["policyTypes"] == ["Egress"]


def test_a_policy_for_stages_needs_namespaces() -> None:
    done = helm("template", "wrpo", str(CHART), "--set-json", "networkPolicy.stages.enabled=true")
    assert "Name the namespaces" in done.stderr


def test_every_variable_the_deployment_sets_is_read_by_the_operator() -> None:
    read = {variable_of(name) for name in Settings.model_fields}
    assert set(environment(template(*EVERYTHING))) - read == {"HTTPS_PROXY"}


def test_stages_reach_the_progress_endpoint_through_the_service() -> None:
    objects = template("progress.port=9000", namespace="here")
    assert environment(objects)["WRPO_PROGRESS_URL"] == "https://wrpo-operator.here.svc:9000"
    service = one(objects, "Service")
    assert service["spec"]["ports"] == [{"name": "progress", "port": 9000, "targetPort": "progress"}]
    template_labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= template_labels.items()


def test_stand_in_commands_reach_the_operator_unharmed() -> None:
    commands = {"train": {"command": ["python", "-c", 'print("a\\n$(X) {{b}}")\n']}}
    found = environment(template(f"stageCommandOverrides={json.dumps(commands)}"))["WRPO_STAGE_COMMANDS"]
    assert json.loads(found) == commands


def test_pull_secrets_and_environment_of_all_stages_reach_the_operator() -> None:
    found = environment(
        template('engineImages.pullSecrets=["one","two"]', 'stageEnv={"HTTPS_PROXY":"http://proxy:3128"}')
    )
    assert found["WRPO_STAGE_PULL_SECRETS"].split() == ["one", "two"]
    assert json.loads(found["WRPO_STAGE_ENV"]) == {"HTTPS_PROXY": "http://proxy:3128"}


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
    "a probe that never ends": ("probes.liveness.periodSeconds=0", "/probes/liveness/periodSeconds"),
    "a claim with quotes": ("""admissionPolicy.claimNames=["a'"]""", "/admissionPolicy/claimNames"),
    "an unknown action": ('admissionPolicy.validationActions=["Refuse"]', "/admissionPolicy/validationActions"),
    "half a certificate": ('progress.tls.certFile="a"', "certFile"),
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


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_generated_from_the_values() -> None:
    made = script("chart_readme").readme()
    assert (CHART / "README.md").read_text(encoding="utf-8") == made, "run `make chart-readme`"
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert [key for key in values if f"| `{key}" not in made] == []


ACCELERATOR_RIGHTS = {
    *(("ClusterRole", "nodes", "list"), ("ClusterRole", "clusterqueues", "list")),
    *(("ClusterRole", "cohorts", "list"), ("ClusterRole", "resourceflavors", "list")),
}


@pytest.mark.parametrize(
    ("settings", "rights"),
    [
        ((), ACCELERATOR_RIGHTS),
        (('mode="namespaced"',), set()),
        (("accelerators.readNodes=false",), {right for right in ACCELERATOR_RIGHTS if right[1] != "nodes"}),
        (('mode="namespaced"', "accelerators.readNodes=true"), {("ClusterRole", "nodes", "list")}),
        (("accelerators.enabled=false",), set()),
    ],
)
def test_accelerators_are_read_with_rights_for_what_is_asked_only(
    settings: tuple[str, ...], rights: set[tuple[str, str, str]]
) -> None:
    objects = template(*settings)
    assert set(rules_of(objects)) & ACCELERATOR_RIGHTS == rights
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert env["WRPO_READ_NODES"] == str(("ClusterRole", "nodes", "list") in rights).lower()
    assert env["WRPO_READ_QUEUES"] == str(("ClusterRole", "cohorts", "list") in rights).lower()
    queues = [resource for _, resource, verb in rules_of(objects) if (resource, verb) == ("localqueues", "get")]
    assert bool(queues) is (env["WRPO_READ_QUEUES"] == "true")
