"""Pods that no scheduler places, and pods whose node is lost: each says what to do."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot

from wrpo_operator.plan.model import ChildState, PodFact
from wrpo_operator.plan.planner import plan
from wrpo_operator.runtime.observe import pod_fact

LATE = NOON + timedelta(seconds=31)
PENDING = {"phase": "Pending", "created_at": NOON}


def blockers(pod: PodFact, state: ChildState, now_s: float = 31) -> list[tuple[str, str]]:
    experiment = make_experiment()
    child = make_child(experiment, "prepare", state, pods=(pod,))
    todo = plan(make_snapshot(experiment, [child]), NOON + timedelta(seconds=now_s))
    assert todo.status is not None
    assert todo.requeue_after_s is not None, "without another look it would not be noticed"
    return [(blocker.reason, blocker.message) for blocker in todo.status.blockers]


def test_a_pod_whose_node_is_lost_is_to_be_deleted_by_force() -> None:
    pod = make_pod("p", node="gpu-1", phase="Running", terminating_since=NOON)
    text = (
        "Pod p on node gpu-1 is being deleted and does not end, so no other pod is created in its place: the node is "
        "lost or cannot stop it. If the node is gone, `kubectl delete pod p --force`; the attempt then continues on "
        "another node."
    )
    assert blockers(pod, ChildState.RUNNING) == [("PodLost", text)]
    assert blockers(pod, ChildState.RUNNING, now_s=29) == []


def test_a_pod_that_no_scheduler_looks_at_names_the_scheduler() -> None:
    pod = make_pod("p", **PENDING, is_scheduled=False, scheduler="nope")
    text = (
        "No scheduler has looked at the pod: it is for scheduler `nope`, and a resource claim that does not exist "
        "keeps it back as well. Check spec.scheduling.schedulerName, and resourceClaims in spec.podTemplate."
    )
    assert blockers(pod, ChildState.PENDING) == [("NoScheduler", text)]
    assert blockers(pod, ChildState.PENDING, now_s=29) == []


def test_a_pod_with_scheduling_gates_says_so() -> None:
    pod = make_pod("p", **PENDING, gated_message="Scheduling is blocked due to non-empty scheduling gates")
    text = (
        "The pod is not scheduled yet: Scheduling is blocked due to non-empty scheduling gates. Whoever set the "
        "scheduling gates has to remove them (podTemplate)."
    )
    assert blockers(pod, ChildState.PENDING) == [("SchedulingGated", text)]


SCHEDULED = {"type": "PodScheduled", "status": "True"}
GATED = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "gates"}


@pytest.mark.parametrize(
    ("spec", "conditions", "is_scheduled", "gated"),
    [
        ({"schedulerName": "s"}, [], False, ""),
        ({"nodeName": "n"}, [], True, ""),
        ({}, [SCHEDULED], True, ""),
        ({}, [GATED], True, "gates"),
    ],
)
def test_what_a_pod_says_of_its_scheduling(
    spec: dict[str, str], conditions: list[dict[str, str]], *, is_scheduled: bool, gated: str
) -> None:
    metadata = {"deletionTimestamp": "2026-01-01T12:00:00Z"}
    fact = pod_fact({"metadata": metadata, "spec": spec, "status": {"conditions": conditions}})
    assert (fact.is_scheduled, fact.gated_message, fact.scheduler) == (
        is_scheduled,
        gated,
        spec.get("schedulerName", ""),
    )
    assert fact.terminating_since == NOON
