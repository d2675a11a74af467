"""Who is to blame for a failed child, and in whose words."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod

from wrpo_engine.config import ErrorInfo, TerminationMessage
from wrpo_operator.api.backends import BACKENDS, CHILD_KINDS
from wrpo_operator.api.status import Attempt, AttemptState, to_time
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
        "pod pod-0 exited with code 1; last output: Segfault in libfoo. See `kubectl logs pod-0`."),
    "a node is lost": (
        [make_pod("p0", exit_code=1, finished_at=NOON),
         make_pod("p1", exit_code=137, disrupted=True, node="n1", finished_at=LATER)],
        FailureKind.DISRUPTION,
        "pod p1 on node n1 was terminated by the cluster (preemption, eviction or node loss); no retry is used up."),
    "evicted for more than its own limits": (
        [make_pod("p0", exit_code=137, outcome="Interrupted",
                  over_limit='Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". ')],
        FailureKind.APPLICATION,
        ('pod p0 was evicted for using more local storage than its own limits allow: Usage of EmptyDir volume "tmp" '
         'exceeds the limit "1Gi". Raise the limit of ephemeral-storage in spec.resources, or the sizeLimit of the '
         "volume.")),
    "told to stop, and nothing before": (
        [make_pod("p0", exit_code=143, outcome="Interrupted", finished_at=NOON)], FailureKind.DISRUPTION,
        "pod p0 was terminated by the cluster (preemption, eviction or node loss); no retry is used up."),
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


def test_a_jobset_that_a_final_exit_code_ended_is_bad_config_even_without_pods() -> None:
    reason, words = "FailJobSetFailurePolicyAction", "applying FailJobSet failure policy action"
    final = failure_of(failed_child(kind="JobSet", name="x", failed_reason=reason, failed_message=words))
    assert final == Failure(FailureKind.CONFIG, reason, f"JobSet x failed: {reason}: {words}.")
    for kind, other in (("JobSet", "ReachedMaxRestarts"), ("JobSet", "PodFailurePolicy"), ("PyTorchJob", "")):
        again = failure_of(failed_child(kind=kind, name="x", failed_reason=other, failed_message=words))
        assert again.kind is FailureKind.APPLICATION


@pytest.mark.parametrize("kind", CHILD_KINDS)
def test_one_lost_pod_excuses_a_gang_and_not_a_job(kind: str) -> None:
    pods = (make_pod("p0", exit_code=1, finished_at=LATER), make_pod("p1", exit_code=137, disrupted=True))
    expected = FailureKind.DISRUPTION if kind in BACKENDS else FailureKind.APPLICATION
    assert failure_of(failed_child(kind=kind, pods=pods)).kind is expected


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


CREATED = NOON - timedelta(seconds=30)
STARTED = NOON - timedelta(seconds=10)
TIMES: dict[str, Any] = {"created_at": CREATED, "started_at": STARTED}


def recorded(state: AttemptState = AttemptState.PENDING, **facts: Any) -> Attempt:
    return Attempt(number=1, child="c1", state=state, **facts)


ACTIVE: dict[str, tuple[ChildState, dict[str, Any], Attempt | None, tuple[str, datetime | None, datetime | None]]] = {
    "it waits since it was created": (
        ChildState.PENDING, {"started_at": None}, None, ("Pending", None, CREATED)),
    "it waits since it was seen, where nothing says when it was created": (
        ChildState.PENDING, {"created_at": None, "started_at": None}, None, ("Pending", None, NOON)),
    "it waits since what was recorded": (
        ChildState.PENDING, {}, recorded(pending_since=to_time(STARTED)), ("Pending", STARTED, STARTED)),
    "it waits once more": (
        ChildState.PENDING, {}, recorded(AttemptState.RUNNING, started_at=to_time(CREATED)),
        ("Pending", CREATED, NOON)),
    "it runs and waits no more": (
        ChildState.RUNNING, {}, recorded(pending_since=to_time(CREATED)), ("Running", STARTED, None)),
    "it is suspended and waits for nothing": (
        ChildState.SUSPENDED, {}, recorded(pending_since=to_time(CREATED)), ("Suspended", STARTED, None)),
}  # fmt: skip


@pytest.mark.parametrize(("state", "facts", "before", "expected"), ACTIVE.values(), ids=ACTIVE.keys())
def test_a_child_that_has_not_ended_says_since_when_it_waits_or_runs(
    state: ChildState,
    facts: dict[str, Any],
    before: Attempt | None,
    expected: tuple[str, datetime | None, datetime | None],
) -> None:
    child = make_child(make_experiment(), "train", state, **(TIMES | facts))
    attempt = attempt_of(child, before, NOON)
    assert attempt is not None
    times = tuple(moment and to_time(moment) for moment in expected[1:])
    assert (attempt.state, attempt.started_at, attempt.pending_since) == (expected[0], *times)


def test_a_success_is_recorded_with_its_times_and_without_what_was_wrong_before() -> None:
    child = make_child(make_experiment(), "train", ChildState.SUCCEEDED, **TIMES, finished_at=LATER)
    stopped = recorded(AttemptState.STOPPED, reason="RanTooLong", message="m", failure="Application", exit_code=1)
    assert attempt_of(child, stopped, NOON) == recorded(
        AttemptState.SUCCEEDED, exit_code=0, started_at=to_time(STARTED), finished_at=to_time(LATER)
    )


ENDS: dict[str, tuple[PodFact, tuple[str, str, str]]] = {
    "a crash": (make_pod(exit_code=1), ("Failed", "Application", "Failed")),
    "a disruption": (make_pod(exit_code=143, disrupted=True), ("Disrupted", "Disruption", "Disrupted")),
    "bad data": (make_pod(exit_code=65, error=COLUMN), ("Failed", "Config", "ColumnNotFound")),
}


@pytest.mark.parametrize(("pod", "expected"), ENDS.values(), ids=ENDS.keys())
def test_a_failure_is_recorded_with_its_blame_and_times(pod: PodFact, expected: tuple[str, str, str]) -> None:
    child = failed_child(pods=(pod,), **TIMES, finished_at=None)
    attempt = attempt_of(child, recorded(pending_since=to_time(CREATED)), NOON)
    assert attempt is not None
    assert (attempt.state, attempt.failure, attempt.reason) == expected
    assert (attempt.exit_code, attempt.started_at, attempt.finished_at, attempt.pending_since) == (
        pod.exit_code,
        to_time(STARTED),
        to_time(NOON),
        None,
    )


def test_a_stopped_attempt_whose_child_failed_stays_stopped() -> None:
    stopped = recorded(AttemptState.STOPPED)
    assert attempt_of(failed_child(pods=(make_pod(exit_code=65),)), stopped, NOON) == stopped
    ended = recorded(AttemptState.FAILED)
    assert attempt_of(make_child(make_experiment(), "train", ChildState.SUCCEEDED), ended, NOON) == ended


CODES = [(63, False), (64, True), (74, True), (75, False), (76, True), (78, True), (79, False), (1, False)]


@pytest.mark.parametrize(("code", "is_final"), CODES)
def test_only_exit_codes_64_to_78_but_75_are_the_configuration_s(code: int, is_final: bool) -> None:
    failure = failure_of(failed_child(pods=(make_pod(exit_code=code),)))
    assert failure.kind is (FailureKind.CONFIG if is_final else FailureKind.APPLICATION)
    assert failure.exit_code == code


def message(code: str, **facts: Any) -> TerminationMessage:
    return TerminationMessage(outcome="Failed", error=ErrorInfo(code=code, message="m"), **facts)


SPOKESMEN: dict[str, tuple[list[PodFact], str]] = {
    "the first to end": (
        [make_pod("late", exit_code=2, finished_at=LATER), make_pod("first", exit_code=3, finished_at=NOON)], "first"),
    "one whose end is known before one whose is not": (
        [make_pod("unknown", exit_code=2), make_pod("known", exit_code=3, finished_at=LATER)], "known"),
    "of two at once the lower index": (
        [make_pod("p1", exit_code=2, finished_at=NOON, index=1), make_pod("p0", exit_code=3, finished_at=NOON)], "p0"),
    "none that has succeeded or runs": (
        [make_pod("done", exit_code=0, finished_at=NOON), make_pod("runs"), make_pod("p", exit_code=1)], "p"),
    "one that the kubelet failed without an exit code": ([PodFact("rejected", "Failed")], "rejected"),
    "one that has ended with a code in a phase that lags": ([PodFact("lags", "Running", exit_code=1)], "lags"),
    "the first that says why": (
        [make_pod("mute", exit_code=1, finished_at=NOON),
         make_pod("says", exit_code=1, finished_at=LATER, error=ErrorInfo(code="says", message="m"))], "says"),
    "none that was taken while another one crashed": (
        [make_pod("crashed", exit_code=1, finished_at=NOON),
         make_pod("taken", exit_code=143, outcome="Interrupted", finished_at=LATER,
                  error=ErrorInfo(code="taken", message="m"))], "crashed"),
}  # fmt: skip


@pytest.mark.parametrize(("pods", "spokesman"), SPOKESMEN.values(), ids=SPOKESMEN.keys())
def test_one_pod_speaks_for_all_that_failed(pods: list[PodFact], spokesman: str) -> None:
    failure = failure_of(failed_child(pods=tuple(pods)))
    assert failure.kind is FailureKind.APPLICATION
    assert spokesman in failure.message


def test_the_steps_that_were_completed_come_with_the_error() -> None:
    pod = PodFact("p", "Failed", exit_code=1, termination=message("NotFinite", step=7, exit_code=70))
    assert failure_of(failed_child(pods=(pod,))) == Failure(FailureKind.CONFIG, "NotFinite", "NotFinite: m", 70, 7)


def test_without_words_of_the_engine_those_of_the_kubelet_or_the_child_are_the_reason() -> None:
    def reason(child_reason: str = "", **facts: Any) -> str:
        return failure_of(failed_child(pods=(make_pod(exit_code=137, **facts),), failed_reason=child_reason)).reason

    assert reason(terminated_reason="OOMKilled") == "OOMKilled"
    assert reason(terminated_reason="Error") == "Failed"
    assert reason("BackoffLimitExceeded") == "BackoffLimitExceeded"
    assert reason(over_limit="disk") == "Evicted"
    assert failure_of(failed_child()).reason == "Failed"
    assert failure_of(failed_child(failed_reason="BackoffLimitExceeded")).reason == "BackoffLimitExceeded"


def test_a_failure_policy_with_a_failed_pod_is_judged_by_the_pod() -> None:
    child = failed_child("prepare", failed_reason="PodFailurePolicy", pods=(make_pod(exit_code=1),))
    failure = failure_of(child)
    assert (failure.kind, failure.reason, failure.exit_code) == (FailureKind.APPLICATION, "PodFailurePolicy", 1)


def test_a_disruption_names_the_pod_that_was_taken() -> None:
    pods = (
        make_pod("peer", exit_code=1, finished_at=NOON),
        make_pod("taken", exit_code=137, disrupted=True, finished_at=LATER),
    )
    failure = failure_of(failed_child(pods=pods))
    assert (failure.kind, failure.reason, failure.exit_code) == (FailureKind.DISRUPTION, "Disrupted", 137)
    assert failure.message.startswith("pod taken was terminated by the cluster")


@pytest.mark.parametrize("state", [AttemptState.RUNNING, AttemptState.PENDING])
def test_what_was_recorded_stays_while_a_child_is_being_deleted(state: AttemptState) -> None:
    before = recorded(state, started_at=to_time(CREATED))
    assert attempt_of(make_child(make_experiment(), "train", ChildState.DELETING), before, NOON) == before
