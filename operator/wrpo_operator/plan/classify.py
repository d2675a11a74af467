"""Classification of attempts by the facts of their child: active, succeeded or failed, with the cause."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from wrpo_engine.exit_codes import FINAL_EXIT_CODES
from wrpo_operator.api import messages
from wrpo_operator.api.backends import BACKENDS, CHILD_KINDS
from wrpo_operator.api.status import Attempt, AttemptState, to_time
from wrpo_operator.plan.model import ChildFact, ChildState, FailureKind, PodFact

LIVE = frozenset({ChildState.PENDING, ChildState.RUNNING, ChildState.SUSPENDED, ChildState.DELETING})
"""States of a child whose pods may still run and write."""

ENDED = frozenset({AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.DISRUPTED, AttemptState.STOPPED})
"""Final states of an attempt."""

DEADLINE_EXCEEDED = "DeadlineExceeded"
OOM_KILLED = "OOMKilled"
"""The kubelet's reason: more host memory than the limit."""
OUT_OF_MEMORY = "OutOfMemory"
"""The engine's code: more memory than the accelerator has."""
EVICTED = "Evicted"
_FAR = datetime(9999, 1, 1, tzinfo=UTC)
_ACTIVE = {
    ChildState.PENDING: AttemptState.PENDING,
    ChildState.RUNNING: AttemptState.RUNNING,
    ChildState.SUSPENDED: AttemptState.SUSPENDED,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    kind: FailureKind
    reason: str
    message: str
    exit_code: int | None = None
    step: int | None = None
    """Optimizer steps that a training stage had completed."""


def attempt_of(child: ChildFact, before: Attempt | None, now: datetime) -> Attempt | None:
    """Return the attempt as its child shows it; `before` is what was recorded.

    A recorded end is kept, except that a child stopped too late may still have succeeded. A child that is being deleted
    provides no facts: the result is the recorded attempt, or None.
    """
    late_success = child.state is ChildState.SUCCEEDED and before is not None and before.state is AttemptState.STOPPED
    if before is not None and before.state in ENDED and not late_success:
        return before
    base = before or Attempt(number=child.attempt, child=child.name, state=AttemptState.PENDING)
    started = base.started_at or (to_time(child.started_at) if child.started_at else None)
    match child.state:
        case ChildState.DELETING:
            return before
        case ChildState.PENDING | ChildState.RUNNING | ChildState.SUSPENDED:
            state = _ACTIVE[child.state]
            since = _pending_since(child, before, now) if state is AttemptState.PENDING else None
            return base.model_copy(update={"state": state, "started_at": started, "pending_since": since})
        case ChildState.SUCCEEDED:
            end = {"state": AttemptState.SUCCEEDED, "exit_code": 0, "reason": None, "message": None, "failure": None}
        case ChildState.FAILED:
            failure = failure_of(child)
            disrupted = failure.kind is FailureKind.DISRUPTION
            end = {
                "state": AttemptState.DISRUPTED if disrupted else AttemptState.FAILED,
                "exit_code": failure.exit_code,
                "reason": failure.reason,
                "message": failure.message,
                "failure": failure.kind.value,
                "step": failure.step,
            }
    times = {"started_at": started, "finished_at": to_time(child.finished_at or now), "pending_since": None}
    return base.model_copy(update=end | times)


def _pending_since(child: ChildFact, before: Attempt | None, now: datetime) -> str:
    if before is None:
        return to_time(child.created_at or now)
    return before.pending_since or to_time(now)


def failure_of(child: ChildFact) -> Failure:
    """Return the cause of a failed child, with the engine's message if there is one.

    A final exit code (bad config, bad data) of any pod decides. Otherwise the kind of child matters. A training gang
    fails as a whole, so a disruption of any pod is the cause. A Job does not fail because of disruptions, so its
    failure is a disruption only if all failed pods were disrupted.
    """
    failed = sorted(
        (pod for pod in child.pods if pod.exit_code not in {None, 0} or pod.phase == "Failed"),
        key=lambda pod: (pod.finished_at or _FAR, pod.index or 0),
    )
    config = [pod for pod in failed if _exit_code(pod) in FINAL_EXIT_CODES]
    if config:
        return _failure_from(_primary_failure(config), FailureKind.CONFIG, child)
    if child.failed_reason and child.failed_reason == CHILD_KINDS[child.kind].final_reason and not failed:
        return Failure(FailureKind.CONFIG, child.failed_reason, _child_message(child))
    if not failed or child.failed_reason == DEADLINE_EXCEEDED:
        return Failure(FailureKind.APPLICATION, child.failed_reason or "Failed", _child_message(child))
    if _is_disruption(child, failed):
        pod = next((pod for pod in failed if _taken(pod)), failed[0])
        return _failure_from(pod, FailureKind.DISRUPTION, child)
    return _failure_from(
        _primary_failure([pod for pod in failed if not _taken(pod)] or failed), FailureKind.APPLICATION, child
    )


def _exit_code(pod: PodFact) -> int | None:
    """Return the stage's exit code, because torchrun exits with 1 for every exit code of its ranks."""
    reported = pod.termination.exit_code if pod.termination is not None else None
    return pod.exit_code if reported is None else reported


def _is_disruption(child: ChildFact, failed: list[PodFact]) -> bool:
    if child.kind not in BACKENDS:
        return all(_taken(pod) for pod in failed)
    # Peers of a crashed rank are terminated too: only the first to end distinguishes a SIGTERM from a crash.
    return any(pod.disrupted for pod in failed) or _taken(failed[0])


def _taken(pod: PodFact) -> bool:
    is_interrupted = pod.termination is not None and pod.termination.outcome == "Interrupted"
    return pod.disrupted or (is_interrupted and not pod.over_limit)


def _primary_failure(failed: list[PodFact]) -> PodFact:
    """Return the first pod that reports an error, else the first that failed, because it causes its peers' errors."""
    return next((pod for pod in failed if pod.termination is not None and pod.termination.error), failed[0])


def _failure_from(pod: PodFact, kind: FailureKind, child: ChildFact) -> Failure:
    error = pod.termination.error if pod.termination else None
    if error is not None:
        text = messages.engine_error(error.code, error.field, error.message, error.hint)
        return Failure(kind, error.code, text, _exit_code(pod), pod.termination.step if pod.termination else None)
    if kind is FailureKind.DISRUPTION:
        return Failure(kind, "Disrupted", messages.disrupted(pod.name, pod.node), pod.exit_code)
    if pod.over_limit:
        return Failure(kind, EVICTED, messages.over_limit(pod.name, pod.over_limit), pod.exit_code)
    if pod.terminated_reason == OOM_KILLED:
        return Failure(kind, OOM_KILLED, messages.out_of_memory(pod.name), pod.exit_code)
    reason = child.failed_reason or "Failed"
    return Failure(
        kind, reason, messages.exited(pod.exit_code, pod.termination_text, pod.name, child.namespace), pod.exit_code
    )


def _child_message(child: ChildFact) -> str:
    return messages.child_failed(f"{child.kind} {child.name}", child.failed_reason, child.failed_message)
