"""What a stage has done so far: the record, brought up to date, and what an edit forgives."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from support.builders import AUTOMATIC, NOON, make_child, make_experiment, make_pod, merged, node_of

from wrpo_engine.config import ErrorInfo
from wrpo_operator.api.placement import Placement
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
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import ChildFact, ChildState, Experiment
from wrpo_operator.plan.retry import GiveUp, StartAttempt, Wait
from wrpo_operator.plan.stage_views import (
    StageView,
    as_recorded,
    build_views,
    gpu_seconds,
    has_failed_for_good,
    owners,
    without_idle,
)

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


SUCCEEDED_BEFORE: dict[str, tuple[Phase, int | None, int, bool]] = {
    "it succeeded": (Phase.SUCCEEDED, 1, 1, True),
    "it succeeded, and the generation was not written": (Phase.SUCCEEDED, None, 2, True),
    "its spec was edited": (Phase.SUCCEEDED, 1, 2, False),
    "it runs": (Phase.RUNNING, 1, 1, False),
}


@pytest.mark.parametrize(
    ("phase", "observed", "generation", "is_recorded"), SUCCEEDED_BEFORE.values(), ids=SUCCEEDED_BEFORE.keys()
)
def test_an_experiment_that_succeeded_keeps_the_stages_and_hashes_of_then_until_an_edit(
    phase: Phase, observed: int | None, generation: int, is_recorded: bool
) -> None:
    """The hash is one of an earlier version of the operator, which knew no samples."""
    experiment = make_experiment(generation=generation)
    graph = [node_of(experiment, STAGE), node_of(experiment, "sample/qwen")]
    recorded = StageStatus(name=STAGE, state=StageState.SUCCEEDED, hash="0" * 16)
    status = ExperimentStatus(observed_generation=observed, phase=phase, stages=(recorded,))
    found = as_recorded(replace(experiment, status=status), graph)
    assert found == ((replace(graph[0], hash="0" * 16),) if is_recorded else tuple(graph))


def views_with(experiment: Experiment, *, recorded: set[str], children: tuple[ChildFact, ...] = ()) -> list[StageView]:
    """Return the views of an experiment of which these stages have succeeded."""
    assert experiment.spec is not None
    graph = build_graph(experiment.spec)
    stages = tuple(
        StageStatus(name=str(node.id), state=StageState.SUCCEEDED, hash=node.hash)
        for node in graph
        if str(node.id) in recorded
    )
    status = ExperimentStatus(observed_generation=1, stages=stages)
    return list(build_views(replace(experiment, status=status), experiment.spec, graph, children, NOON))


def names_of(experiment: Experiment) -> set[str]:
    assert experiment.spec is not None
    return {str(node.id) for node in build_graph(experiment.spec)}


def inspection_for(experiment: Experiment, stage: str) -> str:
    (need,) = node_of(experiment, stage).needs
    return str(need.facts)


def test_an_inspection_is_left_out_once_nothing_needs_it_any_more_unless_it_has_run() -> None:
    experiment = make_experiment(**AUTOMATIC)
    names, idle = names_of(experiment), inspection_for(experiment, "sample/qwen")

    def left(recorded: set[str], *children: ChildFact) -> set[str]:
        return {str(view.id) for view in without_idle(views_with(experiment, recorded=recorded, children=children))}

    assert left(set()) == names
    assert left(names - {idle, "sample/qwen"}) == names, "its user has not succeeded"
    assert left(names - {idle}) == names - {idle}
    assert left(names - {idle}, make_child(experiment, idle)) == names, "it runs"
    assert left(names) == names, "it has run"
    assert left(names - {idle, "prepare"}) == names - {idle}, "others are never left out"


QWEN = {"name": "qwen", "model": "org/qwen"}
SHARED_BY: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    "a source's model": ({}, "sample/qwen", {"qwen"}),
    "a model of two sources": (
        {"sources": [QWEN, {**QWEN, "name": "again"}, {"name": "yi", "model": "org/yi"}]}, "sample/qwen",
        {"qwen", "again"}),
    "a model of a source and the target": ({"target": {"model": "org/qwen"}, "sources": [QWEN]}, "sample/qwen", set()),
    "the reward of sources and target": ({}, "score/qwen", set()),
    "the target": ({}, "train", set()),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "user", "expected"), SHARED_BY.values(), ids=SHARED_BY.keys())
def test_an_inspection_serves_the_sources_that_alone_use_its_model(
    changes: dict[str, Any], user: str, expected: set[str]
) -> None:
    experiment = make_experiment(**merged(AUTOMATIC, changes))
    assert experiment.spec is not None
    views = views_with(experiment, recorded=set())
    found = {str(stage): set(sources) for stage, sources in owners(experiment.spec, views).items()}
    assert found[inspection_for(experiment, user)] == expected
    assert found["sample/qwen"] == found["score/qwen"] == {"qwen"}
    assert not found["prepare"]


PLACED = "sample/qwen"
CHOSEN = Placement(accelerator="H100", resource="nvidia.com/gpu", per_pod=2, pods=2)
OTHER = CHOSEN.model_copy(update={"accelerator": "H200"})


def placed_view(record: dict[str, Any], *children: ChildFact, generation: int = 1) -> StageView:
    """Return the view of a stage whose accelerators the operator chooses, with a record of it."""
    experiment = make_experiment(generation=generation, retries={"limit": 9}, **AUTOMATIC)
    node = node_of(experiment, PLACED)
    stage = StageStatus(**{"name": PLACED, "state": StageState.WAITING, "hash": node.hash} | record)
    experiment = replace(experiment, status=ExperimentStatus(observed_generation=1, stages=(stage,)))
    assert experiment.spec is not None
    (view,) = build_views(experiment, experiment.spec, [node], children, NOON)
    return view


def sampled(attempt: int, chosen: Placement | None, state: ChildState = ChildState.PENDING) -> ChildFact:
    return make_child(make_experiment(**AUTOMATIC), PLACED, state, attempt=attempt, placement=chosen)


CHILDREN: dict[str, tuple[list[ChildFact], int, Placement]] = {
    "no child is left": ([], 0, CHOSEN),
    "a child that says nothing": ([sampled(1, None)], 0, CHOSEN),
    "a child with others": ([sampled(1, OTHER)], 0, OTHER),
    "the newest child decides": ([sampled(2, OTHER), sampled(1, CHOSEN, ChildState.FAILED)], 0, OTHER),
    "a child of an attempt that an edit has forgiven": ([sampled(1, OTHER)], 1, CHOSEN),
    "a child of the first attempt after it": ([sampled(2, OTHER)], 1, OTHER),
}


@pytest.mark.parametrize(("children", "forgiven", "expected"), CHILDREN.values(), ids=CHILDREN.keys())
def test_a_stage_has_the_accelerators_of_its_newest_child(
    children: list[ChildFact], forgiven: int, expected: Placement
) -> None:
    view = placed_view({"placement": CHOSEN, "forgiven_attempts": forgiven}, *children)
    assert (view.record.placement, view.node.placement, view.unplaced.placement) == (expected, expected, None)


def full(number: int = 1) -> Attempt:
    """Return an attempt that ran out of the accelerator's memory."""
    return Attempt(number=number, child=f"c{number}", state=AttemptState.FAILED, reason="OutOfMemory")


EDITS: dict[str, tuple[dict[str, Any], list[ChildFact], bool]] = {
    "it has failed": ({"state": StageState.FAILED, "attempts": (full(), full(2))}, [], True),
    "it has failed, and its attempts are not known": ({"state": StageState.FAILED}, [], True),
    "no more room can be given to it": ({"attempts": (full(), full(2))}, [], True),
    "so it is, and its child is there yet": ({"attempts": (full(),)}, [sampled(1, None, ChildState.FAILED)], True),
    "it waits for its next attempt": ({"attempts": (full(),)}, [sampled(2, None)], False),
    "it waits after another failure": (
        {"attempts": (full(), full(2).model_copy(update={"reason": "Broken"}))}, [], False),
    "it waits for its first attempt": ({}, [], False),
    "it is skipped": ({"state": StageState.SKIPPED, "attempts": (full(),)}, [], False),
}  # fmt: skip


@pytest.mark.parametrize(("record", "children", "is_forgiven"), EDITS.values(), ids=EDITS.keys())
def test_an_edit_lets_a_stage_start_as_if_nothing_had_failed(
    record: dict[str, Any], children: list[ChildFact], is_forgiven: bool
) -> None:
    chosen = {"placement": CHOSEN, "failed_attempts": 3}
    found = placed_view(record | chosen, *children, generation=2).record
    kept = placed_view(record | chosen, *children, generation=1).record
    assert (kept.forgiven_attempts, kept.failed_attempts, kept.placement) == (0, 3, CHOSEN), "nothing was edited"
    number = len(record.get("attempts", ()))
    assert (found.forgiven_attempts, found.failed_attempts, found.placement) == (
        (number, 0, None) if is_forgiven else (0, 3, CHOSEN)
    )


ROOM: dict[str, tuple[Placement | None, int]] = {
    "the operator has chosen accelerators": (CHOSEN.model_copy(update={"per_pod": 1}), 0),
    "it has chosen the CPU": (Placement(), 1),
    "the spec sizes the stage": (None, 1),
}


@pytest.mark.parametrize(("chosen", "failures"), ROOM.values(), ids=ROOM.keys())
def test_running_out_of_memory_uses_up_a_retry_where_no_more_can_be_given(
    chosen: Placement | None, failures: int
) -> None:
    pod = make_pod(exit_code=1, error=ErrorInfo(code="OutOfMemory", message="The accelerator's memory is full."))
    crash = make_pod(exit_code=1, error=ErrorInfo(code="Broken", message="It broke."))
    for number, (ended, counted) in enumerate(((pod, failures), (crash, 1))):
        child = replace(sampled(1, chosen, ChildState.FAILED), pods=(ended,))
        view = placed_view({"placement": chosen, "failed_attempts": 2}, child)
        assert view.record.failed_attempts == 2 + counted
        assert (view.next == StartAttempt(2)) is (number == 0 and failures == 0), "else it pauses"


@pytest.mark.parametrize(("number", "failures"), [(2, 0), (3, 1)], ids=["forgiven", "the first after it"])
def test_an_attempt_that_an_edit_forgave_while_it_ran_uses_up_no_retry(number: int, failures: int) -> None:
    running = Attempt(number=number, child=f"c{number}", state=AttemptState.RUNNING)
    child = replace(sampled(number, None, ChildState.FAILED), pods=(make_pod(exit_code=1),))
    assert placed_view({"attempts": (running,), "forgiven_attempts": 2}, child).record.failed_attempts == failures


def test_what_an_ended_attempt_adds_is_added_once() -> None:
    """GPU time, failures, and the disruptions in a row, which anything else ends."""
    child = replace(
        sampled(2, CHOSEN, ChildState.FAILED), started_at=NOON - timedelta(seconds=10), pods=(make_pod(exit_code=1),)
    )
    before = {"gpu_seconds": 100, "failed_attempts": 1, "consecutive_disruptions": 2, "placement": CHOSEN}
    first = placed_view(before, child).record
    assert (first.gpu_seconds, first.failed_attempts, first.consecutive_disruptions) == (140, 2, 0)
    again = placed_view(first.model_dump(exclude={"name", "state", "hash"}), child).record
    assert again == first
    taken = replace(child, pods=(make_pod(exit_code=143, disrupted=True),))
    third = placed_view(before, taken).record
    assert (third.gpu_seconds, third.failed_attempts, third.consecutive_disruptions) == (140, 1, 3)
    new = placed_view({"placement": CHOSEN}, child).record
    assert (new.gpu_seconds, new.failed_attempts) == (40, 1)
    assert placed_view({}).record.gpu_seconds == 0
