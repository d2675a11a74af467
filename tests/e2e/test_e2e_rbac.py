"""The chart's roles grant what the operator asks for, nothing else; secrets show nowhere; an old CRD is upgraded."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import yaml
from e2e_support import EXTERNAL, JsonObject, claim, experiment, simulate
from rbac_world import OPEN_CRDS, SYSTEM, TEAM, Call, World
from support.kubectl_wait import wait_for_condition
from support.patience import LIMIT_S

from wrpo_operator.cli.install import find_chart

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(EXTERNAL, reason="reads the request log of the embedded control plane"),
]
CANARY = "canary-5ecre7"
PREVIOUS_CRD = Path(__file__).parent / "previous" / "wrpoexperiments.wrpo.ai.json"
"""The CRD as it was before models could be cached, TrainJob and pod groups; without descriptions."""
NOT_NEEDED = {
    ("wrpo.ai", "wrpoexperiments/finalizers", "update"): "only clusters with OwnerReferencesPermissionEnforcement ask",
    ("wrpo.ai", "wrposweeps/finalizers", "update"): "only clusters with OwnerReferencesPermissionEnforcement ask",
}
MODES = {
    "cluster": {},
    "namespaced": {"watchNamespace": TEAM},
}


def secrets() -> list[JsonObject]:
    data = {"token": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY, "AWS_ACCESS_KEY_ID": f"{CANARY}-id"}
    return [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "planted"}, "stringData": data}]


GPU = "nvidia.com/gpu"
NO_GPUS = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "no-gpus", "namespace": TEAM},
    "spec": {"hard": {f"requests.{GPU}": "0"}},
}


def _has_succeeded(world: World, name: str) -> bool:
    return bool(world.status(name).get("phase") == "Succeeded")


def run_scenario(world: World) -> None:
    """Start, suspend, resume, retry, fail, wait, queue, delete, and post progress."""
    world.apply(*OPEN_CRDS)
    world.run("kubectl", "create", "namespace", TEAM)
    world.run("kubectl", "create", "namespace", SYSTEM)
    if world.mode == "cluster":
        install_previous(world)
    world.helm(find_chart())
    world.apply(claim(), *secrets(), NO_GPUS)
    world.wait("the quota is counted", lambda: (world.get("resourcequotas", "no-gpus").get("status") or {}).get("used"))
    world.start_operator()
    create_experiments(world)
    assert world.post_progress("paused")[0] == 200
    assert world.post_progress("stored", token=CANARY)[0] == 401
    world.refuse_next_status()
    for _ in range(2):
        world.edit("paused", suspend=True)
        world.wait("it is suspended", lambda: world.status("paused").get("phase") == "Suspended")
        world.edit("paused", suspend=False)
        world.wait("it runs", lambda: world.status("paused").get("phase") == "Running")
    # As Kueue does with a Job that it has not admitted.
    queued, *_ = world.wait("it is queued", lambda: world.jobs("queued"))
    world.run("kubectl", "-n", TEAM, "patch", "job", queued, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    world.metrics()
    world.wait_call("patch", "podgroups", group="scheduling.volcano.sh")
    world.wait_call("patch", "podgroups", group="scheduling.x-k8s.io")
    for name in ("torch", "trainer", "jobset", "volcano", "plugins"):
        world.wait(f"{name} succeeds", partial(_has_succeeded, world, name))
    world.wait("it fails", lambda: world.status("crashes").get("phase") == "Failed")
    for resource in ("pytorchjobs", "trainjobs", "jobsets", "jobs"):
        world.wait_call("delete", resource)
    world.wait_call("patch", "wrpoexperiments/status", code=409)
    world.wait_call("get", "wrpoexperiments", code=200)
    world.wait_call("list", "workloads")
    world.wait_call("list", "events")
    world.wait_call("patch", "events", code=200)
    world.run("kubectl", "-n", TEAM, "delete", "wrpoexperiment", "paused", "--wait=true")
    if world.mode == "cluster":
        world.apply(experiment("veteran", suspend=True))
        world.wait("it is looked at", lambda: world.status("veteran"))
    world.shown = {
        "statuses": json.dumps({item["metadata"]["name"]: item.get("status") for item in world.experiments()}),
        "events": json.dumps(world.get("events")["items"]),
        "metrics": world.metrics(),
    }
    world.stop_operator()
    world.shown["log"] = world.log()
    world.final = {item["metadata"]["name"]: item for item in world.experiments()}
    world.granted = grants(world)


def run_sweep(world: World) -> None:
    """Create, suspend and delete the experiments of a sweep, and write a status twice."""

    def members() -> list[str]:
        found = (item["metadata"] for item in world.experiments())
        return [meta["name"] for meta in found if meta.get("labels", {}).get("wrpo.ai/sweep") == "table"]

    def edit(**spec: object) -> None:
        patch = json.dumps({"spec": spec})
        world.run("kubectl", "-n", TEAM, "patch", "wrposweep", "table", "--type=merge", "-p", patch)

    common = experiment("table", **simulate(run_seconds="forever"))["spec"]
    variants = [{"name": name, "set": {"sft.learningRate": rate}} for name, rate in (("a", 1e-6), ("b", 2e-6))]
    kind = {"apiVersion": "wrpo.ai/v1alpha1", "kind": "WRPOSweep", "metadata": {"name": "table"}}
    world.apply({**kind, "spec": {"experiment": common, "variants": variants}})
    world.wait("both exist", lambda: members() == ["table-a", "table-b"])
    world.refuse_next_status("wrposweeps")
    edit(suspend=True)
    world.wait("it is suspended", lambda: world.status("table-a").get("phase") == "Suspended")
    world.wait_call("get", "wrposweeps", code=200)
    edit(variants=variants[:1])
    world.wait("one is deleted", lambda: members() == ["table-a"])


def create_experiments(world: World) -> None:
    forever = simulate(run_seconds="forever")
    secret_env = [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "planted", "key": "token"}}}]
    s3 = {"s3": {"uri": "s3://bucket/a", "endpoint": "https://s3.example", "credentialsSecretName": "planted"}}
    proxy = {"name": "HTTPS_PROXY", "value": f"http://me:{CANARY}@proxy:3128"}
    gang = {"objective": "SFTOnly", "nodes": 2}
    world.apply(
        experiment("torch", ttlSecondsAfterFinished=1),
        experiment("trainer", training={**gang, "nodes": 1, "backend": "TrainJob"}, ttlSecondsAfterFinished=1),
        experiment("jobset", training={**gang, "nodes": 1, "backend": "JobSet"}, ttlSecondsAfterFinished=1),
        experiment("volcano", training=gang, scheduling={"podGroup": "Volcano"}),
        experiment("plugins", training=gang, scheduling={"podGroup": "SchedulerPlugins", "schedulerName": "co"}),
        experiment("paused", env=[*secret_env, proxy], **forever),
        experiment("stored", storage=s3, env=secret_env, **forever),
        experiment("crashes", env=[*secret_env, proxy], **simulate(exit_code="1")),
        experiment("queued", scheduling={"queueName": "gpus"}, **forever),
        # The quota refuses its pods: Events say why.
        experiment("crowded", resources={"prepare": {"limits": {GPU: 1}}}),
        # Its pod waits for a node.
        experiment("unplaced", scheduling={"nodeSelector": {"wrpo.ai/nowhere": "yes"}}),
        experiment("claimless", storage={"volume": {"claimName": "nowhere"}}),
        experiment("refused", podTemplate={"spec": {"serviceAccountName": "admin"}}),
    )
    run_sweep(world)


def install_previous(world: World) -> None:
    """Install the chart with the previous CRD and store an experiment that it accepts.

    One bound of that CRD is written inclusively, because no real server takes it as it was published.
    """
    old = world.directory / "old-chart"
    shutil.copytree(find_chart(), old)
    crd = json.loads(PREVIOUS_CRD.read_text(encoding="utf-8"))
    text = yaml.safe_dump(crd, sort_keys=False)
    name = "  name: wrpoexperiments.wrpo.ai\n"
    assert name in text, "the template finds the CRD's name by this line"
    (old / "files" / "wrpoexperiments.wrpo.ai.yaml").write_text(text, encoding="utf-8")
    world.helm(old)
    wait_for_condition(partial(world.run, "kubectl"), "Established", "crd/wrpoexperiments.wrpo.ai", timeout_s=LIMIT_S)
    world.apply(experiment("veteran", suspend=True))
    world.veteran = world.get("wrpoexperiments", "veteran")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    directory = tmp_path_factory.mktemp("rbac")

    def lived(mode: str) -> World:
        # A watch is written down when it ends, which it does at the latest when the cluster stops.
        with World(directory / mode, mode, MODES[mode]) as world:
            run_scenario(world)
        return world

    with ThreadPoolExecutor(len(MODES)) as pool:
        running = {mode: pool.submit(lived, mode) for mode in MODES}
    return {mode: future.result() for mode, future in running.items()}


@pytest.fixture(params=MODES)
def world(request: pytest.FixtureRequest, worlds: dict[str, World]) -> World:
    return worlds[request.param]


Grant = tuple[str, str, str, str, str]
"""(namespace or "" for all, group, resource, verb, resource name or "" for any)"""


def grants(world: World) -> set[Grant]:
    """Return what the chart's roles grant, as they stand in the cluster."""
    cluster_bound = {item["roleRef"]["name"] for item in world.get("clusterrolebindings")["items"] if _is_ours(item)}
    roles = [("", role) for role in world.get("clusterroles")["items"] if role["metadata"]["name"] in cluster_bound]
    for namespace in (SYSTEM, TEAM):
        roles += [(namespace, role) for role in world.get("roles", namespace=namespace)["items"] if _is_ours(role)]
    return {
        (namespace, group, resource, verb, name)
        for namespace, role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def _is_ours(obj: JsonObject) -> bool:
    return (obj["metadata"].get("labels") or {}).get("app.kubernetes.io/instance") == "wrpo"


def uses(call: Call) -> set[tuple[str, str, str, str, str]]:
    """Return what a call needs; a server-side apply that creates needs both verbs."""
    verbs = {call.verb} | ({"create"} if (call.verb, call.code) == ("patch", 201) else set())
    return {(call.namespace, call.group, call.resource, verb, call.name) for verb in verbs}


def allows(grant: Grant, use: tuple[str, str, str, str, str]) -> bool:
    namespace, group, resource, verb, name = grant
    return (
        (group, resource, verb) == use[1:4]
        and namespace in {"", use[0]}
        # The name of what is created is not known to authorization.
        and (name in {"", use[4]} or verb in {"list", "watch"})
    )


def test_every_call_is_granted_and_none_was_refused(world: World) -> None:
    needed = {use for call in world.calls for use in uses(call)}
    assert len(needed) > 20
    missing = {use for use in needed if not any(allows(grant, use) for grant in world.granted)}
    assert missing == set()
    assert [call for call in world.calls if call.code in {401, 403}] == []


def test_every_grant_was_used(world: World) -> None:
    needed = {use for call in world.calls for use in uses(call)}
    unused = {grant[1:4] for grant in world.granted if not any(allows(grant, use) for use in needed)}
    assert unused == set(NOT_NEEDED)


def test_secrets_are_neither_read_nor_granted(world: World) -> None:
    assert not [call for call in world.calls if call.resource.startswith("secrets")]
    assert not [grant for grant in world.granted if grant[2] in {"secrets", "*", "pods/exec"} or "*" in grant]


def test_planted_secrets_show_nowhere(world: World) -> None:
    statuses = json.loads(world.shown["statuses"])
    assert {"stored", "crashes", "refused"} <= {name for name, status in statuses.items() if status}
    assert "StageStarted" in world.shown["events"]
    assert '"level": "debug"' in world.shown["log"]
    assert {where for where, text in world.shown.items() if CANARY in text} == set()


def test_what_happened_was_counted(world: World) -> None:
    text = world.shown["metrics"]
    for line in (
        'wrpo_attempts_total{failure="Application",kind="prepare",state="Failed"} 3.0',
        'wrpo_attempts_total{failure="",kind="sft",state="Succeeded"} 5.0',
        'wrpo_stage_seconds_count{kind="sft",outcome="Succeeded"} 5.0',
        'wrpo_experiments{phase="Invalid"} 1.0',
        'wrpo_progress_posts_total{code="200"} 1.0',
        'wrpo_progress_posts_total{code="401"} 1.0',
        'wrpo_blocked_seconds_total{reason="MissingObject"}',
        'wrpo_api_requests_total{code="404",resource="persistentvolumeclaims",verb="get"}',
        "wrpo_leading 1.0",
    ):
        assert f"\n{line}" in text, line


def test_an_experiment_of_the_previous_crd_survives_the_upgrade_and_is_accepted(worlds: dict[str, World]) -> None:
    world = worlds["cluster"]
    now = world.final["veteran"]
    assert now["metadata"]["uid"] == world.veteran["metadata"]["uid"]
    assert _contains(now["spec"], world.veteran["spec"])
    (accepted,) = [entry for entry in now["status"]["conditions"] if entry["type"] == "Accepted"]
    assert (accepted["status"], now["status"]["phase"]) == ("True", "Suspended")


def _contains(new: object, old: object) -> bool:
    """Whether everything that stood in `old` stands in `new`; defaults of new fields may have come along."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(key in new and _contains(new[key], value) for key, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(_contains(n, o) for n, o in zip(new, old, strict=True))
    return new == old
