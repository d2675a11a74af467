"""PyTorchJob controller: the training operator's pods, Services and conditions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import timestamp
from wrpo_devcluster.controllers.pytorchjob import invalid
from wrpo_devcluster.controllers.pytorchjob_decide import NewReplica, decide
from wrpo_devcluster.controllers.pytorchjob_render import render_pod, render_service

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def replica(count: int = 1, restart: str = "Never", container: str = "pytorch") -> JsonObject:
    template = {"spec": {"containers": [{"name": container, "image": "i"}]}}
    return {"replicas": count, "restartPolicy": restart, "template": template}


def make_job(
    *, workers: int = 1, restart: str = "Never", status: JsonObject | None = None, **policy: Any
) -> JsonObject:
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "t", "namespace": "ns", "uid": "u"},
        "spec": {
            "nprocPerNode": "2",
            "runPolicy": policy,
            "pytorchReplicaSpecs": {"Master": replica(1, restart), "Worker": replica(workers, restart)},
        },
        "status": status or {},
    }


def make_pod(role: str, phase: str, *, index: int = 0, code: int = 0, restarts: int = 0) -> JsonObject:
    state = {"terminated": {"exitCode": code}} if phase in {"Succeeded", "Failed"} else {"running": {}}
    return {
        "metadata": {
            "name": f"t-{role}-{index}",
            "namespace": "ns",
            "uid": f"{role}-{index}",
            "labels": {
                "training.kubeflow.org/replica-type": role,
                "training.kubeflow.org/replica-index": str(index),
            },
        },
        "status": {
            "phase": phase,
            "containerStatuses": [{"name": "pytorch", "state": state, "restartCount": restarts}],
        },
    }


def true_conditions(status: JsonObject) -> list[str]:
    return [c["type"] for c in status["conditions"] if c["status"] == "True"]


OUTCOMES: dict[str, tuple[JsonObject, list[JsonObject], list[str]]] = {
    "nothing runs yet": (make_job(), [make_pod("master", "Pending")], ["Created"]),
    "the master runs": (make_job(), [make_pod("master", "Running")], ["Created", "Running"]),
    "the master's success is the job's": (
        make_job(),
        [make_pod("master", "Succeeded"), make_pod("worker", "Running")],
        ["Created", "Succeeded"],
    ),
    "a worker's success is not": (
        make_job(),
        [make_pod("master", "Running"), make_pod("worker", "Succeeded")],
        ["Created", "Running"],
    ),
    "a failed worker fails the job": (
        make_job(),
        [make_pod("master", "Running"), make_pod("worker", "Failed", code=1)],
        ["Created", "Failed"],
    ),
    "ExitCode: a signal restarts": (
        make_job(restart="ExitCode"),
        [make_pod("master", "Running"), make_pod("worker", "Failed", code=137)],
        ["Created", "Restarting"],
    ),
    "ExitCode: the program's verdict is final": (
        make_job(restart="ExitCode"),
        [make_pod("master", "Running"), make_pod("worker", "Failed", code=1)],
        ["Created", "Failed"],
    ),
    "too many restarts": (
        make_job(restart="OnFailure", backoffLimit=2),
        [make_pod("master", "Running", restarts=2)],
        ["Created", "Failed"],
    ),
    "suspended": (make_job(suspend=True), [make_pod("master", "Running")], ["Created", "Suspended"]),
}


@pytest.mark.parametrize(("job", "pods", "expected"), OUTCOMES.values(), ids=OUTCOMES.keys())
def test_conditions_follow_the_replicas(job: JsonObject, pods: list[JsonObject], expected: list[str]) -> None:
    assert true_conditions(decide(job, pods, NOON).status) == expected


def test_missing_replicas_are_created() -> None:
    decision = decide(make_job(workers=2), [make_pod("worker", "Running", index=1)], NOON)
    assert decision.create == (NewReplica("Master", 0), NewReplica("Worker", 0))


def test_a_finished_job_starts_no_pods_and_cleans_up_as_told() -> None:
    done = decide(make_job(cleanPodPolicy="Running"), [make_pod("master", "Succeeded")], NOON).status
    job = make_job(cleanPodPolicy="Running", status=done)
    decision = decide(job, [make_pod("master", "Succeeded"), make_pod("worker", "Running")], NOON)
    assert (decision.create, decision.delete) == ((), ("t-worker-0",))


def test_a_deadline_fails_the_job_and_stops_its_pods() -> None:
    job = make_job(activeDeadlineSeconds=10, status={"startTime": timestamp(NOON - timedelta(seconds=10))})
    decision = decide(job, [make_pod("master", "Running")], NOON)
    assert true_conditions(decision.status) == ["Created", "Failed"]
    assert decision.delete == ("t-master-0",)
    assert decision.status["conditions"][-1]["message"] == (
        "Job t has failed because it was active longer than specified deadline"
    )


def test_time_to_live_counts_from_completion() -> None:
    done = decide(make_job(ttlSecondsAfterFinished=30), [make_pod("master", "Succeeded")], NOON).status
    job = make_job(ttlSecondsAfterFinished=30, status=done)
    assert decide(job, [], NOON + timedelta(seconds=10)).requeue_after_s == 20
    assert decide(job, [], NOON + timedelta(seconds=30)).expired


def test_deciding_again_changes_nothing() -> None:
    job, pods = make_job(), [make_pod("master", "Running"), make_pod("worker", "Running")]
    once = decide(job, pods, NOON)
    again = decide({**job, "status": once.status}, pods, NOON + timedelta(seconds=9))
    assert (again.status, again.create, again.delete, again.events) == (once.status, (), (), ())


def test_torchrun_finds_its_environment() -> None:
    pod = render_pod(make_job(workers=2), "Worker", 1)
    env = {e["name"]: e["value"] for e in pod["spec"]["containers"][0]["env"]}
    assert env == {
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": "t-master-0",
        "MASTER_PORT": "23456",
        "PET_MASTER_ADDR": "t-master-0",
        "PET_MASTER_PORT": "23456",
        "PET_NNODES": "3",
        "PET_NODE_RANK": "2",
        "PET_NPROC_PER_NODE": "2",
        "RANK": "2",
        "WORLD_SIZE": "6",
    }
    assert pod["metadata"]["labels"]["training.kubeflow.org/replica-index"] == "1"


def test_workers_wait_for_the_masters_name() -> None:
    worker, master = render_pod(make_job(), "Worker", 0), render_pod(make_job(), "Master", 0)
    script = worker["spec"]["initContainers"][0]["command"][-1]
    assert "nslookup t-master-0" in script
    assert "initContainers" not in master["spec"]
    assert master["metadata"]["labels"]["training.kubeflow.org/job-role"] == "master"


def test_each_replica_has_a_headless_service() -> None:
    service = render_service(make_job(), "Master", 0, port=23456)
    assert (service["metadata"]["name"], service["spec"]["clusterIP"]) == ("t-master-0", "None")
    assert service["spec"]["selector"]["training.kubeflow.org/replica-type"] == "master"


def test_jobs_the_training_operator_refuses_are_named() -> None:
    wrong_name, two_masters = make_job(), make_job()
    wrong_name["spec"]["pytorchReplicaSpecs"]["Worker"] = replica(container="main")
    two_masters["spec"]["pytorchReplicaSpecs"]["Master"]["replicas"] = 2
    assert invalid(wrong_name) == (
        "PyTorchJobSpec is not valid: There is no container named pytorch in Worker; it has ['main']"
    )
    assert invalid(two_masters) == "PyTorchJobSpec is not valid: Master replicas is 2 but must be 1"
    assert not invalid(make_job())
