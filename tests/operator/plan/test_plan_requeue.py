"""When to look again, and which recorded failure stands."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot, node_of

from wrpo_operator.api.status import (
    Attempt,
    AttemptState,
    Condition,
    ExperimentStatus,
    Phase,
    StageState,
    StageStatus,
    to_time,
)
from wrpo_operator.plan.model import ChildFact, ChildState, Experiment
from wrpo_operator.plan.planner import LOOK_AGAIN_S, find_failure, plan, recorded_failure
from wrpo_operator.plan.stage_views import build_views

BEFORE_SFT = ("prepare", "sample/qwen", "sample/yi", "score/qwen", "score/yi", "curate-sft")


def look_again_in(experiment: Experiment, *children: ChildFact, seconds: float = 0.0, **facts: Any) -> float | None:
    now = NOON + timedelta(seconds=seconds)
    return plan(make_snapshot(experiment, children, **facts), now).requeue_after_s


def test_a_deadline_is_looked_at_when_it_is_over_and_not_later() -> None:
    experiment = make_experiment(deadlines={"preRunningSeconds": 60})
    child = make_child(experiment, "prepare", ChildState.PENDING)
    assert look_again_in(experiment, child, seconds=30) == LOOK_AGAIN_S == 15.0
    assert look_again_in(experiment, child, seconds=50) == 10.0
    assert look_again_in(experiment, child, seconds=59.5) == 0.5


WAITING: dict[str, tuple[ChildState, tuple[Any, ...], bool]] = {
    "it waits for its pods": (ChildState.PENDING, (), True),
    "it is suspended, as by a queue": (ChildState.SUSPENDED, (), True),
    "it runs": (ChildState.RUNNING, (make_pod(node="n"),), False),
    "it runs, and its pods are not seen": (ChildState.RUNNING, (), False),
    "one of its pods waits": (ChildState.RUNNING, (make_pod(node="n"), make_pod("p1", phase="Pending")), True),
    "one of its pods is being deleted": (
        ChildState.RUNNING, (make_pod(node="n"), make_pod("p1", node="n", terminating_since=NOON)), True),
}  # fmt: skip


@pytest.mark.parametrize(("state", "pods", "may_wait"), WAITING.values(), ids=WAITING.keys())
def test_a_child_that_waits_for_the_cluster_is_looked_at_often(
    state: ChildState, pods: tuple[Any, ...], may_wait: bool
) -> None:
    queued = {"queueName": "gpus"} if state is ChildState.SUSPENDED else {}
    experiment = make_experiment(scheduling=queued)
    child = make_child(experiment, "prepare", state, pods=pods)
    assert look_again_in(experiment, child) == (LOOK_AGAIN_S if may_wait else None)


@pytest.mark.parametrize(("pods", "may_wait"), [(0, True), (1, True), (2, False)])
def test_a_gang_that_lacks_pods_is_looked_at_often(pods: int, may_wait: bool) -> None:
    experiment = make_experiment(training={"nodes": 2}, scheduling={"gang": "BestEffort"})
    done = [make_child(experiment, name, ChildState.SUCCEEDED) for name in BEFORE_SFT]
    gang = tuple(make_pod(f"p{rank}", node="n", index=rank) for rank in range(pods))
    child = make_child(experiment, "sft", ChildState.RUNNING, pods=gang)
    assert look_again_in(experiment, *done, child) == (LOOK_AGAIN_S if may_wait else None)


def test_what_holds_a_start_back_is_looked_at_often_and_a_pause_when_it_is_over() -> None:
    claim = ("PersistentVolumeClaim", "wrpo")
    assert look_again_in(make_experiment(), missing_objects=(claim,)) == LOOK_AGAIN_S
    experiment = make_experiment(retries={"limit": 9, "backoffSeconds": 100})
    crashed = make_child(experiment, "prepare", ChildState.FAILED, pods=(make_pod(exit_code=1),))
    answer = look_again_in(experiment, crashed, seconds=60)
    assert answer is not None
    # The pause is longer by up to a quarter.
    assert 40.0 <= answer <= 65.0


def failed_for_good(*, generation: int = 1, stage: str = "prepare", condition: str = "Failed") -> Experiment:
    """Return an experiment that failed at generation 1, in words that no attempt has."""
    experiment = make_experiment(generation=generation)
    attempt = Attempt(
        number=1, child="c1", state=AttemptState.FAILED, failure="Config", reason="X", finished_at=to_time(NOON)
    )
    record = StageStatus(
        name="prepare", state=StageState.FAILED, hash=node_of(experiment, "prepare").hash, attempts=(attempt,)
    )
    said = Condition(
        type=condition, status="True", last_transition_time=to_time(NOON), reason="Recorded", message="what was said"
    )
    status = ExperimentStatus(
        observed_generation=1, phase=Phase.FAILED, stage=stage, stages=(record,), conditions=(said,)
    )
    return replace(experiment, status=status)


STANDING: dict[str, tuple[dict[str, Any], bool]] = {
    "it stands": ({}, True),
    "the spec was edited": ({"generation": 2}, False),
    "the stage is gone": ({"stage": "nobody"}, False),
    "no failure is recorded": ({"condition": "Blocked"}, False),
}


@pytest.mark.parametrize(("facts", "stands"), STANDING.values(), ids=STANDING.keys())
def test_a_recorded_failure_keeps_its_words_while_it_stands(facts: dict[str, Any], stands: bool) -> None:
    experiment = failed_for_good(**facts)
    assert experiment.spec is not None
    views = build_views(experiment, experiment.spec, [node_of(experiment, "prepare")], (), NOON)
    found = recorded_failure(experiment, views)
    said = None if found is None else (str(found.stage), found.reason, found.message)
    assert said == (("prepare", "Recorded", "what was said") if stands else None)


def test_no_stage_has_failed_that_succeeded_or_still_runs() -> None:
    experiment = failed_for_good()
    assert experiment.spec is not None
    node = node_of(experiment, "prepare")
    for state, fails in ((None, True), (ChildState.RUNNING, False), (ChildState.SUCCEEDED, False)):
        children = () if state is None else (make_child(experiment, "prepare", state, attempt=2),)
        views = build_views(experiment, experiment.spec, [node], children, NOON)
        failure = find_failure(views, experiment.spec)
        assert (failure is not None) is fails
