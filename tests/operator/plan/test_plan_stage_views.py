"""What a stage has done so far: the record, brought up to date, and what an edit forgives."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from support.builders import NOON, make_child, make_experiment, node_of

from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import (
    MAX_ATTEMPTS,
    Attempt,
    AttemptState,
    ExperimentStatus,
    Phase,
    StageState,
    StageStatus,
    to_time,
)
from wrpo_operator.plan.model import ChildFact, ChildState, Experiment
from wrpo_operator.plan.retry import GiveUp, StartAttempt, Wait
from wrpo_operator.plan.stage_views import StageView, build_views, gpu_seconds, has_failed_for_good

STAGE = "prepare"


def failed_stage(experiment: Experiment, *, failures: int, state: StageState = StageState.FAILED) -> Experiment:
    """Return an experiment, observed at generation 1, whose first stage has failed so often."""
    node = node_of(experiment, STAGE)
    attempts = tuple(
        Attempt(
            number=number,
            child=f"c{number}",
            state=AttemptState.FAILED,
            failure="Application",
            reason="Failed",
            finished_at=to_time(NOON),
        )
        for number in range(1, failures + 1)
    )
    stage = StageStatus(name=STAGE, state=state, hash=node.hash, attempts=attempts, failed_attempts=failures)
    status = ExperimentStatus(observed_generation=1, phase=Phase.FAILED, stage=STAGE, stages=(stage,))
    return replace(experiment, status=status)


def view_of(experiment: Experiment, *children: ChildFact) -> StageView:
    spec = experiment.spec
    assert isinstance(spec, ExperimentSpec)
    (view,) = build_views(experiment, spec, [node_of(experiment, STAGE)], children, NOON)
    return view


RETRIES = {"limit": 1, "backoffSeconds": 60}


def test_an_edit_gives_a_failed_stage_all_of_its_retries_again() -> None:
    view = view_of(failed_stage(make_experiment(generation=2, retries=RETRIES), failures=2))
    assert (view.record.failed_attempts, view.record.forgiven_attempts) == (0, 2)
    assert view.next == StartAttempt(3)


def test_a_failure_after_the_edit_is_the_first_one() -> None:
    experiment = failed_stage(make_experiment(generation=2, retries=RETRIES), failures=2)
    view = view_of(experiment, make_child(experiment, STAGE, ChildState.FAILED, attempt=3))
    assert view.record.failed_attempts == 1
    assert isinstance(view.next, Wait)


@pytest.mark.parametrize(
    ("generation", "state"), [(1, StageState.FAILED), (2, StageState.SKIPPED)], ids=["no edit", "it had not failed"]
)
def test_nothing_is_forgiven_without_an_edit_after_a_failure(generation: int, state: StageState) -> None:
    view = view_of(failed_stage(make_experiment(generation=generation, retries=RETRIES), failures=2, state=state))
    assert (view.record.failed_attempts, view.record.forgiven_attempts) == (2, 0)
    assert isinstance(view.next, GiveUp)


def test_attempts_that_fell_off_a_full_list_are_not_counted_again_and_later_ones_are() -> None:
    """The children come oldest first: one that is passed over says nothing of those behind it."""
    experiment = make_experiment()
    node = node_of(experiment, STAGE)
    listed = tuple(
        Attempt(number=number, child=f"c{number}", state=AttemptState.DISRUPTED)
        for number in range(3, 3 + MAX_ATTEMPTS)
    )
    stage = StageStatus(name=STAGE, state=StageState.WAITING, hash=node.hash, attempts=listed)
    experiment = replace(experiment, status=ExperimentStatus(observed_generation=1, stages=(stage,)))
    newest = 3 + MAX_ATTEMPTS
    children = [make_child(experiment, STAGE, ChildState.FAILED, attempt=number) for number in (1, 2, newest)]
    view = view_of(experiment, *children)
    assert view.record.failed_attempts == 1
    assert [attempt.number for attempt in view.record.attempts] == list(range(4, newest + 1))


@pytest.mark.parametrize(("generation", "stands"), [(1, True), (2, False)])
def test_a_recorded_failure_stands_until_the_spec_is_edited(generation: int, stands: bool) -> None:
    experiment = failed_stage(make_experiment(generation=generation), failures=1)
    assert has_failed_for_good(experiment) is stands
    assert not has_failed_for_good(replace(experiment, status=ExperimentStatus(observed_generation=1)))


def test_the_child_of_the_oldest_listed_attempt_may_still_have_succeeded() -> None:
    """It was stopped too late: a full list passes over older children only."""
    experiment = make_experiment()
    node = node_of(experiment, STAGE)
    listed = tuple(
        Attempt(number=number, child=f"c{number}", state=AttemptState.STOPPED) for number in range(3, 3 + MAX_ATTEMPTS)
    )
    stage = StageStatus(name=STAGE, state=StageState.WAITING, hash=node.hash, attempts=listed)
    experiment = replace(experiment, status=ExperimentStatus(observed_generation=1, stages=(stage,)))
    for number, succeeded in ((2, False), (3, True)):
        view = view_of(experiment, make_child(experiment, STAGE, ChildState.SUCCEEDED, attempt=number))
        assert view.succeeded is succeeded


SPANS = {
    "a minute on two GPUs": (((0, 60),), 2, 120),
    "two attempts": (((0, 60), (100, 101)), 3, 183),
    "an attempt that ended as it started": (((5, 5),), 8, 0),
    "a clock that went back": (((60, 0), (0, 10)), 1, 10),
    "none that has not started or not ended": (((None, 5), (5, None)), 1, 0),
}


@pytest.mark.parametrize(("spans", "gpus", "expected"), SPANS.values(), ids=SPANS.keys())
def test_gpu_seconds_are_those_between_start_and_end(
    spans: tuple[tuple[int | None, int | None], ...], gpus: int, expected: int
) -> None:
    def moment(seconds: int | None) -> str | None:
        return None if seconds is None else to_time(NOON + timedelta(seconds=seconds))

    attempts = [
        Attempt(
            number=number,
            child=f"c{number}",
            state=AttemptState.FAILED,
            started_at=moment(start),
            finished_at=moment(end),
        )
        for number, (start, end) in enumerate(spans, start=1)
    ]
    assert gpu_seconds(attempts, gpus) == expected
