"""Kubernetes dictionaries -> facts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from wrpo_engine.config import TerminationMessage
from wrpo_operator.plan.model import ChildState, PodFact
from wrpo_operator.runtime.observe import child_fact, child_facts, parse_termination, pod_fact

LABELS = {
    "wrpo.ai/experiment": "fusion",
    "wrpo.ai/experiment-uid": "e-1",
    "wrpo.ai/stage": "sample.qwen",
    "wrpo.ai/stage-hash": "0123456789abcdef",
    "wrpo.ai/artifact-key": "fedcba9876543210",
    "wrpo.ai/attempt": "2",
}


def condition(type_: str, **rest: Any) -> dict[str, Any]:
    return {"type": type_, "status": "True", **rest}


def child(kind: str = "Job", *, spec: Any = None, status: Any = None, **metadata: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "metadata": {"name": "c", "uid": "c-1", "labels": LABELS, **metadata},
        "spec": spec or {},
        "status": status or {},
    }


RUNNING_POD = PodFact(name="p", phase="Running")
STATES = {
    "a new Job is pending": (child(), (), ChildState.PENDING),
    "a Job whose pod waits is pending": (child(status={"active": 1}), (PodFact("p", "Pending"),), ChildState.PENDING),
    "a Job with a running pod runs": (child(status={"active": 1}), (RUNNING_POD,), ChildState.RUNNING),
    "a Job whose pod has succeeded runs until it is complete": (
        child(status={"active": 1, "ready": 1}),
        (PodFact("p", "Succeeded"),),
        ChildState.RUNNING,
    ),
    "a Job whose pod has failed runs until it has failed": (
        child(status={"active": 1}),
        (PodFact("p", "Failed"),),
        ChildState.RUNNING,
    ),
    "a Job whose controller has decided runs, its pod being gone": (
        child(status={"conditions": [condition("SuccessCriteriaMet")]}),
        (),
        ChildState.RUNNING,
    ),
    "a Job that will fail, its pod being gone, runs": (
        child(status={"conditions": [condition("FailureTarget")]}),
        (),
        ChildState.RUNNING,
    ),
    "a Job of which one shard has ended and one waits runs": (
        child(status={"active": 2}),
        (PodFact("p", "Succeeded"), PodFact("q", "Pending")),
        ChildState.RUNNING,
    ),
    "a Job whose pod was taken and whose next pod waits is pending": (
        child(status={"active": 1}),
        (PodFact("p", "Failed", disrupted=True), PodFact("q", "Pending")),
        ChildState.PENDING,
    ),
    "a Job whose pod was taken and whose next pod runs": (
        child(status={"active": 1}),
        (PodFact("p", "Failed", disrupted=True), PodFact("q", "Running")),
        ChildState.RUNNING,
    ),
    "a Job whose pod's node does not answer runs": (
        child(status={"active": 1}),
        (PodFact("p", "Unknown"),),
        ChildState.RUNNING,
    ),
    "a suspended Job whose pod has ended": (
        child(spec={"suspend": True}),
        (PodFact("p", "Succeeded"),),
        ChildState.SUSPENDED,
    ),
    "a complete Job whose pod still shows as running": (
        child(status={"conditions": [condition("Complete")]}),
        (RUNNING_POD,),
        ChildState.SUCCEEDED,
    ),
    "a PyTorchJob whose pods have ended runs until it has succeeded": (
        child("PyTorchJob", status={"conditions": [condition("Running")]}),
        (PodFact("m", "Succeeded"), PodFact("w", "Succeeded")),
        ChildState.RUNNING,
    ),
    "a Job between two shards runs": (child(status={"succeeded": 1}), (), ChildState.RUNNING),
    "a suspended Job": (child(spec={"suspend": True}), (), ChildState.SUSPENDED),
    "a complete Job": (child(status={"conditions": [condition("Complete")]}), (), ChildState.SUCCEEDED),
    "a failed Job": (child(status={"conditions": [condition("Failed")]}), (), ChildState.FAILED),
    "a Job that will fail still runs": (
        child(status={"conditions": [condition("FailureTarget")]}),
        (RUNNING_POD,),
        ChildState.RUNNING,
    ),
    "a condition that is False says nothing": (
        child(status={"conditions": [{"type": "Failed", "status": "False"}]}),
        (),
        ChildState.PENDING,
    ),
    "a Job that is being deleted": (
        child(deletionTimestamp="2026-01-01T00:00:00Z"),
        (RUNNING_POD,),
        ChildState.DELETING,
    ),
    "a finished Job that is being deleted keeps its outcome": (
        child(deletionTimestamp="2026-01-01T00:00:00Z", status={"conditions": [condition("Complete")]}),
        (),
        ChildState.SUCCEEDED,
    ),
    "a JobSet that is completed": (
        child("JobSet", status={"conditions": [condition("Completed", reason="AllJobsCompleted")]}),
        (),
        ChildState.SUCCEEDED,
    ),
    "a failed JobSet": (
        child("JobSet", status={"conditions": [condition("Failed", reason="ReachedMaxRestarts")]}),
        (),
        ChildState.FAILED,
    ),
    "a suspended JobSet": (
        child("JobSet", spec={"suspend": True}, status={"conditions": [condition("Suspended")]}),
        (),
        ChildState.SUSPENDED,
    ),
    "a JobSet that starts its jobs in order runs": (
        child("JobSet", status={"conditions": [condition("StartupPolicyCompleted")]}),
        (RUNNING_POD,),
        ChildState.RUNNING,
    ),
    "a new PyTorchJob is pending": (
        child("PyTorchJob", status={"conditions": [condition("Created")]}),
        (),
        ChildState.PENDING,
    ),
    "a suspended PyTorchJob": (child("PyTorchJob", spec={"runPolicy": {"suspend": True}}), (), ChildState.SUSPENDED),
    "a succeeded PyTorchJob": (
        child("PyTorchJob", status={"conditions": [condition("Created"), condition("Succeeded")]}),
        (),
        ChildState.SUCCEEDED,
    ),
    "a failed PyTorchJob": (
        child("PyTorchJob", status={"conditions": [condition("Failed", reason="PyTorchJobFailed")]}),
        (),
        ChildState.FAILED,
    ),
}


@pytest.mark.parametrize(("obj", "pods", "expected"), STATES.values(), ids=STATES.keys())
def test_the_state_of_a_child(obj: dict[str, Any], pods: tuple[PodFact, ...], expected: ChildState) -> None:
    from wrpo_operator.runtime.observe import child_state

    assert child_state(obj, pods) is expected


def pod(*, spec: Any = None, labels: Any = None, annotations: Any = None, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "p",
            "uid": "p-1",
            "labels": labels or {},
            "annotations": annotations or {},
            "ownerReferences": [{"uid": "c-1", "controller": True}],
        },
        "spec": {"nodeName": "n1", **(spec or {})},
        "status": status,
    }


def evicted(message: str) -> dict[str, Any]:
    return pod(phase="Failed", reason="Evicted", message=message)


def over(words: str) -> PodFact:
    return PodFact("p", "Failed", "n1", over_limit=words)


def ended(code: int, message: str = "", name: str = "stage") -> list[dict[str, Any]]:
    state = {
        "exitCode": code,
        "message": message,
        "startedAt": "2026-01-01T10:00:00Z",
        "finishedAt": "2026-01-01T10:05:00Z",
    }
    return [{"name": "sidecar", "state": {}}, {"name": name, "state": {"terminated": state}}]


FIVE_PAST = datetime(2026, 1, 1, 10, 5, tzinfo=UTC)
GOOD = '{"outcome": "Succeeded", "rows": 3, "artifact": "sample/qwen/0123456789abcdef"}'
PODS = {
    "succeeded, with the engine's message": (
        pod(phase="Succeeded", containerStatuses=ended(0, GOOD)),
        PodFact(
            "p",
            "Succeeded",
            "n1",
            exit_code=0,
            termination=TerminationMessage(outcome="Succeeded", rows=3, artifact="sample/qwen/0123456789abcdef"),
            finished_at=FIVE_PAST,
        ),
    ),
    "failed with words that are not the engine's": (
        pod(phase="Failed", containerStatuses=ended(1, "Traceback: boom\n", "pytorch")),
        PodFact("p", "Failed", "n1", exit_code=1, termination_text="Traceback: boom", finished_at=FIVE_PAST),
    ),
    "preempted": (
        pod(phase="Failed", conditions=[condition("DisruptionTarget", reason="PreemptionByScheduler")]),
        PodFact("p", "Failed", "n1", disrupted=True),
    ),
    "evicted by an old kubelet": (pod(phase="Failed", reason="Evicted"), PodFact("p", "Failed", "n1", disrupted=True)),
    "evicted for the node's sake": (
        pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage. "),
        PodFact("p", "Failed", "n1", disrupted=True),
    ),
    "evicted for its own volume": (
        evicted('Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". '),
        over('Usage of EmptyDir volume "tmp" exceeds the limit "1Gi".'),
    ),
    "evicted for its own storage": (
        evicted("Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "),
        over("Pod ephemeral local storage usage exceeds the total limit of containers 1Gi."),
    ),
    "evicted for a container's storage": (
        evicted('Container stage exceeded its local ephemeral storage limit "1Gi". '),
        over('Container stage exceeded its local ephemeral storage limit "1Gi".'),
    ),
    "the image cannot be pulled": (
        pod(
            phase="Pending",
            containerStatuses=[
                {"name": "stage", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
            ],
        ),
        PodFact("p", "Pending", "n1", waiting_reason="ImagePullBackOff", waiting_message="no such image"),
    ),
    "being created is nothing special": (
        pod(
            phase="Pending",
            containerStatuses=[{"name": "stage", "state": {"waiting": {"reason": "ContainerCreating"}}}],
        ),
        PodFact("p", "Pending", "n1"),
    ),
    "an init container crashes": (
        pod(
            phase="Pending",
            initContainerStatuses=[{"name": "init", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}],
            containerStatuses=[{"name": "pytorch", "state": {"waiting": {"reason": "PodInitializing"}}}],
        ),
        PodFact("p", "Pending", "n1", waiting_reason="CrashLoopBackOff"),
    ),
    "no node fits": (
        pod(
            spec={"nodeName": None},
            phase="Pending",
            conditions=[
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no GPU"}
            ],
        ),
        PodFact("p", "Pending", None, unschedulable_message="0/3 nodes: no GPU"),
    ),
    "the scheduler has an error of its own": (
        pod(
            spec={"nodeName": None},
            phase="Pending",
            conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulerError", "message": "oops"}],
        ),
        PodFact("p", "Pending", None, unschedulable_message="oops"),
    ),
    "no scheduler has looked at it": (
        pod(spec={"nodeName": None, "schedulerName": "nope"}, phase="Pending"),
        PodFact("p", "Pending", None, scheduler="nope"),
    ),
    "no scheduler has looked at it, which waits for claims": (
        pod(
            spec={
                "nodeName": None,
                "resourceClaims": [
                    {"name": "a", "resourceClaimName": "gpu"},
                    {"name": "b", "resourceClaimTemplateName": "gpus"},
                ],
            },
            phase="Pending",
        ),
        PodFact("p", "Pending", None, scheduler="default-scheduler", claims=("gpu", "gpus")),
    ),
    "a gate keeps it from its scheduler": (
        pod(
            spec={"nodeName": None, "schedulingGates": [{"name": "example.com/quota"}]},
            phase="Pending",
            conditions=[
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                }
            ],
        ),
        PodFact("p", "Pending", None, gates=("example.com/quota",)),
    ),
    "a shard": (
        pod(phase="Running", labels={"batch.kubernetes.io/job-completion-index": "3"}),
        PodFact("p", "Running", "n1", 3),
    ),
    "a shard of an old cluster": (
        pod(phase="Running", annotations={"batch.kubernetes.io/job-completion-index": "0"}),
        PodFact("p", "Running", "n1", 0),
    ),
    "the master has rank 0": (
        pod(
            phase="Running",
            labels={"training.kubeflow.org/replica-type": "master", "training.kubeflow.org/replica-index": "0"},
        ),
        PodFact("p", "Running", "n1", 0),
    ),
    "the first worker has rank 1": (
        pod(
            phase="Running",
            labels={"training.kubeflow.org/replica-type": "worker", "training.kubeflow.org/replica-index": "0"},
        ),
        PodFact("p", "Running", "n1", 1),
    ),
}


@pytest.mark.parametrize(("obj", "expected"), PODS.values(), ids=PODS.keys())
def test_what_a_pod_says(obj: dict[str, Any], expected: PodFact) -> None:
    assert pod_fact(obj) == expected


def test_a_child_with_its_pods() -> None:
    status = {
        "startTime": "2026-01-01T09:59:00Z",
        "succeeded": 1,
        "conditions": [
            condition("Failed", reason="PodFailurePolicy", message="exit 65", lastTransitionTime="2026-01-01T10:06:00Z")
        ],
    }
    stranger = {
        **pod(phase="Running"),
        "metadata": {"name": "x", "uid": "x", "ownerReferences": [{"uid": "other", "controller": True}]},
    }
    (fact,) = child_facts([child(status=status)], [pod(phase="Failed", containerStatuses=ended(65)), stranger])
    assert (fact.stage, fact.attempt, fact.experiment, fact.experiment_uid) == ("sample/qwen", 2, "fusion", "e-1")
    assert (fact.stage_hash, fact.artifact_key) == ("0123456789abcdef", "fedcba9876543210")
    assert (fact.failed_reason, fact.failed_message, fact.succeeded_shards) == ("PodFailurePolicy", "exit 65", 1)
    assert (fact.started_at, fact.finished_at) == (
        datetime(2026, 1, 1, 10, 0, tzinfo=UTC),
        datetime(2026, 1, 1, 10, 6, tzinfo=UTC),
    )
    assert [entry.exit_code for entry in fact.pods] == [65]


def test_a_child_that_only_waited_has_not_started() -> None:
    fact = child_fact(child(status={"startTime": "2026-01-01T09:59:00Z", "active": 1}), [pod(phase="Pending")])
    assert fact is not None
    assert fact.started_at is None


@pytest.mark.parametrize("missing", sorted(set(LABELS) - {"wrpo.ai/experiment"}))
def test_an_object_without_our_labels_is_not_ours(missing: str) -> None:
    labels = {key: value for key, value in LABELS.items() if key != missing}
    assert child_fact(child(labels=labels), ()) is None


def test_only_the_end_of_a_long_foreign_message_is_kept() -> None:
    assert parse_termination("x" * 5000 + "the end") == (None, ("x" * 5000 + "the end")[-1024:])
    assert parse_termination("") == (None, "")
