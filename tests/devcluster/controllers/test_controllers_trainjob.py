"""TrainJob controller: the Job and the conditions of Kubeflow Trainer and JobSet."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from devcluster.memory_api import MemoryClient
from devcluster.rig import has_condition, simulated, until

from wrpo_devcluster.client import (
    EVENTS,
    JOBS,
    PODS,
    SERVICES,
    TRAIN_JOBS,
    TRAINING_RUNTIMES,
    JsonObject,
)
from wrpo_devcluster.clock import Clock, timestamp
from wrpo_devcluster.controllers.base import Controller
from wrpo_devcluster.controllers.job import JobController
from wrpo_devcluster.controllers.jobset_render import render_service
from wrpo_devcluster.controllers.trainjob import TrainJobController
from wrpo_devcluster.controllers.trainjob_decide import Decision, decide
from wrpo_devcluster.controllers.trainjob_render import render_job, unsupported

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def make_trainjob(*, status: JsonObject | None = None, trainer: JsonObject | None = None, **spec: Any) -> JsonObject:
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": "t"}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "t", "namespace": "ns", "uid": "u", "creationTimestamp": timestamp(NOON)},
        "spec": {"runtimeRef": reference, "trainer": {"numNodes": 2, "numProcPerNode": 4, **(trainer or {})}, **spec},
        "status": status or {},
    }


RUNS_SHORTLY: dict[str, Any] = {"fake.test/run-seconds": "1"}
RUNS_ON: dict[str, Any] = {"fake.test/run-seconds": "forever"}


def make_runtime(*, policy: JsonObject | None = None, **annotations: str) -> JsonObject:
    node = {
        "name": "node",
        "image": "i",
        "env": [{"name": "A", "value": "1"}, {"name": "PET_NNODES", "value": "9"}],
    }
    template = {
        # The server adds the Job's name; the API in memory has no defaults.
        "metadata": {
            "labels": {"ours": "yes", "batch.kubernetes.io/job-name": "t-node-0"},
            "annotations": annotations,
        },
        "spec": {"restartPolicy": "Never", "containers": [node]},
    }
    job = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        "spec": {"backoffLimit": 0, "template": template},
    }
    jobs = [{"name": "node", "replicas": 1, "template": job}]
    return {
        "metadata": {"name": "t", "namespace": "ns"},
        "spec": {
            "mlPolicy": {"numNodes": 1, "torch": {}} if policy is None else policy,
            "template": {"spec": {"replicatedJobs": jobs}},
        },
    }


def make_child(kind: str = "", *, suspend: bool = False, **status: Any) -> JsonObject:
    conditions = [{"type": kind, "status": "True"}] if kind else []
    return {
        "metadata": {"name": "t-node-0", "namespace": "ns", "uid": "j"},
        "spec": {"completions": 2, "suspend": suspend},
        "status": {"conditions": conditions, **status},
    }


def conditions_of(decision: Decision) -> list[tuple[str, str, str]]:
    return [(c["type"], c["status"], c["reason"]) for c in decision.status.get("conditions") or []]


SUSPENDED = decide(make_trainjob(suspend=True), None, "", NOON).status
CASES: dict[str, tuple[JsonObject, JsonObject | None, list[tuple[str, str, str]]]] = {
    "a new one has no conditions": (make_trainjob(), None, []),
    "a running one has none either": (make_trainjob(), make_child(active=2, ready=2), []),
    "suspended": (make_trainjob(suspend=True), None, [("Suspended", "True", "Suspended")]),
    "resumed": (make_trainjob(status=SUSPENDED), make_child(suspend=True), [("Suspended", "False", "Resumed")]),
    "complete": (make_trainjob(), make_child("Complete"), [("Complete", "True", "AllJobsCompleted")]),
    "failed": (make_trainjob(), make_child("Failed"), [("Failed", "True", "FailedJobs")]),
    "past its deadline": (
        make_trainjob(activeDeadlineSeconds=5),
        make_child(active=2),
        [("Failed", "True", "DeadlineExceeded")],
    ),
    "suspended, no deadline passes": (
        make_trainjob(activeDeadlineSeconds=5, suspend=True),
        make_child(suspend=True),
        [("Suspended", "True", "Suspended")],
    ),
    "the deadline counts from the resumption": (
        make_trainjob(activeDeadlineSeconds=5, status=SUSPENDED),
        make_child(active=2),
        [("Suspended", "False", "Resumed")],
    ),
}


@pytest.mark.parametrize(("trainjob", "child", "expected"), CASES.values(), ids=CASES.keys())
def test_conditions_follow_the_job_and_deciding_again_changes_nothing(
    trainjob: JsonObject, child: JsonObject | None, expected: list[tuple[str, str, str]]
) -> None:
    later = NOON + timedelta(seconds=9)
    once = decide(trainjob, child, "", later)
    assert conditions_of(once) == expected
    again = decide({**trainjob, "status": once.status}, child, "", later)
    assert (again.status, again.create and not once.create) == (once.status, False)


def test_a_suspend_field_that_differs_is_set_and_one_that_does_not_is_left() -> None:
    running, held = make_trainjob(), make_trainjob(suspend=True)
    assert decide(held, make_child(), "", NOON).suspend is True
    assert decide(running, make_child(suspend=True), "", NOON).suspend is False
    assert decide(running, make_child(), "", NOON).suspend is None
    assert decide(held, None, "", NOON) == Decision(SUSPENDED, create=True)


def test_a_finished_trainjob_starts_nothing_and_a_late_one_takes_its_job_along() -> None:
    done = decide(make_trainjob(), make_child("Complete"), "", NOON).status
    assert decide(make_trainjob(status=done), None, "", NOON) == Decision(done)
    late = decide(make_trainjob(activeDeadlineSeconds=5), make_child(), "", NOON + timedelta(seconds=5))
    assert (late.delete, late.create) == (True, False)
    assert decide(make_trainjob(status=late.status), make_child(), "", NOON).delete
    assert not decide(make_trainjob(status=late.status), None, "", NOON).delete


STATES: dict[str, tuple[JsonObject, str]] = {
    "pods wait": (make_child(active=2), "active"),
    "all pods are ready": (make_child(active=2, ready=2), "active ready"),
    "one has ended, the other is ready": (make_child(active=1, ready=1, succeeded=1), "active ready"),
    "suspended": (make_child(suspend=True), "suspended"),
    "complete": (make_child("Complete", succeeded=2), "succeeded"),
    "failed": (make_child("Failed", failed=1), "failed"),
}


@pytest.mark.parametrize(("child", "expected"), STATES.values(), ids=STATES.keys())
def test_jobs_status_counts_the_job(child: JsonObject, expected: str) -> None:
    (entry,) = decide(make_trainjob(), child, "", NOON).status["jobsStatus"]
    assert entry.pop("name") == "node"
    assert {state for state, count in entry.items() if count} == set(expected.split())


def test_the_job_is_one_pod_a_node_and_torchrun_finds_its_environment() -> None:
    job = render_job(make_trainjob(trainer={"env": [{"name": "A", "value": "2"}]}, suspend=True), make_runtime())
    assert job["metadata"]["name"] == "t-node-0"
    assert job["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    assert (job["metadata"]["ownerReferences"][0]["kind"], job["metadata"]["ownerReferences"][0]["controller"]) == (
        "TrainJob",
        True,
    )
    spec = job["spec"]
    assert {k: spec[k] for k in ("completionMode", "parallelism", "completions", "suspend", "backoffLimit")} == {
        "completionMode": "Indexed",
        "parallelism": 2,
        "completions": 2,
        "suspend": True,
        "backoffLimit": 0,
    }
    pod = spec["template"]
    assert pod["metadata"]["labels"]["ours"] == "yes"
    assert pod["spec"]["subdomain"] == "t"
    (container,) = pod["spec"]["containers"]
    rank = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    assert {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]} == {
        "A": "2",
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "4",
        "PET_MASTER_ADDR": "t-node-0-0.t",
        "PET_MASTER_PORT": "29500",
        "PET_NODE_RANK": rank,
    }
    assert container["ports"] == [{"containerPort": 29500, "protocol": "TCP"}]


def test_the_service_gives_pods_names_before_they_are_ready() -> None:
    service, job = render_service(make_trainjob(), "t"), render_job(make_trainjob(), make_runtime())
    assert (service["metadata"]["name"], service["spec"]["clusterIP"]) == ("t", "None")
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()


def test_what_is_not_run_here_is_said() -> None:
    two, nameless = make_runtime(), make_runtime()
    two["spec"]["template"]["spec"]["replicatedJobs"][0]["replicas"] = 2
    nameless["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"] = []
    patch = {"manager": "m", "trainingRuntimeSpec": {"template": {}}}
    refusals = {
        "initializer": unsupported(make_trainjob(initializer={"model": {}}), make_runtime()),
        "runtimePatches": unsupported(make_trainjob(runtimePatches=[patch]), make_runtime()),
        "mlPolicy.mpi": unsupported(make_trainjob(), make_runtime(policy={"mpi": {}})),
        "replicas 1": unsupported(make_trainjob(), two),
        "container named node": unsupported(make_trainjob(), nameless),
    }
    assert unsupported(make_trainjob(), make_runtime()) == ""
    long = {**make_trainjob(), "metadata": {**make_trainjob()["metadata"], "name": "t" * 49}}
    refusals["pod names generated for this JobSet will exceed 63 characters"] = unsupported(long, make_runtime())
    for words, refusal in refusals.items():
        assert words in refusal
    decision = decide(make_trainjob(), None, refusals["mlPolicy.mpi"], NOON)
    assert conditions_of(decision) == [("Failed", "True", "TrainingRuntimeNotSupported")]
    assert not decision.create


def controllers(client: MemoryClient, clock: Clock) -> list[Controller]:
    return [JobController(client, clock, backoff_s=0.1), TrainJobController(client, clock)]


def test_a_trainjob_waits_for_its_runtime_and_then_runs_to_its_end() -> None:
    async def scenario() -> None:
        async with simulated(controllers) as (client, _):
            await client.create(TRAIN_JOBS, make_trainjob(), "ns")

            async def told() -> list[str]:
                return [e["message"] for e in await client.list(EVENTS, "ns") if e["type"] == "Warning"]

            (message,) = await until(told)
            assert message == (
                "TrainJob resources reconciliation failed: there is no TrainingRuntime named t; create it"
            )
            await client.create(TRAINING_RUNTIMES, make_runtime(**RUNS_SHORTLY), "ns")

            async def complete() -> bool:
                return has_condition(await client.get(TRAIN_JOBS, "t", "ns"), "Complete")

            await until(complete)
            pods = await client.list(PODS, "ns")
            assert sorted(pod["spec"]["hostname"] for pod in pods) == ["t-node-0-0", "t-node-0-1"]
            assert [s["metadata"]["name"] for s in await client.list(SERVICES, "ns")] == ["t"]

    asyncio.run(scenario())


def test_suspending_ends_the_pods_and_resuming_starts_new_ones() -> None:
    async def scenario() -> None:
        async with simulated(controllers) as (client, _):
            await client.create(TRAINING_RUNTIMES, make_runtime(**RUNS_ON), "ns")
            await client.create(TRAIN_JOBS, make_trainjob(), "ns")

            async def running() -> set[str]:
                pods = await client.list(PODS, "ns")
                uids = {p["metadata"]["uid"] for p in pods if (p.get("status") or {}).get("phase") == "Running"}
                return uids if len(uids) == 2 else set()

            before = await until(running)
            await client.patch(TRAIN_JOBS, "t", "ns", {"spec": {"suspend": True}})

            async def idle() -> bool:
                job = await client.get(JOBS, "t-node-0", "ns")
                return bool(job["spec"]["suspend"]) and not await client.list(PODS, "ns")

            await until(idle)

            async def suspended() -> bool:
                return has_condition(await client.get(TRAIN_JOBS, "t", "ns"), "Suspended")

            await until(suspended)
            await client.patch(TRAIN_JOBS, "t", "ns", {"spec": {"suspend": False}})
            assert not before & await until(running)

    asyncio.run(scenario())
