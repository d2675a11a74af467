"""Every leaf field of the spec, other values for each, and what follows from one: for the law that none is idle."""

from __future__ import annotations

import copy
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from support.builders import FACTS, NOON, UID, make_pod
from support.crd_validation import crd_schema

from wrpo_engine.config import TerminationMessage
from wrpo_engine.contract.base import Role, field_role
from wrpo_operator.api.hashing import canonical_json
from wrpo_operator.api.names import child_name
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import ExperimentStatus
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import (
    ChildFact,
    ChildState,
    Experiment,
    PlannedAttempt,
    PodFact,
    ProgressFact,
    Shape,
    Snapshot,
    StageNode,
)
from wrpo_operator.plan.planner import plan
from wrpo_operator.plan.starts import key_of
from wrpo_operator.render import RenderSettings, render_attempt

JsonObject = dict[str, Any]
Path: TypeAlias = tuple[str | int, ...]
ABSENT = object()
SETTINGS = RenderSettings(progress_url="https://wrpo-operator.wrpo-system.svc:8081")

TEXTS = (
    "Other", "other", "https://other.example.org/v1", "s3://other/prefix", "/other/place", "other/model",
    "other:answer", "0123456789abcdef0123456789abcdef01234567", "512Mi", "NO_OTHER", "0123456789abcdef" * 4,
    "arena", "yi", "*",
)  # fmt: skip
"""Values of the texts: one of them fits every pattern. A field with a pattern of its own needs one more here."""
NUMBERS = (0, 1, 2, 3, 7, 100, 4096, 100000, 0.001, 0.02, 0.2, 0.3, 0.5, 0.9)
OBJECTS: tuple[JsonObject, ...] = (
    {"cpu": "3"},
    {"disk": "other"},
    {"metadata": {"labels": {"team": "other"}}},
    {"kv_cache_dtype": "fp8"},
)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One field that holds a value, not further fields; an index in its path is that of the first item of a list."""

    path: Path
    node: JsonObject
    """Its schema in the CRD."""
    fields: tuple[tuple[type[BaseModel], str], ...]
    """The model and the name of each field on the way to it, the leaf's own last."""

    @property
    def role(self) -> Role | None:
        """The role stated at the field, or at the nearest section around it."""
        stated = (field_role(model.model_fields[name]) for model, name in reversed(self.fields))
        return next((role for role in stated if role), None)

    def __str__(self) -> str:
        return "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)


def leaves(model: type[BaseModel] = ExperimentSpec, node: JsonObject | None = None) -> Iterator[Leaf]:
    """Yield every leaf of a model; `node` is its schema."""
    node = crd_schema()["properties"]["spec"] if node is None else node
    for name, info in model.model_fields.items():
        alias = info.alias or name
        own, field = node["properties"][alias], (model, name)
        item = own.get("items", {})
        inner = _model_in(info.annotation)
        if inner is None:
            yield Leaf((alias,), own, (field,))
            continue
        below, way = (item, (alias, 0)) if "properties" in item else (own, (alias,))
        for leaf in leaves(inner, below):
            yield Leaf((*way, *leaf.path), leaf.node, (field, *leaf.fields))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in {Annotated, Union, types.UnionType, tuple}:
        return next((found for found in map(_model_in, get_args(annotation)) if found), None)
    return None


def changed(raw: JsonObject, leaf: Leaf) -> Iterator[ExperimentSpec]:
    """Yield valid specs that differ from `raw` in one leaf; none where `raw` has no such object."""
    before = _parsed(canonical_json(raw))
    for value in (*_values(leaf.node), ABSENT):
        spec = copy.deepcopy(raw)
        if not _set(spec, leaf.path, value):
            return
        try:
            parsed = parse_spec(spec)
        except SpecError:
            continue
        if parsed != before:
            yield parsed


def reach(raw: JsonObject, leaf: Leaf) -> int:
    """Return how many of the sections on the way to a leaf a spec has."""
    section: Any = raw
    for count, part in enumerate(leaf.path[:-1]):
        is_there = part in section if isinstance(section, Mapping) else bool(section)
        if not is_there or section[part] is None:
            return count
        section = section[part]
    return len(leaf.path)


@cache
def _parsed(text: str) -> ExperimentSpec:
    return parse_spec(json.loads(text))


def _set(section: Any, path: Path, value: Any) -> bool:
    """Set a field, with the optional objects on the way; False where a list on the way has no item."""
    for part, following in pairwise(path):
        if isinstance(part, int) or isinstance(following, int):
            if not (section[part : part + 1] if isinstance(part, int) else section.get(part)):
                return False
            section = section[part]
        else:
            section = section.setdefault(part, {})
    if value is ABSENT:
        section.pop(path[-1], None)
    else:
        section[path[-1]] = value
    return True


def _values(node: JsonObject) -> Iterator[Any]:
    """Yield values of the kind that a schema takes, valid or not."""
    if "enum" in node:
        yield from node["enum"]
        return
    match node.get("type"):
        case "boolean":
            yield from (True, False)
        case "integer":
            yield from (value for value in NUMBERS if isinstance(value, int))
        case "number":
            yield from NUMBERS
        case "array":
            yield from ([value] for value in _values(node["items"]))
        case "object":
            yield from OBJECTS
        case _:
            yield from TEXTS


def stages_of(spec: ExperimentSpec) -> dict[str, StageNode]:
    """Return the stages by name."""
    return {str(node.id): node for node in build_graph(spec)}


def hashes_of(spec: ExperimentSpec) -> dict[str, str]:
    """Return the hash of every stage."""
    return {name: node.hash for name, node in stages_of(spec).items()}


def experiment_of(spec: ExperimentSpec, status: ExperimentStatus | None = None) -> Experiment:
    return Experiment("demo", "ml", UID, 1, False, NOON, spec, status or ExperimentStatus())


def manifests_of(spec: ExperimentSpec) -> dict[str, Any]:
    """Return what would be applied for the first attempt of every stage, the stage's configuration included."""
    experiment, nodes = experiment_of(spec), stages_of(spec)
    hashes = {node.id: node.hash for node in nodes.values()}
    return {
        name: render_attempt(
            experiment,
            PlannedAttempt(
                node=node,
                attempt=1,
                child_name=child_name("demo", name, node.hash, 1),
                artifact_key=key_of(spec, node),
                input_hashes={role: hashes[upstream] for role, upstream in node.inputs.items()},
            ),
            SETTINGS,
        )
        for name, node in nodes.items()
    }


def plans_of(spec: ExperimentSpec) -> list[Any]:
    """Return what the planner answers in a few situations: none, all and some children, in several states and times."""
    return [
        plan(replace(situation, experiment=experiment_of(spec)), NOON + timedelta(seconds=seconds))
        for situation in _situations(spec)
        for seconds in (1, 50, 4000)
    ]


def _situations(spec: ExperimentSpec) -> Iterator[Snapshot]:
    nodes = stages_of(spec)
    yield Snapshot(experiment=experiment_of(spec))
    for last in nodes:
        for state in (ChildState.PENDING, ChildState.RUNNING, ChildState.FAILED):
            yield _situation(spec, nodes, last, state)
    yield _situation(spec, nodes, last, ChildState.SUCCEEDED)


def _situation(spec: ExperimentSpec, nodes: Mapping[str, StageNode], last: str, state: ChildState) -> Snapshot:
    """Return a cluster in which all stages before one have succeeded and its own child is in a state."""
    children = []
    for name, node in nodes.items():
        children.append(_child(spec, node, state if name == last else ChildState.SUCCEEDED))
        if name == last:
            break
    stalled = ProgressFact(percent=10, remaining_s=None, metrics={}, received_at=NOON, advanced_at=NOON)
    return Snapshot(
        experiment=experiment_of(spec),
        children=tuple(children),
        training_backends=frozenset({"PyTorchJob", "TrainJob"}),
        progress={(last, 1): (stalled,)} if state is ChildState.RUNNING else {},
    )


def _inspected(node: StageNode) -> tuple[PodFact, ...]:
    """Return the pod of a stage that has read a model's facts."""
    message = TerminationMessage(outcome="Succeeded", facts=FACTS)
    return (make_pod(exit_code=0, termination=message),) if node.id.kind in {"inspect", "fetch"} else ()


def _child(spec: ExperimentSpec, node: StageNode, state: ChildState) -> ChildFact:
    ended = state in {ChildState.SUCCEEDED, ChildState.FAILED}
    failed = state is ChildState.FAILED
    return ChildFact(
        kind=spec.training.backend if node.shape is Shape.TRAINING else "Job",
        name=child_name("demo", str(node.id), node.hash, 1),
        uid=f"uid-{node.id}",
        experiment="demo",
        experiment_uid=UID,
        stage=str(node.id),
        stage_hash=node.hash,
        artifact_key=key_of(spec, node),
        attempt=1,
        state=state,
        suspended=False,
        created_at=NOON,
        started_at=None if state is ChildState.PENDING else NOON,
        finished_at=NOON if ended else None,
        pods=(make_pod(exit_code=1, finished_at=NOON),) if failed else _inspected(node) if ended else (),
    )
