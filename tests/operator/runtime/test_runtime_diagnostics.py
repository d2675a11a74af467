"""Why children wait: Events and Kueue's Workloads become notes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod

from wrpo_operator.api.backends import CHILD_KINDS
from wrpo_operator.api.conditions import Reason
from wrpo_operator.plan.model import ChildState
from wrpo_operator.runtime.diagnostics import (
    ANSWER_TTL_S,
    KEPT_S,
    DiagnosticsClient,
    refusal_notes,
    refusal_reason,
)
from wrpo_operator.runtime.kube import KubeError, Page
from wrpo_operator.runtime.kueue import workload_note, workload_owner
from wrpo_operator.runtime.resources import CLAIMS, EVENTS, WORKLOADS
from wrpo_operator.runtime.trim import trim


def workload(*conditions: dict[str, Any], **spec: Any) -> dict[str, Any]:
    owners = [{"kind": "Job", "name": "j", "uid": "u1", "controller": True}]
    return {
        "metadata": {"name": "job-j-1", "ownerReferences": owners},
        "spec": spec,
        "status": {"conditions": list(conditions)},
    }


def of(type_: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": reason, "message": message}


ADMITTED = of("Admitted", "True", "Admitted")
RESERVED = of("QuotaReserved", "True", "QuotaReserved")


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ((), ("WaitingForQuota", "Kueue has not processed it yet")),
        ((of("QuotaReserved", "False", "Pending", "insufficient quota for gpu"),),
         ("WaitingForQuota", "insufficient quota for gpu")),
        ((of("QuotaReserved", "False", "Inadmissible", "LocalQueue q doesn't exist"),),
         ("Inadmissible", "LocalQueue q doesn't exist")),
        ((RESERVED, of("Admitted", "False", "UnsatisfiedChecks", "provisioning")),
         ("WaitingForAdmissionChecks", "provisioning")),
        ((of("QuotaReserved", "False", "Pending", "no room"), of("Evicted", "True", "Preempted", "By a/b.")),
         ("Preempted", "By a/b; no room")),
        ((of("QuotaReserved", "False", "Pending", "no room"), of("Evicted", "True", "PodsReadyTimeout", "Exceeded")),
         ("PodsReadyTimeout", "Exceeded; no room")),
        ((of("QuotaReserved", "False", "Pending", "no room"), of("Evicted", "True", "LocalQueueStopped", "Stopped")),
         ("EvictedByQueue", "Stopped; no room")),
    ],
)  # fmt: skip
def test_a_workload_that_waits_says_why(conditions: tuple[dict[str, Any], ...], expected: tuple[str, str]) -> None:
    note = workload_note(workload(*conditions))
    assert note is not None
    assert (note.reason, note.message) == expected
    assert note.object == "Workload/job-j-1"


@pytest.mark.parametrize("conditions", [(RESERVED, ADMITTED), (ADMITTED, of("Evicted", "False", "QuotaReserved"))])
def test_an_admitted_workload_is_no_reason(conditions: tuple[dict[str, Any], ...]) -> None:
    assert workload_note(workload(*conditions)) is None


def test_a_workload_that_somebody_stopped_is_told() -> None:
    note = workload_note(workload(ADMITTED, active=False))
    assert note is not None
    assert note.reason == "WorkloadInactive"


def test_a_workload_belongs_to_the_child_that_controls_it_or_that_its_label_names() -> None:
    assert workload_owner(workload()) == "u1"
    assert workload_owner({"metadata": {"labels": {"kueue.x-k8s.io/job-uid": "u2"}}}) == "u2"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('Error creating: pods "a" is forbidden: exceeded quota: q, requested: pods=1', "QuotaExceeded"),
        ('Error creating: pods "a" is forbidden: violates PodSecurity "restricted:latest"', "PodSecurityViolation"),
        ('Error creating: admission webhook "policy.example.com" denied the request', "AdmissionDenied"),
        ("Error creating: Internal error occurred", "PodsRefused"),
    ],
)
def test_refusals_are_told_apart_by_the_servers_words(message: str, reason: str) -> None:
    assert refusal_reason(message) == reason


class Events:
    """An API server that lists these events, and keeps how it was asked."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = events
        self.asked: list[str] = []

    async def pages(self, resource: object, namespace: str, *, field_selector: str) -> AsyncIterator[Page]:
        self.asked.append(field_selector)
        yield Page(self._events, "1")


REFUSED_AT: dict[str, tuple[tuple[str, ...], str, bool]] = {
    "no pod is there": ((), "2026-01-01T00:00:05Z", True),
    "the master is there, the worker was refused after it": (
        ("2026-01-01T00:00:01Z",),
        "2026-01-01T00:00:05Z",
        True,
    ),
    "a pod was made after the refusal": (
        ("2026-01-01T00:00:01Z", "2026-01-01T00:00:09Z"),
        "2026-01-01T00:00:05Z",
        False,
    ),
}


@pytest.mark.parametrize(("pods", "refused_at", "is_told"), REFUSED_AT.values(), ids=REFUSED_AT.keys())
def test_a_gang_that_runs_without_all_of_its_pods_says_why(
    pods: tuple[str, ...], refused_at: str, is_told: bool
) -> None:
    facts = tuple(make_pod(f"p{i}", created_at=datetime.fromisoformat(at)) for i, at in enumerate(pods))
    state = ChildState.RUNNING if pods else ChildState.PENDING
    child = make_child(make_experiment(), "sft", state, kind="PyTorchJob", pods=facts)
    event = {
        "involvedObject": {"kind": "PyTorchJob", "name": child.name},
        "reason": "FailedCreatePod",
        "lastTimestamp": refused_at,
        "message": 'pods "x" is forbidden: violates PodSecurity "restricted:latest"',
    }
    client = Events([event])
    notes = asyncio.run(DiagnosticsClient(client, lambda: 0.0).diagnostics("ns", [child], NOON))  # type: ignore[arg-type]
    assert [note.reason for note in notes.get(child.uid, ())] == (["PodSecurityViolation"] if is_told else [])
    assert client.asked == ["involvedObject.kind=PyTorchJob,type=Warning"]


JOBSET_MAKERS = {("JobSet", ""): "JobCreationFailed", ("Job", "-node-0"): "FailedCreate"}
MAKERS: dict[str, dict[tuple[str, str], str]] = {
    "Job": {("Job", ""): "FailedCreate"},
    "PyTorchJob": {("PyTorchJob", ""): "FailedCreateService"},
    "TrainJob": {("TrainJob", ""): "TrainJobResourcesCreationFailed", **JOBSET_MAKERS},
    "JobSet": JOBSET_MAKERS,
}


@pytest.mark.parametrize("kind", CHILD_KINDS)
def test_whatever_is_refused_on_the_way_to_a_childs_pods_is_told(kind: str) -> None:
    child = make_child(make_experiment(), "train", ChildState.PENDING, kind=kind)
    for (about, suffix), reason in MAKERS[kind].items():
        event = {
            "involvedObject": {"kind": about, "name": f"{child.name}{suffix}"},
            "reason": reason,
            "eventTime": "2026-01-01T00:00:05.000000Z",
            "message": 'jobs.batch "x" is forbidden: exceeded quota: q',
        }
        foreign = {**event, "involvedObject": {"kind": about, "name": f"other{suffix}"}}
        assert [note.reason for note in refusal_notes(child, [event])] == [Reason.QUOTA_EXCEEDED]
        assert refusal_notes(child, [foreign]) == ()
    client = Events([])
    asyncio.run(DiagnosticsClient(client, lambda: 0.0).diagnostics("ns", [child], NOON))  # type: ignore[arg-type]
    assert client.asked == [f"involvedObject.kind={about},type=Warning" for about, _ in MAKERS[kind]]


def test_answers_are_kept_while_they_are_good_and_in_no_more_fields_than_are_read(kube: Any, clock: Any) -> None:
    """Hundreds of namespaces, each with thousands of Events, ask once: nothing of that may stay for ever."""
    client = DiagnosticsClient(kube, clock)
    experiment = make_experiment()
    waiting = make_child(experiment, "prepare", ChildState.PENDING)
    for number in range(50):
        namespace = f"ns-{number}"
        event = {
            "metadata": {"name": "e", "namespace": namespace, "managedFields": ["much"] * 50},
            "involvedObject": {"kind": "Job", "name": waiting.name, "uid": "u"},
            "reason": "FailedCreate",
            "message": "exceeded quota: q",
            "source": {"component": "job-controller"},
        }
        kube.put(EVENTS, event)
        kube.put(EVENTS, {**event, "metadata": {"name": "f", "namespace": namespace}, "reason": "BackOff"})
        kube.put(CLAIMS, {"metadata": {"name": "wrpo", "namespace": namespace}, "status": {"phase": "Bound"}})
        asyncio.run(client.diagnostics(namespace, [waiting], NOON))
        asyncio.run(client.claim(namespace, "wrpo"))
        clock.at += 1
    assert len(client._lists) <= KEPT_S
    assert len(client._claims) <= KEPT_S
    assert client._lists.get((EVENTS, "ns-49", "involvedObject.kind=Job,type=Warning")) == (
        {
            "involvedObject": {"kind": "Job", "name": waiting.name},
            "reason": "FailedCreate",
            "message": "exceeded quota: q",
        },
    )


def test_one_answer_serves_all_experiments_of_a_namespace_for_a_while(kube: Any, clock: Any) -> None:
    client = DiagnosticsClient(kube, clock)
    waiting = make_child(make_experiment(), "prepare", ChildState.PENDING)
    for _ in range(3):
        asyncio.run(client.diagnostics("ns", [waiting], NOON))
    assert kube.calls == [("list", "events", "")]
    clock.at += ANSWER_TTL_S
    asyncio.run(client.diagnostics("ns", [waiting], NOON))
    assert len(kube.calls) == 2


async def held_up(client: DiagnosticsClient, kube: Any, waiter: tuple[str, str] | None) -> list[dict[str, Any]]:
    """Ask three times side by side; return the answers that come before the server's, and let that one come."""
    waiting = make_child(make_experiment(), "prepare", ChildState.PENDING)
    answers = asyncio.Event()
    pages = kube.pages

    async def slow(*args: Any, **selectors: str) -> AsyncIterator[Page]:
        await answers.wait()
        async for page in pages(*args, **selectors):
            yield page

    kube.pages = slow
    asked = [asyncio.create_task(client.diagnostics("ns", [waiting], NOON, waiter=waiter)) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    early = [task.result() for task in asked if task.done()]
    answers.set()
    await asyncio.gather(*asked)
    for _ in range(10):
        await asyncio.sleep(0)
    kube.pages = pages
    return early


def refused_job(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "e", "namespace": "ns"},
        "involvedObject": {"kind": "Job", "name": name},
        "reason": "FailedCreate",
        "message": "exceeded quota: q",
    }


def test_reconciles_that_ask_side_by_side_share_one_list(kube: Any, clock: Any) -> None:
    assert asyncio.run(held_up(DiagnosticsClient(kube, clock), kube, None)) == []
    assert kube.calls == [("list", "events", "")]


def test_an_experiment_that_asks_goes_on_and_is_woken_by_news_only(kube: Any, clock: Any) -> None:
    woken: list[tuple[str, str]] = []
    client = DiagnosticsClient(kube, clock, woken.append)
    waiting = make_child(make_experiment(), "prepare", ChildState.PENDING)
    assert asyncio.run(held_up(client, kube, ("ns", "demo"))) == [{}, {}, {}]
    assert woken == []
    kube.put(EVENTS, refused_job(waiting.name))
    clock.at += ANSWER_TTL_S
    assert asyncio.run(held_up(client, kube, ("ns", "demo"))) == [{}, {}, {}]
    assert woken == [("ns", "demo")]
    clock.at += ANSWER_TTL_S
    early = asyncio.run(held_up(client, kube, ("ns", "demo")))
    assert [note.reason for notes in early for note in notes[waiting.uid]] == ["QuotaExceeded"] * 3
    assert woken == [("ns", "demo")]
    assert kube.calls == [("list", "events", "")] * 3


def test_an_experiment_that_must_know_waits_where_nothing_is_known(kube: Any, clock: Any) -> None:
    waiting = make_child(make_experiment(), "prepare", ChildState.PENDING)
    kube.put(EVENTS, refused_job(waiting.name))
    client = DiagnosticsClient(kube, clock)
    notes = asyncio.run(client.diagnostics("ns", [waiting], NOON, waiter=("ns", "demo"), must_know=True))
    assert [note.reason for note in notes[waiting.uid]] == ["QuotaExceeded"]


def test_a_refused_list_fails_who_waits_for_it_and_is_asked_again(kube: Any, clock: Any) -> None:
    waiting = make_child(make_experiment(), "prepare", ChildState.PENDING)
    client = DiagnosticsClient(kube, clock)
    kube.fail["list", "events"] = KubeError(500, "InternalError", "etcd is away")
    with pytest.raises(KubeError, match="etcd is away"):
        asyncio.run(client.diagnostics("ns", [waiting], NOON))
    assert asyncio.run(held_up(client, kube, ("ns", "demo"))) == [{}, {}, {}]
    assert len(kube.calls) == 2


def test_claims_are_asked_for_once_by_all_that_ask_side_by_side(kube: Any, clock: Any) -> None:
    kube.put(CLAIMS, {"metadata": {"name": "wrpo", "namespace": "ns"}, "status": {"phase": "Bound"}})
    client = DiagnosticsClient(kube, clock)

    async def ask() -> list[Any]:
        return await asyncio.gather(*(client.claim("ns", "wrpo") for _ in range(3)))

    assert [claim.phase for claim in asyncio.run(ask())] == ["Bound"] * 3
    assert kube.calls == [("get", "persistentvolumeclaims", "wrpo")]


def test_a_trimmed_workload_says_the_same() -> None:
    whole = workload(of("QuotaReserved", "False", "Pending", "no room"), active=True, podSets=[{"template": "large"}])
    whole["metadata"] |= {"labels": {"kueue.x-k8s.io/job-uid": "u1", "other": "x"}, "managedFields": [1]}
    small = trim(WORKLOADS, whole)
    assert (workload_note(small), workload_owner(small)) == (workload_note(whole), "u1")
    assert "podSets" not in small["spec"]
    assert "managedFields" not in small["metadata"]


MOUNT = 'MountVolume.SetUp failed for volume "extra" : secret "absent" not found'
VAGUE = "Unable to attach or mount volumes: unmounted volumes=[extra]: timed out waiting for the condition"


def pod_event(message: str = MOUNT, *, pod: str = "p", reason: str = "FailedMount", ago_s: int = 10) -> dict[str, Any]:
    at = (NOON - timedelta(seconds=ago_s)).isoformat()
    return {
        "involvedObject": {"kind": "Pod", "name": pod},
        "reason": reason,
        "lastTimestamp": at,
        "message": message,
    }


PENDING = make_pod("p", phase="Pending", node="n", created_at=NOON - timedelta(seconds=40))
TOLD: dict[str, tuple[list[dict[str, Any]], Any, list[tuple[str, str]]]] = {
    "a volume that cannot be mounted": ([pod_event()], PENDING, [("FailedMount", MOUNT)]),
    "a claim that is attached elsewhere": (
        [pod_event("Multi-Attach error", reason="FailedAttachVolume")], PENDING,
        [("FailedAttachVolume", "Multi-Attach error")]),
    "no network for the pod": (
        [pod_event("no network", reason="FailedCreatePodSandBox")], PENDING,
        [("FailedCreatePodSandBox", "no network")]),
    "the cause goes before what follows from it": (
        [pod_event(ago_s=100), pod_event(VAGUE)], PENDING, [("FailedMount", MOUNT)]),
    "of several causes the newest": (
        [pod_event("old", ago_s=100), pod_event(), pod_event("older", ago_s=200)], PENDING, [("FailedMount", MOUNT)]),
    "only that something timed out": ([pod_event(VAGUE)], PENDING, [("FailedMount", VAGUE)]),
    "another pod's": ([pod_event(pod="q")], PENDING, []),
    "a thing of the past": ([pod_event(ago_s=301)], PENDING, []),
    "another Event": ([pod_event(reason="Unhealthy")], PENDING, []),
    "a pod that is young": ([pod_event()], replace(PENDING, created_at=NOON - timedelta(seconds=29)), []),
    "a pod without a node": ([pod_event()], replace(PENDING, node=None), []),
    "a pod that says why itself": ([pod_event()], replace(PENDING, waiting_reason="ErrImagePull"), []),
    "a pod that runs": ([pod_event()], replace(PENDING, phase="Running"), []),
}  # fmt: skip


@pytest.mark.parametrize("state", [ChildState.PENDING, ChildState.RUNNING])
@pytest.mark.parametrize(("events", "pod", "expected"), TOLD.values(), ids=TOLD.keys())
def test_a_pod_that_its_node_cannot_start_says_why(
    events: list[dict[str, Any]], pod: Any, expected: list[tuple[str, str]], state: ChildState
) -> None:
    child = make_child(make_experiment(), "sample/qwen", state, pods=(pod,))
    notes = asyncio.run(DiagnosticsClient(Events(events), lambda: 0.0).diagnostics("ns", [child], NOON))  # type: ignore[arg-type]
    assert [(note.reason.value, note.message) for note in notes.get(child.uid, ())] == expected
    assert {note.object for note in notes.get(child.uid, ())} <= {"Pod/p"}


def test_a_cause_that_many_pods_share_is_told_once_and_asked_for_once() -> None:
    pods = tuple(replace(PENDING, name=f"p{number}") for number in range(5))
    client = Events([pod_event(pod=pod.name) for pod in pods])
    child = make_child(make_experiment(), "sample/qwen", ChildState.PENDING, pods=pods)
    notes = asyncio.run(DiagnosticsClient(client, lambda: 0.0).diagnostics("ns", [child], NOON))  # type: ignore[arg-type]
    assert [note.object for note in notes[child.uid]] == ["Pod/p0"]
    assert client.asked == ["involvedObject.kind=Pod,type=Warning"]
