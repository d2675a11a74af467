"""Pods whose node is lost say what to do."""

from __future__ import annotations

from datetime import timedelta

from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot

from wrpo_operator.plan.model import ChildState, PodFact
from wrpo_operator.plan.planner import plan
from wrpo_operator.runtime.observe import pod_fact


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
        "Pod p on node gpu-1 is being deleted but does not terminate, so no replacement is created: the node is "
        "lost or cannot stop it. If the node is gone, `kubectl delete pod p --force`; the attempt then continues on "
        "another node."
    )
    assert blockers(pod, ChildState.RUNNING) == [("PodLost", text)]
    assert blockers(pod, ChildState.RUNNING, now_s=29) == []


def test_a_pod_says_until_when_it_should_have_ended() -> None:
    fact = pod_fact({"metadata": {"deletionTimestamp": "2026-01-01T12:00:00Z"}, "spec": {}, "status": {}})
    assert fact.terminating_since == NOON
