"""Who is to blame for a failed child, and in whose words."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod

from wrpo_engine.config import ErrorInfo, TerminationMessage
from wrpo_operator.api.status import AttemptState
from wrpo_operator.plan.classify import Failure, attempt_of, failure_of
from wrpo_operator.plan.model import ChildState, FailureKind, PodFact

COLUMN = ErrorInfo(
    code="ColumnNotFound", field="prompts.column", message="Column `prompt` is not in the data set.",
    hint="It has: text, label.",
)  # fmt: skip
COLUMN_WORDS = "ColumnNotFound (spec.prompts.column): Column `prompt` is not in the data set. It has: text, label."
LATER = NOON + timedelta(seconds=5)

TRAINING: dict[str, tuple[list[PodFact], FailureKind, str]] = {
    "an exit code of bad data": ([make_pod(exit_code=65, error=COLUMN)], FailureKind.CONFIG, COLUMN_WORDS),
    "a temporary error may pass": (
        [make_pod(exit_code=75, error=ErrorInfo(code="Temporary", message="No answer."))],
        FailureKind.APPLICATION, "Temporary: No answer."),
    "torchrun hides the code, the message has it": (
        [PodFact("p", "Failed", exit_code=1,
                 termination=TerminationMessage(outcome="Failed", error=COLUMN, exit_code=65))],
        FailureKind.CONFIG, COLUMN_WORDS),
    "bad data in one rank, broken pipes in others": (
        [make_pod("p0", exit_code=1, finished_at=NOON), make_pod("p1", exit_code=65, error=COLUMN, finished_at=LATER)],
        FailureKind.CONFIG, COLUMN_WORDS),
    "out of memory": (
        [make_pod(exit_code=137)], FailureKind.APPLICATION,
        "pod pod-0 exited with code 137 (killed: out of memory, or by the node). See `kubectl logs pod-0`."),
    "last words that are not ours": (
        [make_pod(exit_code=1, termination_text="Segfault in libfoo")], FailureKind.APPLICATION,
        "pod pod-0 exited with code 1; its last words: Segfault in libfoo. See `kubectl logs pod-0`."),
    "a node is lost": (
        [make_pod("p0", exit_code=1, finished_at=NOON),
         make_pod("p1", exit_code=137, disrupted=True, node="n1", finished_at=LATER)],
        FailureKind.DISRUPTION,
        "pod p1 on node n1 was taken by the cluster (preemption, eviction or node loss); no retry is used up."),
    "evicted for more than its own limits": (
        [make_pod("p0", exit_code=137, outcome="Interrupted",
                  over_limit='Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". ')],
        FailureKind.APPLICATION,
        ('pod p0 was evicted for using more local storage than its own limits allow: Usage of EmptyDir volume "tmp" '
         'exceeds the limit "1Gi". Raise limits of ephemeral-storage in spec.resources, or the sizeLimit of the '
         "volume.")),
    "told to stop, and nothing before": (
        [make_pod("p0", exit_code=143, outcome="Interrupted", finished_at=NOON)], FailureKind.DISRUPTION,
        "pod p0 was taken by the cluster (preemption, eviction or node loss); no retry is used up."),
    "a crash, then its peers told to stop": (
        [make_pod("p0", exit_code=137, finished_at=NOON),
         make_pod("p1", exit_code=143, outcome="Interrupted", finished_at=LATER)],
        FailureKind.APPLICATION,
        "pod p0 exited with code 137 (killed: out of memory, or by the node). See `kubectl logs p0`."),
}  # fmt: skip


def failed_child(stage: str = "train", **facts: Any) -> Any:
    return make_child(make_experiment(), stage, ChildState.FAILED, **facts)


@pytest.mark.parametrize(("pods", "kind", "message"), TRAINING.values(), ids=TRAINING.keys())
def test_blames_for_a_gang(pods: list[PodFact], kind: FailureKind, message: str) -> None:
    failure = failure_of(failed_child(pods=tuple(pods)))
    assert (failure.kind, failure.message) == (kind, message)


def test_a_job_that_failed_by_itself_is_not_excused_by_an_earlier_eviction() -> None:
    pods = (make_pod("p0", exit_code=137, disrupted=True), make_pod("p1", exit_code=1))
    assert failure_of(failed_child("sample/qwen", pods=pods)).kind is FailureKind.APPLICATION


def test_a_job_whose_pods_were_all_taken_is_excused() -> None:
    pods = (make_pod("p0", exit_code=143, outcome="Interrupted"),)
    assert failure_of(failed_child("prepare", pods=pods)).kind is FailureKind.DISRUPTION


def test_a_job_failed_by_the_failure_policy_is_bad_config_even_without_pods() -> None:
    child = failed_child("prepare", name="x", failed_reason="PodFailurePolicy", failed_message="exit code 65")
    text = "Job x failed: PodFailurePolicy: exit code 65."
    assert failure_of(child) == Failure(FailureKind.CONFIG, "PodFailurePolicy", text)


def test_a_deadline_is_the_child_s_own_failure() -> None:
    pods = (make_pod("p0", exit_code=143, outcome="Interrupted"),)
    child = failed_child(name="x", failed_reason="DeadlineExceeded", failed_message="too long", pods=pods)
    failure = failure_of(child)
    assert (failure.kind, failure.message) == (
        FailureKind.APPLICATION, "PyTorchJob x failed: DeadlineExceeded: too long.")  # fmt: skip


def test_a_child_that_says_nothing() -> None:
    assert failure_of(failed_child(name="x")).message == "PyTorchJob x failed: no reason given."


def test_a_recorded_end_stays_whatever_the_child_shows() -> None:
    experiment = make_experiment()
    ended = attempt_of(make_child(experiment, "train", ChildState.FAILED), None, NOON)
    assert ended is not None
    again = attempt_of(make_child(experiment, "train", ChildState.RUNNING), ended, LATER)
    assert again == ended


def test_a_child_stopped_too_late_may_have_succeeded() -> None:
    experiment = make_experiment()
    running = attempt_of(make_child(experiment, "train"), None, NOON)
    assert running is not None
    stopped = running.model_copy(update={"state": AttemptState.STOPPED})
    late = attempt_of(make_child(experiment, "train", ChildState.SUCCEEDED), stopped, LATER)
    assert late is not None
    assert late.state is AttemptState.SUCCEEDED


def test_a_child_that_is_being_deleted_tells_nothing() -> None:
    assert attempt_of(make_child(make_experiment(), "train", ChildState.DELETING), None, NOON) is None
