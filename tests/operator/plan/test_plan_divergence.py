"""A training whose chosen responses become improbable is told by one Warning Event."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot

from wrpo_engine.config import TerminationMessage
from wrpo_operator.plan.model import ChildState, Experiment, Plan, PlannedEvent, ProgressFact
from wrpo_operator.plan.planner import plan

DONE = (
    "prepare",
    "sample/qwen",
    "sample/yi",
    "score/qwen",
    "score/yi",
    "curate-sft",
    "sft",
    "sample/target",
    "score/target",
    "curate-triples",
)


class Training:
    """An experiment whose stage train runs, looked at again and again with what the operator remembers."""

    def __init__(self, experiment: Experiment | None = None) -> None:
        self.experiment = experiment or make_experiment()
        self.looks = 0

    def look(self, value: float | None, *, attempt: int = 1, failed: tuple[int, ...] = ()) -> list[PlannedEvent]:
        """Return the divergence events of a reconcile after a post with this value; None is no post at all."""
        children = [make_child(self.experiment, stage, ChildState.SUCCEEDED) for stage in DONE]
        pod = make_pod("train-0", exit_code=1)
        children += [
            make_child(self.experiment, "train", ChildState.FAILED, attempt=number, pods=(pod,)) for number in failed
        ]
        children += [make_child(self.experiment, "train", attempt=attempt)]
        self.looks += 1
        at = NOON + timedelta(seconds=self.looks)
        metrics: Any = {"loss": 0.1, "margin": 3.0, "reward_divergence": value}
        posts: Any = {} if value is None else {("train", attempt): (ProgressFact(40.0, None, metrics, at),)}
        return self._remember(plan(make_snapshot(self.experiment, children, progress=posts), NOON))

    def end(self, value: float, *, cached: bool = False) -> list[PlannedEvent]:
        """Return the divergence events of the reconcile that sees the stage's result."""
        result = TerminationMessage(
            outcome="Succeeded", cached=cached, metrics={"reward_divergence": value}, artifact="train/x"
        )
        pod = replace(make_pod(exit_code=0), termination=result)
        children = [make_child(self.experiment, stage, ChildState.SUCCEEDED) for stage in DONE]
        children += [make_child(self.experiment, "train", ChildState.SUCCEEDED, pods=(pod,))]
        return self._remember(plan(make_snapshot(self.experiment, children), NOON))

    def _remember(self, answer: Plan) -> list[PlannedEvent]:
        assert answer.status is not None
        self.experiment = replace(self.experiment, status=answer.status)
        return [event for event in answer.events if event.reason == "RewardDivergence"]


def test_the_event_names_experiment_stage_and_attempt_and_says_what_to_do() -> None:
    assert Training().look(1.0) == [
        PlannedEvent(
            "Warning",
            "RewardDivergence",
            "Stage train of experiment demo (attempt 1) diverges: the chosen responses become improbable while the "
            "margin grows, so the loss keeps falling while the model degrades. Lower training.learningRate, raise "
            "training.beta (IPO: training.tau), add the likelihood term (training.nllWeight), or stop early with "
            "`training.holdout.patience`. `wrpo logs demo train` names the step.",
        )
    ]


def test_it_blocks_nothing() -> None:
    training = Training()
    training.look(1.0)
    assert training.experiment.status.blockers == ()
    stage = training.experiment.status.stage_named("train")
    assert stage is not None
    assert (stage.state, stage.message) == ("Running", None)


HISTORIES: dict[str, tuple[list[float | None], list[int]]] = {
    "a healthy run is not told": ([0.0, 0.0, 0.0], [0, 0, 0]),
    "a run is told once, however often it is looked at": ([0.0, 1.0, 1.0, 1.0], [0, 1, 0, 0]),
    "a restarted operator, which has no posts yet, says nothing again": ([1.0, None, None, 1.0], [1, 0, 0, 0]),
}


@pytest.mark.parametrize(("values", "events"), HISTORIES.values(), ids=HISTORIES.keys())
def test_the_first_look_that_shows_it_posts_the_event(values: list[float | None], events: list[int]) -> None:
    training = Training()
    assert [len(training.look(value)) for value in values] == events


def test_the_next_attempt_of_a_diverged_run_says_nothing_again() -> None:
    training = Training()
    assert len(training.look(1.0)) == 1
    assert training.look(None, attempt=2, failed=(1,)) == []
    assert training.look(1.0, attempt=2, failed=(1,)) == []


def test_an_attempt_that_went_back_before_the_divergence_and_diverges_again_says_so() -> None:
    training = Training()
    training.look(1.0)
    assert training.look(0.0, attempt=2, failed=(1,)) == []
    (event,) = training.look(1.0, attempt=2, failed=(1,))
    assert "(attempt 2)" in event.message


def test_an_edit_that_trains_again_is_told_of_its_own_divergence() -> None:
    training = Training()
    training.look(1.0)
    edited = make_experiment(training={"learningRate": 1e-6}, generation=2, status=training.experiment.status)
    assert len(Training(edited).look(1.0)) == 1


@pytest.mark.parametrize("cached", [False, True], ids=["computed", "another experiment's"])
def test_a_run_too_short_for_a_post_is_told_by_its_result(cached: bool) -> None:
    training = Training()
    assert len(training.end(1.0, cached=cached)) == 1
    assert training.end(1.0, cached=cached) == []


def test_the_result_after_the_posts_says_nothing_again() -> None:
    training = Training()
    training.look(1.0)
    assert training.end(1.0) == []
