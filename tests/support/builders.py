"""Builders with defaults for experiments, children and pods: a test names only what it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from wrpo_engine.config import ErrorInfo, TerminationMessage
from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.names import child_name
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.status import ExperimentStatus
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import ChildFact, ChildState, Experiment, PlannedAttempt, PodFact, Snapshot, StageNode
from wrpo_operator.plan.starts import key_of

NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"
TRAINING_STAGES = frozenset(kind for kind, definition in STAGES.items() if definition.shape is Shape.TRAINING)

RAW_SPEC: Mapping[str, Any] = {
    "target": {"model": "org/target"},
    "sources": [{"name": "qwen", "model": "Qwen/Qwen2-72B-Instruct"}, {"name": "yi", "model": "01-ai/Yi-1.5-34B-Chat"}],
    "prompts": {"dataset": "openbmb/UltraFeedback"},
    "reward": {"model": "RLHFlow/ArmoRM-Llama3-8B-v0.1"},
    "storage": {"volume": {"claimName": "wrpo"}},
    "training": {"gpusPerNode": 0},
    "resources": {stage: {"limits": {"nvidia.com/gpu": 0}} for stage in ("sample", "score", "evaluate")},
}
"""The stages are sized, so that no model is inspected; see AUTOMATIC."""
AUTOMATIC: Mapping[str, Any] = {"training": {"gpusPerNode": None}, "resources": None}
"""Changes with which the operator chooses the accelerators of all stages."""


FACTS = ModelFacts(
    model_type="llama",
    parameters=8_030_261_248,
    weight_bytes=16_060_522_496,
    layers=32,
    hidden_size=4096,
    attention_heads=32,
    key_value_heads=8,
    head_size=128,
    vocabulary=128256,
    context=8192,
)
"""Facts about Llama-3-8B, which needs an accelerator."""


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return base with changes laid over it, key by key; None removes a key, lists are replaced."""
    out = dict(base)
    for key, value in changes.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def raw_spec(**changes: Any) -> dict[str, Any]:
    """Return a valid spec as JSON, with changes (camelCase) laid over it."""
    return merged(RAW_SPEC, changes)


def make_experiment(
    *,
    name: str = "demo",
    namespace: str = "ml",
    uid: str = UID,
    generation: int = 1,
    deleting: bool = False,
    status: ExperimentStatus | None = None,
    **spec_changes: Any,
) -> Experiment:
    """Return an experiment with a valid spec, changed as named."""
    return Experiment(
        name=name,
        namespace=namespace,
        uid=uid,
        generation=generation,
        deleting=deleting,
        created_at=NOON,
        spec=parse_spec(raw_spec(**spec_changes)),
        status=status or ExperimentStatus(),
    )


def node_of(experiment: Experiment, stage: str) -> StageNode:
    """Return a stage of an experiment's graph."""
    assert experiment.spec is not None
    return next(node for node in build_graph(experiment.spec) if str(node.id) == stage)


def make_child(
    experiment: Experiment,
    stage: str,
    state: ChildState = ChildState.RUNNING,
    *,
    attempt: int = 1,
    created_at: datetime = NOON,
    **facts: Any,
) -> ChildFact:
    """Return a child of an experiment's stage, as the runtime would see it."""
    assert experiment.spec is not None
    node = node_of(experiment, stage)
    ended = state in {ChildState.SUCCEEDED, ChildState.FAILED}
    values: dict[str, Any] = {
        "kind": "PyTorchJob" if stage in TRAINING_STAGES else "Job",
        "name": child_name(experiment.name, stage, node.hash, attempt),
        "uid": f"uid-{stage}-{attempt}",
        "experiment": experiment.name,
        "experiment_uid": experiment.uid,
        "stage": stage,
        "stage_hash": node.hash,
        "artifact_key": key_of(experiment.spec, node),
        "attempt": attempt,
        "state": state,
        "suspended": state is ChildState.SUSPENDED,
        "created_at": created_at,
        "started_at": None if state in {ChildState.PENDING, ChildState.SUSPENDED} else created_at,
        "finished_at": created_at if ended else None,
    }
    return ChildFact(**(values | facts))


def make_pod(
    name: str = "pod-0",
    *,
    exit_code: int | None = None,
    error: ErrorInfo | None = None,
    outcome: str | None = None,
    **facts: Any,
) -> PodFact:
    """Return a pod; an exit code makes it a finished one, an error or outcome gives it a termination message."""
    phase = "Running" if exit_code is None else ("Succeeded" if exit_code == 0 else "Failed")
    message = None
    if error is not None or outcome is not None:
        message = TerminationMessage.model_validate({"outcome": outcome or "Failed", "error": error})
    values: dict[str, Any] = {"phase": phase, "exit_code": exit_code, "termination": message}
    return PodFact(name=name, **(values | facts))


def make_snapshot(experiment: Experiment, children: Sequence[ChildFact] = (), **facts: Any) -> Snapshot:
    """Return a snapshot of an experiment and its children."""
    return Snapshot(experiment=experiment, children=tuple(children), **facts)


def make_planned(experiment: Experiment, stage: str, attempt: int = 1) -> PlannedAttempt:
    """Return the attempt that the planner would start for a stage whose inputs are there."""
    assert experiment.spec is not None
    graph = build_graph(experiment.spec)
    hashes = {node.id: node.hash for node in graph}
    node = next(node for node in graph if str(node.id) == stage)
    return PlannedAttempt(
        node=node,
        attempt=attempt,
        child_name=child_name(experiment.name, stage, node.hash, attempt),
        artifact_key=key_of(experiment.spec, node),
        input_hashes={role: hashes[upstream] for role, upstream in node.inputs.items()},
    )
