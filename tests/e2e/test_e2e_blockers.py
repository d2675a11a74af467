"""Why nothing runs, from the cluster's own words to kubectl and `wrpo status`: every obstacle names object and remedy.

All obstacles of the first test stand in the way of one experiment each, at the same time: what is waited for is waited
for once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest
from click.testing import CliRunner
from e2e_support import EXTERNAL, NAMESPACE, JsonObject, Kube, claim, experiment
from support.patience import wait_until

from wrpo_operator.cli.main import main

pytestmark = pytest.mark.cluster
GPU = "nvidia.com/gpu"
QUOTA = "no-gpus"
PRE_RUNNING_S = 30
"""spec.deadlines.preRunningSeconds of the experiment that gives up."""
WORKLOAD_CRD = "workloads.kueue.x-k8s.io"
QUEUE_WORDS = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor h200"


@dataclass(frozen=True)
class Obstacle:
    """What stands in an experiment's way, and what its user is told."""

    spec: JsonObject
    object: str
    """Start of the blocker's object."""
    reason: str
    words: tuple[str, ...]
    """What happened, and the remedy."""
    needs_real_pods: bool = False


def first_stage(**resources: str) -> JsonObject:
    return {"resources": {"prepare": {"limits": resources, "requests": resources}}}


OBSTACLES = {
    "over-quota": Obstacle(
        first_stage(**{GPU: "1"}),
        "Job/over-quota-prepare-",
        "QuotaExceeded",
        (
            f"exceeded quota: {QUOTA}, requested: requests.{GPU}=1, used: requests.{GPU}=0, limited: requests.{GPU}=0",
            "Free quota, raise the ResourceQuota or lower spec.resources.",
        ),
    ),
    "no-secret": Obstacle(
        {"env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "token"}}}]},
        "Pod/no-secret-prepare-",
        "ContainerConfigError",
        ('secret "absent" not found', "Check that the Secrets named in spec.env and spec.storage exist."),
        needs_real_pods=True,
    ),
    "no-volume": Obstacle(
        {"podTemplate": {"spec": {"volumes": [{"name": "extra", "secret": {"secretName": "absent"}}]}}},
        "Pod/no-volume-prepare-",
        "FailedMount",
        ('secret "absent" not found', "Create the Secret, ConfigMap or claim it names"),
        needs_real_pods=True,
    ),
    "unbound": Obstacle(
        {"storage": {"volume": {"claimName": "unbound"}}},
        "PersistentVolumeClaim/unbound",
        "ClaimPending",
        ("Claim `unbound` is not bound yet (storage class `nobodys`).", "kubectl describe pvc unbound"),
    ),
    "no-image": Obstacle(
        {"podTemplate": {"spec": {"initContainers": [{"name": "fetch", "image": "registry.invalid/none:1"}]}}},
        "Pod/no-image-prepare-",
        "ImagePullFailed",
        ("The image cannot be pulled:", "Check spec.images and spec.imagePullSecrets."),
        needs_real_pods=True,
    ),
    "no-node": Obstacle(
        {"scheduling": {"nodeSelector": {"wrpo.ai/nowhere": "yes"}}},
        "Pod/no-node-prepare-",
        "Unschedulable",
        ("No node fits the pod:", "Change spec.resources or spec.scheduling, or wait for free capacity."),
    ),
    "in-queue": Obstacle(
        {"scheduling": {"queueName": "team"}},
        "Workload/job-in-queue",
        "WaitingForQuota",
        (
            QUEUE_WORDS,
            "It starts when the queue has free quota; `kubectl describe clusterqueue` shows which workloads use it.",
        ),
    ),
}


@pytest.fixture
def obstacles(kube: Kube) -> Iterator[dict[str, Obstacle]]:
    """The obstacles that this cluster can have, with everything that makes them."""
    chosen = {name: o for name, o in OBSTACLES.items() if not (o.needs_real_pods and kube.simulated)}
    if EXTERNAL:
        del chosen["in-queue"]  # needs a CRD of Kueue's, which nobody should bring to a shared cluster
    else:
        kube.run("kubectl", "apply", "--server-side", "-f", "-", stdin=json.dumps(workload_crd()))
        kube.wait_condition("Established", f"crd/{WORKLOAD_CRD}")
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": QUOTA}}
    kube.apply({**quota, "spec": {"hard": {f"requests.{GPU}": "0"}}})
    unbound = claim(storageClassName="nobodys")
    kube.apply({**unbound, "metadata": {"name": "unbound"}})
    try:
        wait_until("the quota is counted", lambda: (kube.get("resourcequota", QUOTA).get("status") or {}).get("used"))
    except AssertionError:
        if not EXTERNAL:
            raise
        # A cluster without the controller that counts enforces no quota.
        del chosen["over-quota"]
    try:
        yield chosen
    finally:
        names = [f"wrpoexperiment/{name}" for name in OBSTACLES]
        flags = ("--ignore-not-found", "--cascade=background")
        kube.kubectl("delete", *names, f"resourcequota/{QUOTA}", "pvc/unbound", *flags, "--wait=false")
        if not EXTERNAL:
            kube.run("kubectl", "delete", "crd", WORKLOAD_CRD, *flags)


def test_every_obstacle_is_told_with_object_reason_and_remedy(kube: Kube, obstacles: dict[str, Obstacle]) -> None:
    kube.apply(*(experiment(name, **obstacle.spec, **slow(kube, name)) for name, obstacle in obstacles.items()))
    if "in-queue" in obstacles:
        put_into_queue(kube)
    for name, obstacle in obstacles.items():
        blocker = wait_until(f"{name} is told", partial(kube.blocker, name, obstacle.reason))
        assert blocker["object"].startswith(obstacle.object), blocker
        assert blocker["stage"] == "prepare"
        for words in obstacle.words:
            assert words in blocker["message"], blocker
        assert_told_everywhere(kube, name, obstacle.reason, obstacle.words)
    if "over-quota" not in obstacles:
        return
    # Only now, so that the experiment does not give up before it is asked what blocks it.
    kube.edit("over-quota", deadlines={"preRunningSeconds": PRE_RUNNING_S})
    status = kube.wait_phase("over-quota", "Failed")
    (failed,) = [entry for entry in status["conditions"] if entry["type"] == "Failed"]
    assert f"no pod ran within {PRE_RUNNING_S} s (spec.deadlines.preRunningSeconds)" in failed["message"]
    for words in obstacles["over-quota"].words:
        assert words in failed["message"]
    (attempt,) = kube.stage("over-quota", "prepare")["attempts"]
    assert (attempt["state"], attempt["failure"], attempt["reason"]) == ("Failed", "Config", "PendingTooLong")


def slow(kube: Kube, name: str) -> JsonObject:
    """Keep the Job of the queue from ending before it is suspended."""
    return kube.behave(slow="prepare:600") if name == "in-queue" else {}


def assert_told_everywhere(kube: Kube, name: str, reason: str, words: tuple[str, ...]) -> None:
    """The condition, an Event and the command name the object, the reason and the remedy as status.blockers does."""
    status = kube.status(name)
    first = status["blockers"][0]
    (blocked,) = [entry for entry in status["conditions"] if entry["type"] == "Blocked"]
    assert (blocked["status"], blocked["reason"]) == ("True", first["reason"])
    assert first["message"] in blocked["message"]
    assert first["object"] in blocked["message"]
    wait_until(f"an Event of {name}", lambda: event_says(kube, name, reason, words))
    shown = CliRunner().invoke(main, ["status", name, "--kubeconfig", str(kube.kubeconfig), "-n", NAMESPACE])
    assert shown.exit_code == 0, shown.output
    (line,) = [line for line in shown.output.splitlines() if line.startswith("  blocked: ") and f": {reason}: " in line]
    for part in words:
        assert part in line


def event_says(kube: Kube, name: str, reason: str, words: tuple[str, ...]) -> bool:
    selector = f"involvedObject.kind=WRPOExperiment,involvedObject.name={name},type=Warning,reason={reason}"
    answer: JsonObject = json.loads(kube.kubectl("get", "events", "--field-selector", selector, "-o", "json"))
    return any(all(part in event["message"] for part in words) for event in answer["items"])


def put_into_queue(kube: Kube) -> None:
    """Do what Kueue does with a Job that names a queue: suspend it, and make a Workload that waits for quota."""
    job = wait_until("the Job is there", lambda: kube.list("jobs", "wrpo.ai/experiment=in-queue"))[0]
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    kube.kubectl("patch", "job", name, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
    kube.apply(
        {
            "apiVersion": "kueue.x-k8s.io/v1beta1",
            "kind": "Workload",
            "metadata": {"name": f"job-{name}", "ownerReferences": [owner]},
            "spec": {"queueName": "team"},
        }
    )
    waits = {
        "type": "QuotaReserved",
        "status": "False",
        "reason": "Pending",
        "message": QUEUE_WORDS,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    patch = json.dumps({"status": {"conditions": [waits]}})
    kube.kubectl("patch", WORKLOAD_CRD, f"job-{name}", "--subresource=status", "--type=merge", "-p", patch)


def workload_crd() -> JsonObject:
    """Return the little of Kueue's Workload that tells why a Job waits."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": anything, "status": anything}}
    version = {
        "name": "v1beta1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": WORKLOAD_CRD},
        "spec": {
            "group": "kueue.x-k8s.io",
            "scope": "Namespaced",
            "names": {"kind": "Workload", "listKind": "WorkloadList", "plural": "workloads", "singular": "workload"},
            "versions": [version],
        },
    }


@pytest.fixture
def restricted(kube: Kube) -> Iterator[None]:
    """The namespace admits restricted pods only."""
    if EXTERNAL:
        pytest.skip("depends on the init container of the cluster's PyTorchJob controller, which may be restricted")
    label = "pod-security.kubernetes.io/enforce"
    kube.run("kubectl", "label", "ns", NAMESPACE, f"{label}=restricted", "--overwrite")
    try:
        yield
    finally:
        kube.run("kubectl", "label", "ns", NAMESPACE, f"{label}=baseline", "--overwrite")
        kube.kubectl("delete", "wrpoexperiment", "refused", "--ignore-not-found", "--cascade=background")


@pytest.mark.usefixtures("restricted")
def test_a_gang_whose_workers_pod_security_refuses_says_so_while_its_master_runs(kube: Kube) -> None:
    training = {"objective": "SFTOnly", "nodes": 2}
    kube.apply(
        experiment("refused", training=training, scheduling={"gang": "BestEffort"}, **kube.behave(slow="sft:600"))
    )
    blocker = wait_until("it is told", lambda: kube.blocker("refused", "PodSecurityViolation"))
    assert blocker["object"].startswith("PyTorchJob/refused-sft-")
    words = ('violates PodSecurity "restricted:latest"', "init-pytorch", "training.backend: TrainJob")
    for part in words:
        assert part in blocker["message"]
    kube.wait_stage("refused", "sft", "Running")
    assert_told_everywhere(kube, "refused", "PodSecurityViolation", words)
    label = "pod-security.kubernetes.io/enforce=baseline"
    kube.run("kubectl", "label", "ns", NAMESPACE, label, "--overwrite")
    wait_until("nothing blocks it", lambda: not kube.status("refused").get("blockers"))
