"""Deadlines of attempts: when they expire, and how expired attempts end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pydantic.alias_generators import to_camel

from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api import messages
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.lifecycle import Deadlines
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import Attempt, AttemptState, from_time, to_time
from wrpo_operator.plan.blockers import waiting_message
from wrpo_operator.plan.model import ChildFact, ChildState, DeleteChild, FailureKind, Snapshot
from wrpo_operator.plan.retry import GiveUp
from wrpo_operator.plan.stage_views import StageView, count_failures, decide, history_of
from wrpo_operator.plan.stops import Stops, delete, with_changes


@dataclass(frozen=True, slots=True)
class Limit:
    """A duration in seconds, and the field of the spec that sets it."""

    seconds: int
    field: str


def pre_running_limit(deadlines: Deadlines, kind: str) -> Limit | None:
    """Return how long attempts of a kind of stage may wait for their pods."""
    return _limit(deadlines, kind, "pre_running_seconds")


def active_limit(deadlines: Deadlines, kind: str) -> Limit | None:
    """Return how long attempts of a kind of stage may run."""
    return _limit(deadlines, kind, "active_seconds")


def _limit(deadlines: Deadlines, kind: str, name: str) -> Limit | None:
    """Return the deadline of this name: the stage's own if it is set, else that of all stages."""
    section = STAGES[kind].section.name
    own = deadlines.stages.of_section(section)
    for place, found in ((f"spec.deadlines.stages.{section}", own), ("spec.deadlines", deadlines)):
        seconds = getattr(found, name, None)
        if seconds is not None:
            return Limit(seconds, f"{place}.{to_camel(name)}")
    return None


def enforce_deadlines(snapshot: Snapshot, spec: ExperimentSpec, views: Sequence[StageView], now: datetime) -> Stops:
    """End attempts whose deadline has expired.

    If an attempt's pods did not run in time, the stage fails with the cluster's message as the cause: a further attempt
    would wait as long. An attempt that ran too long fails like any other and may be retried.
    """
    if spec.suspend:
        return Stops(tuple(views))
    ended: list[StageView] = []
    deleted: list[DeleteChild] = []
    for view in views:
        waited = [child for child in view.runnable if _is_over(pending_deadline(spec, view, child), now)]
        ran = [child for child in view.runnable if _is_over(active_deadline(spec, view, child), now)]
        deleted += [delete(child, "no pod ran in time") for child in waited]
        deleted += [delete(child, "it ran too long") for child in ran]
        after = _with_late_waits(snapshot, spec, view, waited, now) if waited else view
        ended.append(_with_late_runs(snapshot, spec, after, ran, now) if ran else after)
    return Stops(tuple(ended), tuple(deleted))


def deadlines_ahead(spec: ExperimentSpec, views: Sequence[StageView]) -> Iterator[datetime]:
    """Yield the deadlines of live attempts."""
    if spec.suspend:
        return
    for view in views:
        for child in view.runnable:
            moments = (pending_deadline(spec, view, child), active_deadline(spec, view, child))
            yield from (moment for moment in moments if moment is not None)


def pending_deadline(spec: ExperimentSpec, view: StageView, child: ChildFact) -> datetime | None:
    """Return the deadline of a waiting child; None if it waits for nothing, or in a queue."""
    limit = pre_running_limit(spec.deadlines, view.id.kind)
    attempt = _attempt_of(view, child)
    if limit is None or attempt is None or attempt.pending_since is None:
        return None
    if child.state is not ChildState.PENDING or child.suspended:
        return None
    return from_time(attempt.pending_since) + timedelta(seconds=limit.seconds)


def active_deadline(spec: ExperimentSpec, view: StageView, child: ChildFact) -> datetime | None:
    """Return the deadline of a running child; None if it does not run, or all of its pods have ended.

    The later of two starts counts: a child that was suspended has new pods, and one whose pods are already deleted
    shows only the time of its creation.
    """
    limit = active_limit(spec.deadlines, view.id.kind)
    attempt = _attempt_of(view, child)
    if limit is None or child.started_at is None or child.state is not ChildState.RUNNING or child.suspended:
        return None
    if child.pods and all(pod.has_ended for pod in child.pods):
        return None
    recorded = from_time(attempt.started_at) if attempt is not None and attempt.started_at else child.started_at
    return max(recorded, child.started_at) + timedelta(seconds=limit.seconds)


def _attempt_of(view: StageView, child: ChildFact) -> Attempt | None:
    return next((attempt for attempt in view.record.attempts if attempt.number == child.attempt), None)


def _is_over(deadline: datetime | None, now: datetime) -> bool:
    return deadline is not None and now >= deadline


def _with_late_waits(
    snapshot: Snapshot, spec: ExperimentSpec, view: StageView, late: Sequence[ChildFact], now: datetime
) -> StageView:
    limit = pre_running_limit(spec.deadlines, view.id.kind)
    assert limit is not None
    text = messages.pending_too_long(limit.seconds, limit.field, waiting_message(snapshot, view, now))
    changes = {child.attempt: _failure(FailureKind.CONFIG, Reason.PENDING_TOO_LONG, text, now) for child in late}
    return with_changes(view, changes, GiveUp(Reason.PENDING_TOO_LONG))


def _with_late_runs(
    snapshot: Snapshot, spec: ExperimentSpec, view: StageView, late: Sequence[ChildFact], now: datetime
) -> StageView:
    limit = active_limit(spec.deadlines, view.id.kind)
    assert limit is not None
    text = messages.ran_too_long(limit.seconds, limit.field)
    changes = {child.attempt: _failure(FailureKind.APPLICATION, Reason.RAN_TOO_LONG, text, now) for child in late}
    changed = with_changes(view, changes, view.next)
    new_ends = [attempt for attempt in changed.record.attempts if attempt.number in changes]
    record = count_failures(spec, view.node, changed.record, new_ends)
    following = decide(snapshot.experiment, spec, view.node, history_of(record, record.attempts), now)
    return replace(changed, record=record, next=following)


def _failure(kind: FailureKind, reason: Reason, message: str, now: datetime) -> dict[str, object]:
    return {
        "state": AttemptState.FAILED,
        "failure": kind.value,
        "reason": reason.value,
        "message": message,
        "finished_at": to_time(now),
        "pending_since": None,
    }
