"""Stop decisions: children that are stopped or deleted, e.g. outdated ones or those of a failed experiment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from wrpo_engine.contract.definition import Shape
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import (
    MAX_ATTEMPTS,
    Attempt,
    AttemptState,
    ExperimentStatus,
    Phase,
    StageStatus,
    from_time,
    to_time,
)
from wrpo_operator.plan.classify import LIVE
from wrpo_operator.plan.model import (
    ChildFact,
    ChildState,
    DeleteChild,
    SetSuspend,
    Snapshot,
    StageNode,
)
from wrpo_operator.plan.resources import settings_of
from wrpo_operator.plan.retry import RetryDecision
from wrpo_operator.plan.stage_views import StageView


@dataclass(frozen=True, slots=True)
class Stops:
    """Children to delete or suspend, and the views with these ends recorded."""

    views: tuple[StageView, ...]
    delete: tuple[DeleteChild, ...] = ()
    suspend: tuple[SetSuspend, ...] = ()


def delete(child: ChildFact, reason: str) -> DeleteChild:
    """Return the deletion of a child."""
    return DeleteChild(child.kind, child.name, child.uid, reason)


def stale_children(snapshot: Snapshot, graph: Sequence[StageNode]) -> tuple[DeleteChild, ...]:
    """Return the deletion of children whose stage has another hash or no longer exists. Their artifacts are kept."""
    wanted = {(str(node.id), node.hash) for node in graph}
    return tuple(
        delete(child, f"the spec no longer requests {child.stage} with hash {child.stage_hash}")
        for child in snapshot.children
        if (child.stage, child.stage_hash) not in wanted and child.state is not ChildState.DELETING
    )


def already_ended(views: Sequence[StageView]) -> tuple[DeleteChild, ...]:
    """Return the deletion of live children whose attempt the operator has ended, after a lost deletion."""
    return tuple(
        delete(child, "its attempt was ended")
        for view in views
        for child in view.live
        if child.state is not ChildState.DELETING and child.attempt in _ended_by_operator(view)
    )


def _ended_by_operator(view: StageView) -> set[int]:
    return {
        attempt.number
        for attempt in view.record.attempts
        if attempt.state is AttemptState.STOPPED or attempt.reason in {Reason.PENDING_TOO_LONG, Reason.RAN_TOO_LONG}
    }


def stop_all(views: Sequence[StageView], reason: str, now: datetime) -> Stops:
    """Delete every live child. Committed parts and checkpoints are kept."""
    return _stop(views, {child.name for view in views for child in view.runnable}, reason, now)


def replace_outdated(spec: ExperimentSpec, views: Sequence[StageView], now: datetime) -> Stops:
    """Delete children that wait for pods with outdated settings, so that an edit can unblock them.

    A running child keeps its settings, because a restart would lose work.
    """
    if spec.suspend:
        return Stops(tuple(views))
    outdated = {
        child.name
        for view in views
        for child in view.runnable
        for attempt in view.record.attempts
        if attempt.number == child.attempt
        and child.state in {ChildState.PENDING, ChildState.SUSPENDED}
        and attempt.settings is not None
        and attempt.settings != settings_of(spec, view.node)
        and not _has_done_its_work(view.node, child)
    }
    return _stop(views, outdated, "its settings were edited before it ran", now)


def _has_done_its_work(node: StageNode, child: ChildFact) -> bool:
    """Return whether all pods have succeeded: the child completes once its controller notices."""
    needed = node.runtime.shards if node.shape is Shape.INDEXED_JOB else 1
    return len(child.pods) >= needed and all(pod.phase == "Succeeded" for pod in child.pods)


def _stop(views: Sequence[StageView], names: Collection[str], reason: str, now: datetime) -> Stops:
    stopped, deleted = [], []
    end = {"state": AttemptState.STOPPED, "reason": None, "finished_at": to_time(now), "pending_since": None}
    for view in views:
        ending = [child for child in view.runnable if child.name in names]
        deleted += [delete(child, reason) for child in ending]
        ends = {child.attempt: end for child in ending}
        stopped.append(with_changes(view, ends, view.next) if ends else view)
    return Stops(tuple(stopped), tuple(deleted))


def suspend_or_resume(spec: ExperimentSpec, views: Sequence[StageView], now: datetime) -> Stops:
    """Apply spec.suspend to live children.

    Without a queue this sets their suspend field. With a queue Kueue owns that field: a suspended experiment's children
    are deleted instead, and recreated when it resumes.
    """
    if spec.scheduling.queue_name:
        return stop_all(views, "the experiment is suspended", now) if spec.suspend else Stops(tuple(views))
    changes = tuple(
        SetSuspend(child.kind, child.name, spec.suspend)
        for view in views
        for child in view.runnable
        if child.suspended != spec.suspend
    )
    names = {change.name for change in changes}
    return Stops(tuple(_following(view, names, now, suspend=spec.suspend) for view in views), suspend=changes)


def _following(view: StageView, names: set[str], now: datetime, *, suspend: bool) -> StageView:
    """Return the view after the suspend fields are set."""
    change = {
        "state": AttemptState.SUSPENDED if suspend else AttemptState.PENDING,
        "pending_since": None if suspend else to_time(now),
    }
    changes = {child.attempt: change for child in view.children if child.name in names}
    if not changes:
        return view
    state = ChildState.SUSPENDED if suspend else ChildState.PENDING
    children = tuple(
        replace(child, suspended=suspend, state=state) if child.name in names else child for child in view.children
    )
    return replace(with_changes(view, changes, view.next), children=children)


def forgotten_children(views: Sequence[StageView], stages: Sequence[StageStatus]) -> tuple[DeleteChild, ...]:
    """Return the deletion of ended children whose attempts the status no longer lists, which bounds their number.

    `stages` are those to be written, in the order of the views.
    """
    return tuple(
        delete(child, "newer attempts have taken its place in the status")
        for view, stage in zip(views, stages, strict=True)
        for child in view.children
        if child.state not in LIVE and len(stage.attempts) == MAX_ATTEMPTS and child.attempt < stage.attempts[0].number
    )


def children_expire_at(spec: ExperimentSpec, status: ExperimentStatus) -> datetime | None:
    """Return when the children of an ended experiment expire; None if it has not ended, or they never expire."""
    if status.finished_at is None:
        return None
    ttl = spec.ttl_seconds_after_finished
    if status.phase is Phase.FAILED and spec.ttl_seconds_after_failed is not None:
        ttl = spec.ttl_seconds_after_failed
    return None if ttl is None else from_time(status.finished_at) + timedelta(seconds=ttl)


def expired_children(snapshot: Snapshot, spec: ExperimentSpec, now: datetime) -> tuple[DeleteChild, ...]:
    """Return the deletion of finished children when the experiment ended longer than the TTL of its outcome ago."""
    expiry = children_expire_at(spec, snapshot.experiment.status)
    if expiry is None or now < expiry:
        return ()
    return tuple(
        delete(child, "the time to live after the experiment's end is over")
        for child in snapshot.children
        if child.state not in LIVE
    )


def with_changes(view: StageView, changes: Mapping[int, Mapping[str, object]], following: RetryDecision) -> StageView:
    """Return the view with changed attempts, by number."""
    attempts: tuple[Attempt, ...] = tuple(
        attempt.model_copy(update=changes.get(attempt.number, {})) for attempt in view.record.attempts
    )
    record = view.record.model_copy(update={"attempts": attempts})
    return replace(view, record=record, next=following)
