"""Start decisions: which stages start now, and what holds back ready stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias

from wrpo_engine.contract.definition import Shape
from wrpo_operator.api import messages
from wrpo_operator.api.backends import BACKENDS
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.hashing import artifact_key
from wrpo_operator.api.names import KIND, MAX_CHILD_NAME, child_name
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import StageStatus, from_time, to_time
from wrpo_operator.plan.budget import Demand, Limits, admitted
from wrpo_operator.plan.classify import LIVE, OUT_OF_MEMORY
from wrpo_operator.plan.demands import demand_of, limits_of, running_demands
from wrpo_operator.plan.model import ChildFact, ChildState, PlannedAttempt, Snapshot, StageId, StageNode
from wrpo_operator.plan.placing import choose, facts_in, has_accelerators, offered, placed, protects_gangs
from wrpo_operator.plan.resources import gang_of
from wrpo_operator.plan.retry import StartAttempt, Wait
from wrpo_operator.plan.stage_views import Records, StageView, can_get_more_room, records_of
from wrpo_operator.plan.storage import binding_of
from wrpo_operator.plan.urgency import urgencies
from wrpo_operator.sizing.inventory import Inventory
from wrpo_operator.sizing.requests import DoesNotFit


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A stage whose inputs exist but that cannot start."""

    view: StageView
    reason: Reason
    message: str
    object: str = ""
    """The blocking object; empty if the stage only waits for a time."""
    until: datetime | None = None


FACTS_PATIENCE = timedelta(seconds=60)
"""Time after the end of an inspection within which its pod's message arrives. Without one, e.g. because the stage ran
before the operator could read it, the stages that wait for it start as the spec says."""
MAKING = LIVE | {ChildState.SUCCEEDED}
"""States of another experiment's child whose artifact is awaited: it is computed, or computed and not recorded yet."""
RUNNING_PHASES = frozenset({"Pending", "Running", "Unknown"})
"""Phases of a pod on a node whose processes may run."""

Start: TypeAlias = PlannedAttempt | HeldBack


def key_of(spec: ExperimentSpec, node: StageNode) -> str:
    """Return the artifact key of a stage."""
    return artifact_key(binding_of(spec.storage.chosen).identity, str(node.id), node.hash)


def planned_attempt(
    snapshot: Snapshot, spec: ExperimentSpec, node: StageNode, hashes: Mapping[StageId, str], number: int
) -> PlannedAttempt:
    """Return the attempt with this number, whose name is derived from its content."""
    longest = BACKENDS[spec.training.backend].max_child_name if node.shape is Shape.TRAINING else MAX_CHILD_NAME
    return PlannedAttempt(
        node=node,
        attempt=number,
        child_name=child_name(snapshot.experiment.name, str(node.id), node.hash, number, longest=longest),
        artifact_key=key_of(spec, node),
        input_hashes={role: hashes[upstream] for role, upstream in node.inputs.items()},
    )


def decide_starts(
    snapshot: Snapshot,
    spec: ExperimentSpec,
    views: Sequence[StageView],
    now: datetime,
    lost: frozenset[StageId] = frozenset(),
) -> tuple[Start, ...]:
    """Decide for every stage whose inputs exist whether it starts; `lost` stages do not.

    Invariants: no stage starts before all of its inputs have succeeded. No stage starts while a child of the same hash
    is live or a pod that was created for it still runs, regardless of the owner. The stages that start and those that
    run stay within the limits of accelerators. The most urgent stage comes first, because pods of equal priority get
    room in the order of their creation.
    """
    done = {view.id for view in views if view.succeeded}
    hashes = {view.id: view.node.hash for view in views}
    records = records_of(views)
    ready = (
        view
        for view in views
        if not view.succeeded and not view.live and done.issuperset(view.node.upstream) and view.id not in lost
    )
    urgency = urgencies([view.node for view in views], done | lost)
    starts: list[Start] = []
    for view in sorted(ready, key=lambda view: -urgency[view.id]):
        held = _held(snapshot, spec, view)
        refused = snapshot.refused.get(str(view.id))
        if held is not None:
            starts.append(held)
        elif refused is not None:
            starts.append(HeldBack(view, refused.reason, refused.message, refused.object))
        elif isinstance(view.next, StartAttempt):
            node = _with_accelerators(spec, view, records, offered(snapshot, spec), now)
            if isinstance(node, HeldBack):
                starts.append(node)
            else:
                starts.append(planned_attempt(snapshot, spec, node, hashes, view.next.number))
    return _within_limits(snapshot, spec, views, starts)


def _with_accelerators(
    spec: ExperimentSpec, view: StageView, records: Records, inventory: Inventory | None, now: datetime
) -> StageNode | HeldBack:
    """Return a stage with the accelerators of its next attempt, or why it cannot start.

    The choice of an attempt that has not ended is kept as long as the cluster has its accelerators.
    """
    node, known = view.unplaced, facts_in(records)
    if node.needs:
        node = replace(node, facts=known.get(str(node.needs[0].facts)))
    if not node.needs or inventory is None:
        return node
    missing = [str(need.facts) for need in node.needs if str(need.facts) not in known]
    if missing:
        until = max(_facts_due(records[name], now) for name in missing)
        return node if now >= until else _awaiting(view, missing[0], until)
    kept = view.record.placement
    if kept is not None and _is_open(view) and has_accelerators(inventory, kept):
        return placed(node, kept)
    choice = choose(spec, node, records, inventory, step=_step_of(view))
    if isinstance(choice, DoesNotFit):
        text = messages.model_does_not_fit(str(view.id), choice.message)
        return HeldBack(view, Reason.MODEL_DOES_NOT_FIT, text, object=f"Stage/{view.id}")
    return placed(node, choice)


def _awaiting(view: StageView, stage: str, until: datetime) -> HeldBack:
    return HeldBack(view, Reason.FACTS_AWAITED, messages.facts_awaited(stage), until=until)


def _facts_due(record: StageStatus, now: datetime) -> datetime:
    """Return until when a stage that has succeeded may still report the facts about its model."""
    ends = [record.finished_at, *(attempt.finished_at for attempt in record.attempts)]
    return max((from_time(end) for end in ends if end is not None), default=now) + FACTS_PATIENCE


def _is_open(view: StageView) -> bool:
    """Return whether the next attempt has been recorded before: its child is gone, but it has not ended."""
    following = view.next
    return isinstance(following, StartAttempt) and any(
        attempt.number == following.number for attempt in view.record.attempts
    )


def _step_of(view: StageView) -> int:
    """Return the step of the ladder of the next attempt: one further after OutOfMemory."""
    if view.record.placement is None or not view.record.attempts:
        return 0
    last = view.record.attempts[-1]
    is_out = last.reason == OUT_OF_MEMORY and last.number > view.record.forgiven_attempts
    return view.record.placement.step + int(is_out and can_get_more_room(view.node))


def _held(snapshot: Snapshot, spec: ExperimentSpec, view: StageView) -> HeldBack | None:
    stage = str(view.id)
    if isinstance(view.next, Wait):
        text = messages.retry_wait(stage, to_time(view.next.until))
        return HeldBack(view, Reason.RETRY_WAIT, text, until=view.next.until)
    for kind, name in snapshot.missing_objects:
        return HeldBack(view, Reason.MISSING_OBJECT, messages.missing_object(kind, name), object=f"{kind}/{name}")
    backend = spec.training.backend
    if view.node.shape is Shape.TRAINING and backend not in snapshot.training_backends:
        text = messages.backend_missing(backend, snapshot.training_backends)
        return HeldBack(view, Reason.BACKEND_MISSING, text, object=f"CustomResource/{backend}")
    nodes = gang_of(spec, view.unplaced).nodes if view.node.shape is Shape.TRAINING else 1
    if nodes > 1 and not protects_gangs(spec.scheduling):
        text = messages.gang_unprotected(nodes)
        return HeldBack(view, Reason.GANG_UNPROTECTED, text, object=f"{KIND}/{snapshot.experiment.name}")
    key = key_of(spec, view.node)
    other = _maker(snapshot, key)
    if other is not None:
        is_orphan = other.experiment == snapshot.experiment.name
        text = messages.artifact_busy(stage, other.experiment)
        if is_orphan:
            text = messages.orphan_busy(stage, other.kind, other.name)
        return HeldBack(view, Reason.ARTIFACT_BUSY, text, object=f"{other.kind}/{other.name}")
    pod = _lingering_pod(snapshot, key)
    if pod is not None:
        return HeldBack(view, Reason.PREVIOUS_ATTEMPT, messages.previous_attempt(stage, pod), object=f"Pod/{pod}")
    return None


def _within_limits(
    snapshot: Snapshot, spec: ExperimentSpec, views: Sequence[StageView], starts: Sequence[Start]
) -> tuple[Start, ...]:
    """Return the decisions with the starts held back for which accelerators are not free."""
    inventory, by_id = offered(snapshot, spec), {view.id: view for view in views}
    limits = limits_of(spec, inventory)
    waiting = {
        start.node.id: demand_of(spec, start.node, inventory) for start in starts if isinstance(start, PlannedAttempt)
    }
    starting = admitted(tuple(waiting.values()), running_demands(snapshot, spec, views, inventory), limits)
    return tuple(
        start
        if isinstance(start, HeldBack) or start.node.id in starting
        else _without_room(by_id[start.node.id], waiting[start.node.id], limits)
        for start in starts
    )


def _without_room(view: StageView, demand: Demand, limits: Limits) -> HeldBack:
    stage = str(view.id)
    if limits.most is not None and limits.never_admits(demand):
        text = messages.exceeds_max_gpus(stage, demand.accelerators, limits.most)
        return HeldBack(view, Reason.EXCEEDS_MAX_GPUS, text, object=f"Stage/{stage}")
    return HeldBack(view, Reason.GPUS_IN_USE, messages.accelerators_in_use(demand.accelerators))


def _lingering_pod(snapshot: Snapshot, key: str) -> str | None:
    """Return a pod of an earlier attempt that has not ended and may still write the same artifact.

    A gang fails with its first rank, and the other ranks need time to notice or to be removed. Deletion removes a child
    immediately, and a recreated experiment has no record of it, but the pods of both still use their grace period.
    """
    return next(
        (pod.name for pod in snapshot.pods.get(key, ()) if pod.phase in RUNNING_PHASES and pod.node is not None), None
    )


def _maker(snapshot: Snapshot, key: str) -> ChildFact | None:
    """Return another experiment's child that creates an artifact. Suspended ones do not count: they may never
    resume.
    """
    return next(
        (
            child
            for child in snapshot.foreign
            if child.artifact_key == key and child.state in MAKING and not child.suspended
        ),
        None,
    )
