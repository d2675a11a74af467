"""Start decisions: which stages start now, and what holds back ready stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from wrpo_engine.contract.definition import Shape
from wrpo_operator.api import messages
from wrpo_operator.api.backends import BACKENDS
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.hashing import artifact_key
from wrpo_operator.api.names import KIND, MAX_CHILD_NAME, child_name
from wrpo_operator.api.pods import Scheduling
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import to_time
from wrpo_operator.plan.builder import source_of
from wrpo_operator.plan.classify import LIVE
from wrpo_operator.plan.model import ChildFact, PlannedAttempt, Snapshot, StageId, StageNode
from wrpo_operator.plan.resources import gang_of
from wrpo_operator.plan.retry import StartAttempt, Wait
from wrpo_operator.plan.stage_views import StageView
from wrpo_operator.plan.storage import binding_of


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A stage whose inputs exist but that cannot start."""

    view: StageView
    reason: Reason
    message: str
    object: str = ""
    """The blocking object; empty if the stage only waits for a time."""
    until: datetime | None = None


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
    lost: frozenset[str] = frozenset(),
) -> tuple[Start, ...]:
    """Decide for every stage whose inputs exist whether it starts; those of `lost` sources do not.

    Invariants: no stage starts before all of its inputs have succeeded. No stage starts while a child of the same hash
    is live or a pod that was created for it still runs, regardless of the owner.
    """
    done = {view.id for view in views if view.succeeded}
    hashes = {view.id: view.node.hash for view in views}
    ready = (
        view
        for view in views
        if not view.succeeded
        and not view.live
        and done.issuperset(view.node.inputs.values())
        and source_of(spec, view.id) not in lost
    )
    starts: list[Start] = []
    for view in ready:
        held = _held(snapshot, spec, view)
        refused = snapshot.refused.get(str(view.id))
        if held is not None:
            starts.append(held)
        elif refused is not None:
            starts.append(HeldBack(view, refused.reason, refused.message, refused.object))
        elif isinstance(view.next, StartAttempt):
            starts.append(planned_attempt(snapshot, spec, view.node, hashes, view.next.number))
    return tuple(starts)


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
    nodes = gang_of(spec, view.id.kind).nodes if view.node.shape is Shape.TRAINING else 1
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


def protects_gangs(scheduling: Scheduling) -> bool:
    """Return whether all pods of a gang start or none, or the user accepts partial starts."""
    return bool(scheduling.queue_name or scheduling.pod_group or scheduling.gang == "BestEffort")


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
            if child.artifact_key == key and child.state in LIVE and not child.suspended
        ),
        None,
    )
