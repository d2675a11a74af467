"""Which children of ended stages and experiments go, and when."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot, node_of
from support.model_cluster import started, status_of

from wrpo_operator.api.status import MAX_ATTEMPTS, Attempt, AttemptState, ExperimentStatus, StageState, StageStatus
from wrpo_operator.plan.model import ChildState, SetSuspend
from wrpo_operator.plan.planner import plan
from wrpo_operator.plan.stage_views import build_views
from wrpo_operator.plan.stops import forgotten_children


def test_only_children_older_than_the_oldest_listed_attempt_are_deleted() -> None:
    experiment = make_experiment()
    node = node_of(experiment, "prepare")
    listed = tuple(
        Attempt(number=number, child=f"c{number}", state=AttemptState.DISRUPTED)
        for number in range(3, 3 + MAX_ATTEMPTS)
    )
    stage = StageStatus(name="prepare", state=StageState.WAITING, hash=node.hash, attempts=listed)
    experiment = replace(experiment, status=ExperimentStatus(stages=(stage,)))
    children = [make_child(experiment, "prepare", ChildState.FAILED, attempt=number) for number in (1, 2, 3, 4)]
    assert experiment.spec is not None
    views = build_views(experiment, experiment.spec, [node], children, NOON)
    assert [item.uid for item in forgotten_children(views, [stage])] == ["uid-prepare-1", "uid-prepare-2"]
    shorter = stage.model_copy(update={"attempts": listed[1:]})
    assert forgotten_children(views, [shorter]) == ()


def test_the_look_that_records_a_new_end_deletes_no_child_for_the_age_of_the_old_one() -> None:
    """An edit that leaves everything done ends the experiment once more: its children's time begins then."""
    cluster = started(ttlSecondsAfterFinished=100)
    cluster.run_fairly("demo")
    before = status_of(cluster)
    stored = cluster.experiments["demo"]
    edited = replace(stored.read(), generation=2)
    children = tuple(cluster.children.values())
    late = cluster.now + timedelta(seconds=1000)
    answer = plan(make_snapshot(edited, children), late)
    assert answer.status is not None
    assert answer.status.finished_at != before.finished_at
    assert answer.delete == ()
    assert answer.requeue_after_s == 100.0
    again = plan(make_snapshot(replace(edited, status=answer.status), children), late + timedelta(seconds=100))
    assert len(again.delete) == len(children) > 2


@pytest.mark.parametrize(("state", "is_deleted"), [(ChildState.RUNNING, True), (ChildState.DELETING, False)])
def test_a_child_of_a_hash_that_nobody_asks_for_is_deleted_once(state: ChildState, is_deleted: bool) -> None:
    experiment = make_experiment()
    stale = replace(make_child(experiment, "prepare", state), stage_hash="0" * 16)
    wanted = make_child(experiment, "prepare", ChildState.RUNNING)
    answer = plan(make_snapshot(experiment, [stale, wanted]), NOON)
    assert [item.reason for item in answer.delete] == (
        [f"the spec no longer requests prepare with hash {'0' * 16}"] if is_deleted else []
    )


def test_a_stage_that_failed_before_is_shown_as_suspended_at_once() -> None:
    """Its ended children stay as they are; only the live one is suspended."""
    experiment = make_experiment(suspend=True)
    failed = make_child(experiment, "prepare", ChildState.FAILED, pods=(make_pod(exit_code=1),))
    running = make_child(experiment, "prepare", ChildState.RUNNING, attempt=2)
    answer = plan(make_snapshot(experiment, [failed, running]), NOON)
    assert answer.suspend == (SetSuspend("Job", running.name, suspend=True),)
    assert answer.status is not None
    stage = answer.status.stages[0]
    assert stage.state is StageState.SUSPENDED
    assert [attempt.state for attempt in stage.attempts] == [AttemptState.FAILED, AttemptState.SUSPENDED]
