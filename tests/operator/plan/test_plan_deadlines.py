"""Attempts that wait or run too long end with a reason; what does not run does not count."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot, node_of
from support.model_cluster import ModelCluster, at_stage, child_of, started, status_of

from wrpo_engine.contract.stages import SECTIONS, STAGES
from wrpo_operator.api.status import Attempt, AttemptState, Phase
from wrpo_operator.plan.deadlines import (
    Limit,
    active_deadline,
    active_limit,
    deadlines_ahead,
    enforce_deadlines,
    pending_deadline,
    pre_running_limit,
)
from wrpo_operator.plan.model import ChildState, DeleteChild
from wrpo_operator.plan.planner import LOOK_AGAIN_S, plan
from wrpo_operator.plan.stage_views import build_views

WORDS = (
    "exceeded spec.deadlines.activeSeconds (600 s) and was terminated. Its parts and checkpoints are kept. Raise the "
    "deadline if the stage needs more time."
)


def last_attempt(cluster: ModelCluster, stage: str) -> Attempt:
    found = status_of(cluster).stage_named(stage)
    assert found is not None
    return found.attempts[-1]


def test_an_attempt_that_ran_too_long_is_ended_with_the_reason_and_tried_again() -> None:
    training = {"nodes": 2, "gpusPerNode": 4}
    retries = {"limit": 1, "backoffSeconds": 60}
    cluster = started(deadlines={"activeSeconds": 600}, retries=retries, training=training,
                      scheduling={"gang": "BestEffort"})  # fmt: skip
    cluster.deletes_at_once = True
    at_stage(cluster, "train")
    name = child_of(cluster, "train")
    since = cluster.children[name].started_at
    assert since is not None
    cluster.now = since
    cluster.advance(599)
    answer = cluster.reconcile("demo")
    assert (answer.delete, answer.requeue_after_s) == ((), 1.0)
    cluster.advance(1)
    answer = cluster.reconcile("demo")
    assert [(item.name, item.reason) for item in answer.delete] == [(name, "it ran too long")]
    attempt = last_attempt(cluster, "train")
    assert (attempt.state, attempt.failure, attempt.reason) == ("Failed", "Application", "RanTooLong")
    assert attempt.message == WORDS
    stage = status_of(cluster).stage_named("train")
    assert stage is not None
    assert (stage.failed_attempts, stage.gpu_seconds) == (1, 600 * 2 * 4)
    cluster.pods.clear()
    cluster.advance(80)
    (start,) = cluster.reconcile("demo").apply
    assert start.attempt == 2
    cluster.run(start.child_name)
    cluster.advance(600)
    cluster.reconcile("demo")
    assert status_of(cluster).phase is Phase.FAILED
    failed = status_of(cluster).condition("Failed")
    assert failed is not None
    assert (failed.reason, failed.message) == (
        "RetriesExhausted",
        f"Stage train failed (attempt 2; 2 failures, and spec.retries.limit is 1): {WORDS}",
    )


def test_time_before_its_pods_run_is_not_counted_and_burns_no_retry() -> None:
    cluster = started(deadlines={"activeSeconds": 60}, retries={"limit": 0})
    cluster.reconcile("demo")
    name = child_of(cluster, "prepare")
    for _ in range(10):
        cluster.advance(3600)
        assert cluster.reconcile("demo").delete == ()
    cluster.run(name)
    cluster.advance(59)
    cluster.reconcile("demo")
    assert status_of(cluster).phase is Phase.RUNNING
    cluster.succeed(name)
    cluster.reconcile("demo")
    assert last_attempt(cluster, "prepare").state is AttemptState.SUCCEEDED


@pytest.mark.parametrize("queue", [{}, {"queueName": "gpus"}], ids=["by the user", "by a queue"])
def test_time_in_suspension_is_not_counted(queue: dict[str, str]) -> None:
    """A child that goes on has new pods, which start anew."""
    cluster = started(deadlines={"activeSeconds": 600}, scheduling=queue)
    cluster.reconcile("demo")
    name = child_of(cluster, "prepare")
    cluster.run(name)
    cluster.reconcile("demo")
    cluster.advance(500)
    held = replace(cluster.children[name], state=ChildState.SUSPENDED, suspended=bool(queue), started_at=None)
    cluster.children[name] = held
    if not queue:
        cluster.edit("demo", suspend=True)
    cluster.reconcile("demo")
    cluster.advance(86400)
    cluster.reconcile("demo")
    if not queue:
        cluster.edit("demo", suspend=False)
    cluster.reconcile("demo")
    cluster.children[name] = replace(cluster.children[name], suspended=False)
    cluster.run(name)
    cluster.advance(500)
    assert cluster.reconcile("demo").delete == ()
    cluster.advance(100)
    assert [item.name for item in cluster.reconcile("demo").delete] == [name]


def test_a_child_whose_pods_are_gone_counts_from_when_they_ran() -> None:
    """Then its own start is all it tells, which is when it was made."""
    cluster = started(deadlines={"activeSeconds": 600})
    cluster.reconcile("demo")
    name = child_of(cluster, "prepare")
    made = cluster.now
    cluster.advance(3600)
    cluster.run(name)
    cluster.reconcile("demo")
    cluster.children[name] = replace(cluster.children[name], started_at=made)
    cluster.advance(599)
    assert cluster.reconcile("demo").delete == ()
    cluster.advance(1)
    assert [item.name for item in cluster.reconcile("demo").delete] == [name]


LIMITS: dict[str, tuple[dict[str, Any], str, Limit | None, Limit | None]] = {
    "none": ({}, "train", None, None),
    "one for all stages": (
        {"activeSeconds": 5, "preRunningSeconds": 6}, "curate-sft",
        Limit(5, "spec.deadlines.activeSeconds"), Limit(6, "spec.deadlines.preRunningSeconds")),
    "a stage of its own time": (
        {"activeSeconds": 5, "preRunningSeconds": 6, "stages": {"train": {"activeSeconds": 7}}}, "train",
        Limit(7, "spec.deadlines.stages.train.activeSeconds"), Limit(6, "spec.deadlines.preRunningSeconds")),
    "another stage's time": (
        {"stages": {"train": {"activeSeconds": 7, "preRunningSeconds": 8}}}, "sft", None, None),
    "downloads are a part of preparing": (
        {"stages": {"prepare": {"preRunningSeconds": 8}}}, "fetch",
        None, Limit(8, "spec.deadlines.stages.prepare.preRunningSeconds")),
}  # fmt: skip


@pytest.mark.parametrize(("deadlines", "kind", "active", "waiting"), LIMITS.values(), ids=LIMITS.keys())
def test_the_stage_s_own_deadline_goes_before_the_general_one(
    deadlines: dict[str, Any], kind: str, active: Limit | None, waiting: Limit | None
) -> None:
    spec = make_experiment(deadlines=deadlines).spec
    assert spec is not None
    assert (active_limit(spec.deadlines, kind), pre_running_limit(spec.deadlines, kind)) == (active, waiting)


@pytest.mark.parametrize("kind", STAGES)
def test_every_kind_of_stage_may_have_deadlines_of_its_own(kind: str) -> None:
    spec = make_experiment(deadlines={"stages": {section.name: {"activeSeconds": 3} for section in SECTIONS}}).spec
    assert spec is not None
    limit = active_limit(spec.deadlines, kind)
    assert limit is not None
    assert limit.seconds == 3


def test_a_stage_s_own_time_to_wait_is_named_when_it_is_over() -> None:
    deadlines = {"preRunningSeconds": 9000, "stages": {"prepare": {"preRunningSeconds": 60}}}
    experiment = make_experiment(deadlines=deadlines)
    child = make_child(experiment, "prepare", ChildState.PENDING)
    early = plan(make_snapshot(experiment, [child]), NOON)
    assert (early.delete, early.requeue_after_s) == ((), LOOK_AGAIN_S)
    late = plan(make_snapshot(experiment, [child]), NOON.replace(minute=1)).status
    assert late is not None
    failed = late.condition("Failed")
    assert failed is not None
    assert "no pod ran within 60 s (spec.deadlines.stages.prepare.preRunningSeconds)." in failed.message


def test_a_deletion_at_the_deadline_that_was_lost_is_done_again() -> None:
    cluster = started(deadlines={"activeSeconds": 60})
    cluster.reconcile("demo")
    name = child_of(cluster, "prepare")
    cluster.run(name)
    running = cluster.children[name]
    cluster.advance(60)
    cluster.reconcile("demo")
    cluster.children[name] = running
    answer = cluster.reconcile("demo")
    assert [(item.name, item.reason) for item in answer.delete] == [(name, "its attempt was ended")]
    assert answer.apply == ()


HOUR = timedelta(hours=1)
ENDS: dict[str, tuple[ChildState, dict[str, Any], str | None]] = {
    "it runs": (ChildState.RUNNING, {}, "active"),
    "nothing says since when": (ChildState.RUNNING, {"started_at": None}, None),
    "a queue is about to suspend it": (ChildState.RUNNING, {"suspended": True}, None),
    "one of its pods has ended": (
        ChildState.RUNNING, {"pods": (make_pod(exit_code=0), make_pod("p1", node="n"))}, "active"),
    "all of its pods have ended": (ChildState.RUNNING, {"pods": (make_pod(exit_code=0),)}, None),
    "it waits": (ChildState.PENDING, {}, "waiting"),
    "it waits once more": (ChildState.PENDING, {"started_at": NOON}, "waiting"),
    "it waits in a queue": (ChildState.PENDING, {"suspended": True}, None),
    "it is suspended": (ChildState.SUSPENDED, {}, None),
    "it has ended": (ChildState.SUCCEEDED, {}, None),
}  # fmt: skip


@pytest.mark.parametrize(("state", "facts", "expected"), ENDS.values(), ids=ENDS.keys())
def test_a_child_has_a_time_to_wait_or_to_run(state: ChildState, facts: dict[str, Any], expected: str | None) -> None:
    experiment = make_experiment(deadlines={"activeSeconds": 3600, "preRunningSeconds": 7200})
    child = make_child(experiment, "prepare", state, **facts)
    assert experiment.spec is not None
    (view,) = build_views(experiment, experiment.spec, [node_of(experiment, "prepare")], [child], NOON)
    waits, runs = pending_deadline(experiment.spec, view, child), active_deadline(experiment.spec, view, child)
    assert (waits, runs) == (
        NOON + 2 * HOUR if expected == "waiting" else None,
        NOON + HOUR if expected == "active" else None,
    )
    without = replace(view, record=view.record.model_copy(update={"attempts": ()}))
    assert pending_deadline(experiment.spec, without, child) is None
    assert active_deadline(experiment.spec, without, child) == runs


def test_a_suspended_experiment_has_no_deadlines_ahead() -> None:
    for suspend, expected in ((False, [NOON + HOUR]), (True, [])):
        experiment = make_experiment(deadlines={"activeSeconds": 3600}, suspend=suspend)
        child = make_child(experiment, "prepare")
        assert experiment.spec is not None
        views = build_views(experiment, experiment.spec, [node_of(experiment, "prepare")], [child], NOON)
        assert list(deadlines_ahead(experiment.spec, views)) == expected
        assert enforce_deadlines(make_snapshot(experiment, [child]), experiment.spec, views, NOON + HOUR).delete == (
            () if suspend else (DeleteChild(child.kind, child.name, child.uid, "it ran too long"),)
        )
