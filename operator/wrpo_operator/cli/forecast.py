"""What an experiment will do on given accelerators: placements, tokens, time, price. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pydantic import BaseModel

from wrpo_engine.config import (
    FetchParams,
    InspectParams,
    ModelRef,
    PrepareParams,
    RewardModel,
    SampleParams,
    ScoreParams,
    SftParams,
    TrainParams,
)
from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.evaluation import AnswerParams, GradeParams, MixtureParams, PerplexityParams
from wrpo_engine.contract.merging import JointParams, MergeParams
from wrpo_engine.contract.types import is_hub_id
from wrpo_operator.api.placement import Placement
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.cli.durations import accelerator_seconds, cpu_seconds
from wrpo_operator.cli.forecast_inputs import Assumed, Known, count_prompts, facts_of, parent_of, remember
from wrpo_operator.cli.fusion_work import stored_bytes
from wrpo_operator.cli.measured import Setting
from wrpo_operator.cli.simulation import simulate
from wrpo_operator.cli.work import prompts_of, tokens_of
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import StageId, StageNode
from wrpo_operator.plan.placing import choose, described, facts_in, model_of, placed, requests_of
from wrpo_operator.plan.resources import gpus_of, pods_of
from wrpo_operator.plan.warnings import warnings_of
from wrpo_operator.sizing.catalogue import known_commit
from wrpo_operator.sizing.estimate import exchanged_bytes, needed_network, speed_of
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.memory import width_of
from wrpo_operator.sizing.requests import DoesNotFit
from wrpo_operator.sizing.resource_names import listed

REUSED = "finished before: reused"
UNKNOWN = "unknown"
"""Placement of a stage that the operator will size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One stage. None: unknown."""

    stage: str
    becomes: str
    shards: int
    hash: str
    needs: tuple[str, ...]
    placement: str = ""
    arithmetic: str = ""
    gpus: int = 0
    tokens: int | None = None
    gpu_hours: float | None = None
    hours: float | None = None
    price: float | None = None
    requests: int | None = None
    """Requests to a judge."""
    download_bytes: int = 0
    memory_gib: int | None = None
    """Host memory of each pod that the placement requests."""
    disk_gib: int | None = None
    """Local disk of each pod that the placement requests."""
    stored_bytes: int | None = None
    """Bytes that the stage leaves in the storage, of stages that fuse distributions or merge models."""
    exchanged_bytes: int | None = None
    """Bytes that each node of a gang of several exchanges with the others for a micro-batch."""
    network: float | None = None
    """Bytes per second of a node's network at which that takes as long as computing."""
    measured_by: str | None = None
    """Experiment whose measured rate the time follows. None: it is calculated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """All stages, and what they come to."""

    lines: tuple[Line, ...]
    warnings: tuple[str, ...]
    gpus_at_once: int
    gpu_hours: float | None
    """Of the stages whose time is known; None if there is none."""
    hours: float | None
    price: float | None
    download_bytes: int


def forecast(
    spec: ExperimentSpec,
    inventory: Inventory | None,
    assumed: Assumed,
    finished: frozenset[str] = frozenset(),
) -> Forecast:
    """Return what will happen.

    `finished` are addresses of complete artifacts, stage/hash, whose stages do not run again.
    """
    known = Known(spec, inventory, assumed, spec.prompts.limit or assumed.prompts)
    count_prompts(known)
    nodes, lines, refusals = list[StageNode](), list[Line](), list[str]()
    done_before = set[StageId]()
    for node in build_graph(spec):
        remember(known, node)
        if f"{node.id}/{node.hash}" in finished:
            lines.append(replace(_identity(node), placement=REUSED, gpu_hours=0.0, hours=0.0, price=0.0))
            done_before.add(node.id)
            continue
        chosen = _choose(known, node)
        done = placed(node, chosen) if isinstance(chosen, Placement) else node
        if isinstance(chosen, DoesNotFit):
            refusals.append(f"Stage {node.id} does not fit: {chosen.message}")
        nodes.append(done)
        lines.append(_line(known, done, chosen))
    # Without an inventory nothing is known about the stages that the operator will size.
    judged = [node for node in nodes if inventory is not None or not node.needs]
    durations = {line.stage: line.hours for line in lines}
    at_once, hours = simulate(spec, inventory, nodes, durations, done_before)
    spent = [line.gpu_hours for line in lines if line.gpu_hours is not None]
    prices = [line.price for line in lines if line.price is not None]
    return Forecast(
        lines=tuple(lines),
        warnings=(*refusals, *warnings_of(spec, judged, inventory, known.records), *_unpinned(known, nodes)),
        gpus_at_once=at_once,
        gpu_hours=sum(spent) if spent else None,
        hours=hours if spent else None,
        price=sum(prices) if prices else None,
        download_bytes=sum(line.download_bytes for line in lines),
    )


def _unpinned(known: Known, nodes: Iterable[StageNode]) -> Iterator[str]:
    """Yield one sentence about what is read from a branch that may move between two runs, with commits to pin it to."""
    used = [(node, model) for node in nodes for model in _on_the_hub(node.params)]
    names = sorted({name for _, (name, revision) in used if revision is None})
    if not names:
        return
    facts = facts_in(known.records)
    read = {name: facts[str(node.id)].revision for node, (name, _) in used if str(node.id) in facts}
    commits = {name: read.get(name) or known_commit(name) for name in names}
    pins = "; ".join(f"{name} {commit}" for name, commit in commits.items() if commit)
    yield (
        f"{listed(names)} {'has' if len(names) == 1 else 'have'} no revision, so that a later run may read other "
        "data. To repeat a run, set revision to a commit of 40 digits; `wrpo status -o wide` shows those that a run "
        f"has read.{f' Known commits: {pins}.' if pins else ''}"
    )


def _on_the_hub(value: object) -> Iterator[tuple[str, str | None]]:
    """Yield (hub id, revision) of all models and data sets in a stage's parameters."""
    if isinstance(value, tuple):
        for item in value:
            yield from _on_the_hub(item)
    elif isinstance(value, BaseModel):
        if isinstance(value, ModelRef | RewardModel) and value.name is not None and is_hub_id(value.name):
            yield value.name, value.revision
        if isinstance(value, PrepareParams):
            prompts = ((value.dataset, value.revision), (value.evaluation_dataset, value.evaluation_revision))
            yield from ((name, revision) for name, revision in prompts if name is not None and is_hub_id(name))
        for field_name in type(value).model_fields:
            yield from _on_the_hub(getattr(value, field_name))


def _choose(known: Known, node: StageNode) -> Placement | DoesNotFit | None:
    facts = all(str(need.facts) in known.records for need in node.needs)
    if known.inventory is None or not node.needs or not facts:
        return None
    return choose(known.spec, node, known.records, known.inventory)


def _identity(node: StageNode) -> Line:
    return Line(
        stage=str(node.id),
        becomes=node.shape.value,
        shards=node.runtime.shards,
        hash=node.hash,
        needs=tuple(sorted({str(upstream) for upstream in node.inputs.values()})),
    )


def _line(known: Known, node: StageNode, chosen: Placement | DoesNotFit | None) -> Line:
    line = replace(
        _identity(node),
        gpus=gpus_of(known.spec, node),
        tokens=tokens_of(known.spec, node, known.records),
        requests=requests_of(known.spec, node, known.records),
        download_bytes=_download(known, node),
        stored_bytes=_stored(known, node),
    )
    if isinstance(chosen, DoesNotFit):
        return replace(line, placement=f"does not fit: needs {chosen.needs}", arithmetic=chosen.message)
    placement = described(known.spec, node)
    if placement is None:
        seconds = None if node.needs else cpu_seconds(known, node, line.tokens)
        return replace(
            line,
            placement=UNKNOWN if node.needs else "CPU" if _runs_model(node) else "",
            hours=None if seconds is None else seconds / pods_of(known.spec, node) / 3600,
        )
    line = replace(
        line,
        placement=_describe(node, placement),
        arithmetic=placement.arithmetic,
        memory_gib=placement.memory_gib,
        disk_gib=placement.ephemeral_storage_gib,
    )
    group = _group(known.inventory, placement)
    line = _with_network(known, node, placement, group, line)
    rate = known.assumed.rates.get(Setting(model_of(node) or "", placement.accelerator, placement.tensor_parallel_size))
    responses = _responses(known, node)
    if rate is not None and responses is not None:
        seconds = responses * rate.mean_tokens / (rate.tokens_per_second * max(1, placement.per_pod))
        line = replace(line, measured_by=rate.experiment)
    else:
        seconds = accelerator_seconds(known, node, placement, group)
    if seconds is None or group is None:
        return line
    hours = seconds * max(1, placement.per_pod) / 3600
    pods = _pods_at_once(placement, group) if node.shape is Shape.INDEXED_JOB else 1
    whole = hours * (placement.pods if node.shape is Shape.TRAINING else 1)
    price = None if group.price_per_hour is None else whole * group.price_per_hour
    return replace(line, gpu_hours=whole, hours=seconds / pods / 3600, price=price)


def _with_network(
    known: Known, node: StageNode, placement: Placement, group: AcceleratorGroup | None, line: Line
) -> Line:
    """Return the line of a stage with what a gang of several nodes exchanges, which is less with adapters."""
    params, speed = node.params, None if group is None else speed_of(group.name)
    if not isinstance(params, SftParams | TrainParams) or params.lora is not None or placement.pods < 2:
        return line
    about, tokens = facts_of(known, node), placement.micro_batch_tokens
    if about is None or speed is None or tokens is None:
        return line
    exchanged = exchanged_bytes(about, width=width_of(params.precision), zero_stage=params.zero_stage)
    network = needed_network(
        about, speed, exchanged=exchanged, tokens=tokens, checkpointing=bool(params.gradient_checkpointing)
    )
    return replace(line, exchanged_bytes=exchanged, network=network)


def _pods_at_once(placement: Placement, group: AcceleratorGroup) -> int:
    """Return the pods that run at the same time; the others of a stage that is larger than its group wait."""
    total = group.total
    return placement.pods if total is None else max(1, min(placement.pods, total // max(1, placement.per_pod)))


def _describe(node: StageNode, placement: Placement) -> str:
    if not placement.per_pod:
        return "CPU"
    name = placement.accelerator or placement.resource
    text = f"{placement.pods} x {placement.per_pod} {name}"
    if node.shape is Shape.TRAINING:
        more = ["checkpointing"] if placement.gradient_checkpointing else []
        more += [f"offload {placement.offload}"] if placement.offload not in (None, "none") else []
    else:
        sizes = {"TP": placement.tensor_parallel_size, "PP": placement.pipeline_parallel_size}
        more = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    return f"{text} ({', '.join(more)})" if more else text


def _group(inventory: Inventory | None, placement: Placement) -> AcceleratorGroup | None:
    """Return the group of a placement; of one that the spec sets only if the resource names it."""
    groups = () if inventory is None else inventory.groups
    found = [group for group in groups if group.name == placement.accelerator]
    found = found or [group for group in groups if group.resource == placement.resource]
    return found[0] if len(found) == 1 else None


def _responses(known: Known, node: StageNode) -> int | None:
    """Return the responses of a sampling stage; None if they are unknown or the stage samples none."""
    prompts = prompts_of(known.spec, node, known.records)
    return prompts * node.params.samples_per_prompt if isinstance(node.params, SampleParams) and prompts else None


def _runs_model(node: StageNode) -> bool:
    return (
        isinstance(node.params, SftParams | TrainParams)
        or model_of(node) is not None
        or (isinstance(node.params, ScoreParams | GradeParams | AnswerParams | MixtureParams | PerplexityParams))
    )


def _stored(known: Known, node: StageNode) -> int | None:
    if known.inventory is None:
        return None
    # Of the models of a fusion, the target is represented in the same way.
    kept = next((known.top_k[stage] for stage in (node.id, *node.upstream) if stage in known.top_k), None)
    rows = prompts_of(known.spec, node, known.records)
    return stored_bytes(node.params, rows=rows, top_k=kept, parent=parent_of(known, node))


def _download(known: Known, node: StageNode) -> int:
    """Return the bytes of weights that a stage's pods download from the hub."""
    params = node.params
    if isinstance(params, FetchParams):
        record = known.records.get(str(node.id))
        return record.facts.weight_bytes if record is not None and record.facts is not None else 0
    if isinstance(params, InspectParams) or known.spec.model_cache.enabled:
        return 0
    found = (known.assumed.look_up(name, None) for name in _models_of(node) if is_hub_id(name))
    return sum(facts.weight_bytes for facts in found if facts is not None) * pods_of(known.spec, node)


def _models_of(node: StageNode) -> tuple[str, ...]:
    """Return the models of a stage that no stage of the experiment makes: the first one, or all that it combines."""
    if isinstance(node.params, MergeParams | JointParams):
        models = node.params.parents.values() if isinstance(node.params, MergeParams) else node.params.members
        return tuple(dict.fromkeys(model.name for model in models if model.name is not None))
    first = model_of(node)
    return () if first is None else (first,)
