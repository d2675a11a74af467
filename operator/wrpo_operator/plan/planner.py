"""Planner: one reconcile from the observed state to the actions. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from wrpo_engine.contract.definition import Shape
from wrpo_operator.api.conditions import ConditionType
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import ExperimentStatus
from wrpo_operator.plan.blockers import find_blockers
from wrpo_operator.plan.deadlines import deadlines_ahead, enforce_deadlines
from wrpo_operator.plan.events import events_between
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import (
    ChildFact,
    ChildState,
    Experiment,
    Plan,
    PlannedAttempt,
    Snapshot,
    StageId,
    StageNode,
)
from wrpo_operator.plan.placing import offered
from wrpo_operator.plan.resources import gang_of
from wrpo_operator.plan.retry import GiveUp
from wrpo_operator.plan.sharing import with_shared
from wrpo_operator.plan.stage_views import (
    StageView,
    as_recorded,
    build_views,
    has_failed_for_good,
    owners,
    records_of,
    without_idle,
)
from wrpo_operator.plan.starts import HeldBack, decide_starts
from wrpo_operator.plan.status import (
    Decisions,
    StageFailure,
    build_status,
    describe_failure,
    invalid_status,
)
from wrpo_operator.plan.stops import (
    Stops,
    already_ended,
    children_expire_at,
    expired_children,
    forgotten_children,
    replace_outdated,
    stale_children,
    stop_all,
    suspend_or_resume,
)
from wrpo_operator.plan.warnings import warnings_of

LOOK_AGAIN_S = 15.0
"""Interval of checks for changes that no watch of this experiment reports: a claim, a CRD, a queue, refused pods,
another experiment's child. In seconds."""


def plan(snapshot: Snapshot, now: datetime) -> Plan:
    """Return the actions for a snapshot.

    Invariants: at most one live attempt per stage hash; nothing starts before its inputs; applying a plan and planning
    again gives nothing to apply; a recorded end is kept when children are deleted; retries are bounded.
    """
    experiment = snapshot.experiment
    spec = experiment.spec
    if experiment.deleting:
        return Plan(status=experiment.status if spec is None else _last_status(snapshot, spec, now))
    if spec is None:
        status = invalid_status(experiment, now)
        return Plan(status=status, events=events_between(experiment, status))

    graph, views, late = _graph_and_views(snapshot, spec, frozenset(), now)
    lost = lost_sources(late.views, spec)
    if lost:
        graph, views, late = _graph_and_views(snapshot, spec, frozenset(lost), now)
    deleted = [*stale_children(snapshot, graph), *already_ended(views)]
    losses = losses_of(owners(spec, late.views), lost)

    wanted = tuple(view for view in late.views if view.id not in losses)
    failure = recorded_failure(experiment, late.views) or find_failure(wanted, spec)
    if failure is not None:
        stops = stop_all(late.views, f"stage {failure.stage} has failed", now)
    else:
        outdated = replace_outdated(spec, late.views, now)
        deleted += outdated.delete
        stops = suspend_or_resume(spec, outdated.views, now)
    deleted += [*late.delete, *stops.delete]

    may_start = failure is None and not spec.suspend
    decided = decide_starts(snapshot, spec, stops.views, now, frozenset(losses)) if may_start else ()
    starts = tuple(start for start in decided if isinstance(start, PlannedAttempt))
    held = tuple(start for start in decided if isinstance(start, HeldBack))

    blockers = find_blockers(snapshot, spec, stops.views, held, now) if failure is None else ()
    refusals = (snapshot.refused.get(str(item.view.id)) for item in held)
    rejected = next((refused.message for refused in refusals if refused is not None and refused.is_final), "")
    warnings = _warnings(snapshot, spec, [view for view in stops.views if view.id not in losses], starts)
    decisions = Decisions(
        stops.views, starts, held, failure, blockers, lost, losses, rejected=rejected, warnings=warnings
    )
    status = build_status(snapshot, spec, decisions, now)
    deleted += forgotten_children(stops.views, status.stages)
    deleted += expired_children(snapshot, spec, now) if status.finished_at == experiment.status.finished_at else ()
    return Plan(
        apply=starts,
        suspend=stops.suspend,
        delete=tuple({(item.kind, item.name): item for item in deleted}.values()),
        status=status,
        events=events_between(experiment, status),
        requeue_after_s=_requeue_after(spec, status, stops.views, held, now),
    )


def _warnings(
    snapshot: Snapshot, spec: ExperimentSpec, views: Sequence[StageView], starts: Sequence[PlannedAttempt]
) -> tuple[str, ...]:
    """Return the warnings about stages as they run, or as they start now."""
    started = {start.node.id: start.node for start in starts}
    nodes = [started.get(view.id, view.node) for view in views]
    return warnings_of(spec, nodes, offered(snapshot, spec), records_of(views))


def _last_status(snapshot: Snapshot, spec: ExperimentSpec, now: datetime) -> ExperimentStatus:
    """Return the status of an experiment that is being deleted, which a finalizer may delay for a long time."""
    graph = as_recorded(snapshot.experiment, build_graph(spec))
    views = without_idle(build_views(snapshot.experiment, spec, graph, snapshot.children, now))
    decisions = Decisions(views, failure=recorded_failure(snapshot.experiment, views), deleting=True)
    return build_status(snapshot, spec, decisions, now)


def _graph_and_views(
    snapshot: Snapshot, spec: ExperimentSpec, without: frozenset[str], now: datetime
) -> tuple[Sequence[StageNode], tuple[StageView, ...], Stops]:
    """Return the graph without some sources, its views, and the views with expired attempts ended."""
    graph = as_recorded(snapshot.experiment, build_graph(spec, without))
    experiment = with_shared(snapshot, graph)
    views = without_idle(build_views(experiment, spec, graph, snapshot.children, now))
    return graph, views, enforce_deadlines(snapshot, spec, views, now)


def recorded_failure(experiment: Experiment, views: Sequence[StageView]) -> StageFailure | None:
    """Return the recorded failure if it is valid: it is until the spec is edited, regardless of children."""
    condition = experiment.status.condition(ConditionType.FAILED)
    view = next((view for view in views if str(view.id) == experiment.status.stage), None)
    if condition is None or view is None or not has_failed_for_good(experiment):
        return None
    return StageFailure(view.id, condition.reason, condition.message)


def lost_sources(views: Sequence[StageView], spec: ExperimentSpec) -> dict[str, StageFailure]:
    """Return the sources without which the experiment continues, each with its failure.

    Empty unless the spec allows it, and if no source would remain. A model that cannot be inspected or downloaded fails
    the sources that alone use it.
    """
    if spec.sampling.on_source_failure != "Continue":
        return {}
    lost: dict[str, StageFailure] = {}
    used_by = owners(spec, views)
    for view in views:
        failure = find_failure((view,), spec)
        if failure is not None:
            lost = dict.fromkeys(sorted(used_by[view.id]), failure) | lost
    return lost if len(lost) < len(spec.sources) else {}


def losses_of(
    used_by: Mapping[StageId, frozenset[str]], lost: Mapping[str, StageFailure]
) -> dict[StageId, StageFailure]:
    """Return the stages that are not needed because all of their sources failed, each with that failure."""
    return {
        stage: next(lost[source] for source in sorted(sources))
        for stage, sources in used_by.items()
        if sources and sources <= lost.keys()
    }


def find_failure(views: Sequence[StageView], spec: ExperimentSpec) -> StageFailure | None:
    """Return the failure of the first stage, in the graph's order, that is not retried."""
    for view in views:
        if not view.succeeded and not view.runnable and isinstance(view.next, GiveUp):
            return describe_failure(view, view.next.reason, spec.retries.limit)
    return None


def _requeue_after(
    spec: ExperimentSpec, status: ExperimentStatus, views: Sequence[StageView], held: Sequence[HeldBack], now: datetime
) -> float | None:
    waits = [max(0.0, (moment - now).total_seconds()) for moment in _moments(spec, status, views, held)]
    may_wait = any(_may_wait(spec, view, child) for view in views for child in view.runnable)
    if may_wait or any(item.object for item in held):
        waits.append(LOOK_AGAIN_S)
    return min(waits, default=None)


def _may_wait(spec: ExperimentSpec, view: StageView, child: ChildFact) -> bool:
    """Return whether a child waits for the cluster: it or one of its pods does not run, or its gang lacks pods."""
    if child.state in {ChildState.PENDING, ChildState.SUSPENDED}:
        return True
    if any(pod.phase == "Pending" or pod.terminating_since is not None for pod in child.pods):
        return True
    is_gang = view.node.shape is Shape.TRAINING and child.state is ChildState.RUNNING
    return is_gang and len(child.pods) < gang_of(spec, view.node).nodes


def _moments(
    spec: ExperimentSpec, status: ExperimentStatus, views: Sequence[StageView], held: Sequence[HeldBack]
) -> Iterator[datetime]:
    yield from (item.until for item in held if item.until is not None)
    yield from deadlines_ahead(spec, views)
    expiry = children_expire_at(spec, status)
    if expiry is not None and any(view.children for view in views):
        yield expiry
