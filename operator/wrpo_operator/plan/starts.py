"""Which stages start now, and what holds back those that could but for something outside the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from wrpo_engine.contract.definition import Shape
from wrpo_operator.api import conditions as words
from wrpo_operator.api.backends import BACKENDS
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.hashing import artifact_key
from wrpo_operator.api.names import KIND, MAX_CHILD_NAME, child_name
from wrpo_operator.api.pods import Scheduling
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import to_time
from wrpo_operator.plan.builder import source_of
from wrpo_operator.plan.classify import LIVE
from wrpo_operator.plan.memory import StageView
from wrpo_operator.plan.model import ChildFact, PlannedAttempt, Snapshot, StageId, StageNode
from wrpo_operator.plan.resources import gang_of
from wrpo_operator.plan.retry import StartAttempt, Wait
from wrpo_operator.plan.storage import binding_of


@dataclass(frozen=True, slots=True)
class Held:
    """A stage whose inputs are there but that cannot start."""

    view: StageView
    reason: Reason
    message: str
    object: str = ""
    """What is in the way; empty when nothing but time is."""
    until: datetime | None = None


RUNNING_PHASES = frozenset({"Pending", "Running", "Unknown"})
"""Phases of a pod on a node whose processes may run."""

Start: TypeAlias = PlannedAttempt | Held


def key_of(spec: ExperimentSpec, node: StageNode) -> str:
    """Return the artifact key of a stage."""
    return artifact_key(binding_of(spec.storage.chosen).identity, str(node.id), node.hash)


def planned_attempt(
    snapshot: Snapshot, spec: ExperimentSpec, node: StageNode, hashes: Mapping[StageId, str], number: int
) -> PlannedAttempt:
    """Return the attempt of a number, named by its content."""
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
    """Decide for every stage whose inputs are there whether it starts; those of `lost` sources do not.

    Invariants: nothing starts before all of its inputs have succeeded; nothing starts while a child of the same hash is
    live, whoever owns it, or while a pod that was made for it still runs, whoever owned it.
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
            starts.append(Held(view, refused.reason, refused.message, refused.object))
        elif isinstance(view.next, StartAttempt):
            starts.append(planned_attempt(snapshot, spec, view.node, hashes, view.next.number))
    return tuple(starts)


def _held(snapshot: Snapshot, spec: ExperimentSpec, view: StageView) -> Held | None:
    stage = str(view.id)
    if isinstance(view.next, Wait):
        text = words.retry_wait(stage, to_time(view.next.until))
        return Held(view, Reason.RETRY_WAIT, text, until=view.next.until)
    for kind, name in snapshot.missing_objects:
        return Held(view, Reason.MISSING_OBJECT, words.missing_object(kind, name), object=f"{kind}/{name}")
    backend = spec.training.backend
    if view.node.shape is Shape.TRAINING and backend not in snapshot.training_backends:
        text = words.backend_missing(backend, snapshot.training_backends)
        return Held(view, Reason.BACKEND_MISSING, text, object=f"CustomResource/{backend}")
    nodes = gang_of(spec, view.id.kind).nodes if view.node.shape is Shape.TRAINING else 1
    if nodes > 1 and not protects_gangs(spec.scheduling):
        text = words.gang_unprotected(nodes)
        return Held(view, Reason.GANG_UNPROTECTED, text, object=f"{KIND}/{snapshot.experiment.name}")
    key = key_of(spec, view.node)
    other = _maker(snapshot, key)
    if other is not None:
        is_orphan = other.experiment == snapshot.experiment.name
        text = words.artifact_busy(stage, other.experiment)
        if is_orphan:
            text = words.orphan_busy(stage, other.kind, other.name)
        return Held(view, Reason.ARTIFACT_BUSY, text, object=f"{other.kind}/{other.name}")
    pod = _lingering_pod(snapshot, key)
    if pod is not None:
        return Held(view, Reason.PREVIOUS_ATTEMPT, words.previous_attempt(stage, pod), object=f"Pod/{pod}")
    return None


def protects_gangs(scheduling: Scheduling) -> bool:
    """Whether all pods of a gang start or none, or the user takes it as it comes."""
    return bool(scheduling.queue_name or scheduling.pod_group or scheduling.gang == "BestEffort")


def _lingering_pod(snapshot: Snapshot, key: str) -> str | None:
    """Return a pod of an earlier attempt that has not ended: it may still write where the next one would.

    A gang has failed as soon as one of its ranks has; the others take a while to notice, or to be removed. A deleted
    child is gone at once, an experiment that was deleted and made anew knows nothing of it, and the pods of both have
    their time to end all the same.
    """
    return next(
        (pod.name for pod in snapshot.pods.get(key, ()) if pod.phase in RUNNING_PHASES and pod.node is not None), None
    )


def _maker(snapshot: Snapshot, key: str) -> ChildFact | None:
    """Return another experiment's child that is making an artifact. A suspended one is not: it may never go on."""
    return next(
        (
            child
            for child in snapshot.foreign
            if child.artifact_key == key and child.state in LIVE and not child.suspended
        ),
        None,
    )
