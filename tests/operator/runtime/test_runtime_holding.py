"""Status changes that wait for more of their kind, and those that never do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot

from wrpo_operator.api.status import Blocker, Condition, ExperimentStatus, Phase, to_time
from wrpo_operator.plan.model import ChildFact, ChildState, DeleteChild, Experiment, Plan, SetSuspend
from wrpo_operator.plan.planner import plan
from wrpo_operator.runtime.holding import MOMENT_S, HeldStatuses

KEY = ("ml", "demo")
STAGES = ("prepare", "sample/qwen", "sample/yi")


def children(experiment: Experiment, **states: ChildState) -> list[ChildFact]:
    named = {name.replace("_", "/"): state for name, state in states.items()}
    return [make_child(experiment, stage, named[stage], pods=(make_pod(),)) for stage in STAGES if stage in named]


def look(experiment: Experiment, **states: ChildState) -> Plan:
    return plan(make_snapshot(experiment, children(experiment, **states)), NOON)


def stored(experiment: Experiment, todo: Plan) -> Experiment:
    assert todo.status is not None
    return replace(experiment, status=todo.status)


@pytest.fixture
def running() -> Experiment:
    """An experiment of which prepare has ended and both samples run."""
    experiment = make_experiment(evaluation={"enabled": False})
    done, runs = ChildState.SUCCEEDED, ChildState.RUNNING
    experiment = stored(experiment, look(experiment, prepare=done, sample_qwen=runs, sample_yi=runs))
    return stored(experiment, look(experiment, prepare=done, sample_qwen=runs, sample_yi=runs))


ONE_DONE = {"prepare": ChildState.SUCCEEDED, "sample_qwen": ChildState.SUCCEEDED, "sample_yi": ChildState.RUNNING}
BOTH_DONE = {**ONE_DONE, "sample_yi": ChildState.SUCCEEDED}


def test_a_stage_that_succeeded_waits_for_its_neighbours_and_no_longer_than_a_moment(
    running: Experiment, clock: Any
) -> None:
    held = HeldStatuses(clock, MOMENT_S)
    first = look(running, **ONE_DONE)
    assert [str(start.node.id) for start in first.apply] == ["score/qwen"]
    assert held.wait_s(KEY, running, first) == MOMENT_S
    clock.at += MOMENT_S - 0.5
    second = look(held.current(KEY, running), **BOTH_DONE)
    assert held.wait_s(KEY, running, second) == 0.5
    clock.at += 0.5
    assert held.wait_s(KEY, running, second) == 0.0


def test_what_was_decided_is_remembered_until_it_is_stored(running: Experiment, clock: Any) -> None:
    """The settings that a child was started with are known only to the look that started it."""
    held = HeldStatuses(clock, MOMENT_S)
    first = look(running, **ONE_DONE)
    held.wait_s(KEY, running, first)
    assert held.current(KEY, running).status == first.status
    clock.at += MOMENT_S
    assert held.wait_s(KEY, running, first) == 0.0
    assert held.current(KEY, running).status == first.status, "the write may have failed"
    after = stored(running, first)
    assert held.current(KEY, after) is after
    assert held.wait_s(KEY, after, first) == 0.0


def test_a_status_that_somebody_else_wrote_meanwhile_counts(running: Experiment, clock: Any) -> None:
    held = HeldStatuses(clock, MOMENT_S)
    held.wait_s(KEY, running, look(running, **ONE_DONE))
    other = replace(running, status=ExperimentStatus())
    assert held.current(KEY, other) is other
    assert held.current(KEY, running) is running


def test_without_a_moment_everything_is_written_at_once(running: Experiment, clock: Any) -> None:
    held = HeldStatuses(clock, 0.0)
    assert held.wait_s(KEY, running, look(running, **ONE_DONE)) == 0.0
    assert held.current(KEY, running) is running


def blocked(status: ExperimentStatus) -> ExperimentStatus:
    blocker = Blocker(object="Pod/p", reason="Unschedulable", message="no GPU", since=to_time(NOON))
    return status.model_copy(update={"blockers": (blocker,)})


def degraded(status: ExperimentStatus) -> ExperimentStatus:
    condition = Condition(
        type="SourcesDegraded", status="True", reason="SourceFailed", message="", last_transition_time=to_time(NOON)
    )
    return status.model_copy(update={"conditions": (*status.conditions, condition)})


URGENT: dict[str, Any] = {
    "a phase": lambda todo: replace(todo, status=todo.status.model_copy(update={"phase": Phase.SUCCEEDED})),
    "an answer to an edit": lambda todo: replace(
        todo, status=todo.status.model_copy(update={"observed_generation": 2})
    ),
    "a blocker": lambda todo: replace(todo, status=blocked(todo.status)),
    "a condition": lambda todo: replace(todo, status=degraded(todo.status)),
    "a deletion": lambda todo: replace(todo, delete=(DeleteChild("Job", "j", "u", "why"),)),
    "a suspension": lambda todo: replace(todo, suspend=(SetSuspend("Job", "j", suspend=True),)),
}


@pytest.mark.parametrize("change", URGENT.values(), ids=URGENT.keys())
def test_what_somebody_waits_for_is_written_at_once(running: Experiment, clock: Any, change: Any) -> None:
    assert HeldStatuses(clock, MOMENT_S).wait_s(KEY, running, change(look(running, **ONE_DONE))) == 0.0


def test_a_failure_is_written_at_once_with_all_that_was_held(running: Experiment, clock: Any) -> None:
    held = HeldStatuses(clock, MOMENT_S)
    assert held.wait_s(KEY, running, look(running, **ONE_DONE)) > 0
    failed = {**ONE_DONE, "sample_yi": ChildState.FAILED}
    todo = look(held.current(KEY, running), **failed)
    assert held.wait_s(KEY, running, todo) == 0.0
    assert todo.status is not None
    assert [stage.state for stage in todo.status.stages if stage.name == "sample/qwen"] == ["Succeeded"]


def test_that_a_stage_runs_is_written_at_once_for_the_look_has_waited(running: Experiment, clock: Any) -> None:
    waiting = look(running, prepare=ChildState.SUCCEEDED, sample_qwen=ChildState.RUNNING, sample_yi=ChildState.PENDING)
    assert HeldStatuses(clock, MOMENT_S).wait_s(KEY, running, waiting) == 0.0
