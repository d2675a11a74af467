"""What an experiment will do on given accelerators: placements, tokens, time, price. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from pydantic import BaseModel

from wrpo_engine.config import (
    FetchParams,
    InspectParams,
    ModelRef,
    RewardModel,
    SampleParams,
    ScoreParams,
    SftParams,
    TrainParams,
)
from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.evaluation import (
    AnswerParams,
    GradeParams,
    MixtureParams,
    PerplexityParams,
    SelectParams,
)
from wrpo_engine.contract.fusing import AlignParams, RepresentParams
from wrpo_engine.contract.merging import JointParams, MergeParams
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.contract.types import is_hub_id
from wrpo_operator.api.placement import Placement
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import StageFacts, StageState, StageStatus
from wrpo_operator.cli.fusion_work import align_seconds, joint_seconds, merge_seconds, search_seconds, stored_bytes
from wrpo_operator.cli.measured import Rates, Setting
from wrpo_operator.cli.work import prompts_of, tokens_of, turns_of
from wrpo_operator.plan.budget import Demand, Limits, admitted
from wrpo_operator.plan.demands import demand_of, limits_of
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import StageId, StageNode
from wrpo_operator.plan.placing import choose, described, facts_in, loaded_model, model_of, placed, requests_of
from wrpo_operator.plan.resources import gpus_of, pods_of
from wrpo_operator.plan.urgency import urgencies
from wrpo_operator.plan.warnings import warnings_of
from wrpo_operator.sizing.catalogue import known_commit
from wrpo_operator.sizing.estimate import (
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    Speed,
    exchanged_bytes,
    forward_seconds,
    generation_seconds,
    needed_network,
    speed_of,
    training_seconds,
)
from wrpo_operator.sizing.generation import UTILIZATION, Way, room
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.memory import width_of
from wrpo_operator.sizing.requests import DoesNotFit, GenerationRequest
from wrpo_operator.sizing.resource_names import listed

LookUp = Callable[[str, str | None], ModelFacts | None]
REUSED = "finished before: reused"
UNKNOWN = "unknown"
"""Placement of a stage that the operator will size."""
_UNKNOWN_HOURS = 1.0
"""Duration of a stage with accelerators whose time is unknown, for the order of stages."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What is known or assumed before the experiment runs."""

    look_up: LookUp
    prompts: int | None = None
    """Size of the data set, for specs that set no limit."""
    rates: Rates = field(default_factory=dict)
    """Rates that earlier experiments reached; they precede calculated ones."""


@dataclass(slots=True)
class _Known:
    spec: ExperimentSpec
    inventory: Inventory | None
    assumed: Assumed
    prompts: int | None
    records: dict[str, StageStatus] = field(default_factory=dict)
    top_k: dict[StageId, int] = field(default_factory=dict)
    """Tokens that the stages which represent rows keep for each position."""


def forecast(
    spec: ExperimentSpec,
    inventory: Inventory | None,
    assumed: Assumed,
    finished: frozenset[str] = frozenset(),
) -> Forecast:
    """Return what will happen.

    `finished` are addresses of complete artifacts, stage/hash, whose stages do not run again.
    """
    known = _Known(spec, inventory, assumed, spec.prompts.limit or assumed.prompts)
    _count_prompts(known)
    nodes, lines, refusals = list[StageNode](), list[Line](), list[str]()
    done_before = set[StageId]()
    for node in build_graph(spec):
        _remember(known, node)
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
    at_once, hours = _simulate(spec, inventory, nodes, durations, done_before)
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


def _unpinned(known: _Known, nodes: Iterable[StageNode]) -> Iterator[str]:
    """Yield one sentence about the models whose branch may move between two runs, with commits to pin them to."""
    used = [(node, model) for node in nodes for model in _hub_models(node.params)]
    names = sorted({name for _, (name, revision) in used if revision is None})
    if not names:
        return
    facts = facts_in(known.records)
    read = {name: facts[str(node.id)].revision for node, (name, _) in used if str(node.id) in facts}
    commits = {name: read.get(name) or known_commit(name) for name in names}
    pins = "; ".join(f"{name} {commit}" for name, commit in commits.items() if commit)
    yield (
        f"{listed(names)} {'has' if len(names) == 1 else 'have'} no revision, so that a later run may read other "
        "weights. To repeat a run, set revision to a commit of 40 digits; `wrpo status -o wide` shows those that a run "
        f"has read.{f' Known commits: {pins}.' if pins else ''}"
    )


def _hub_models(value: object) -> Iterator[tuple[str, str | None]]:
    """Yield (hub id, revision) of all models in a stage's parameters."""
    if isinstance(value, tuple):
        for item in value:
            yield from _hub_models(item)
    elif isinstance(value, BaseModel):
        if isinstance(value, ModelRef | RewardModel) and value.name is not None and is_hub_id(value.name):
            yield value.name, value.revision
        for field_name in type(value).model_fields:
            yield from _hub_models(getattr(value, field_name))


def _record(name: str, facts: ModelFacts | None = None, metrics: Mapping[str, float] | None = None) -> StageStatus:
    found = None if facts is None else StageFacts.model_validate(facts.model_dump())
    return StageStatus(name=name, state=StageState.SUCCEEDED, hash="", facts=found, metrics=dict(metrics or {}))


def _count_prompts(known: _Known) -> None:
    """Record what `prepare` would count."""
    if known.prompts is None:
        return
    evaluation = known.spec.prompts.evaluation
    own = 0 if evaluation.dataset is not None else evaluation.prompts
    rest = max(0, known.prompts - own)
    sft = int(rest * known.spec.prompts.sft_fraction)
    counted = {"prompts_sft": sft, "prompts_preference": rest - sft, "prompts_evaluation": evaluation.prompts}
    known.records["prepare"] = _record("prepare", metrics=counted)


def _remember(known: _Known, node: StageNode) -> None:
    """Record what a stage would find: facts about a model, the number of responses."""
    params, name = node.params, str(node.id)
    if isinstance(params, InspectParams | FetchParams) and params.model.name is not None:
        facts = known.assumed.look_up(params.model.name, params.model.revision)
        if facts is not None:
            known.records[name] = _record(name, facts)
    if isinstance(params, RepresentParams):
        known.top_k[node.id] = params.top_k
    prompts = prompts_of(known.spec, node, known.records)
    if isinstance(params, SampleParams | AnswerParams | MixtureParams) and prompts is not None:
        known.records[name] = _record(name, metrics={"rows": prompts * params.samples_per_prompt})
    if isinstance(params, SelectParams | JointParams) and prompts is not None:
        known.records[name] = _record(name, metrics={"rows": prompts})


def _choose(known: _Known, node: StageNode) -> Placement | DoesNotFit | None:
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


def _line(known: _Known, node: StageNode, chosen: Placement | DoesNotFit | None) -> Line:
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
        seconds = None if node.needs else _cpu_seconds(known, node, line.tokens)
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
        seconds = _seconds(known, node, placement, group)
    if seconds is None or group is None:
        return line
    hours = seconds * max(1, placement.per_pod) / 3600
    pods = _pods_at_once(placement, group) if node.shape is Shape.INDEXED_JOB else 1
    whole = hours * (placement.pods if node.shape is Shape.TRAINING else 1)
    price = None if group.price_per_hour is None else whole * group.price_per_hour
    return replace(line, gpu_hours=whole, hours=seconds / pods / 3600, price=price)


def _with_network(
    known: _Known, node: StageNode, placement: Placement, group: AcceleratorGroup | None, line: Line
) -> Line:
    """Return the line of a stage with what a gang of several nodes exchanges, which is less with adapters."""
    params, speed = node.params, None if group is None else speed_of(group.name)
    if not isinstance(params, SftParams | TrainParams) or params.lora is not None or placement.pods < 2:
        return line
    about, tokens = _facts_of(known, node), placement.micro_batch_tokens
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


def _responses(known: _Known, node: StageNode) -> int | None:
    """Return the responses of a sampling stage; None if they are unknown or the stage samples none."""
    prompts = prompts_of(known.spec, node, known.records)
    return prompts * node.params.samples_per_prompt if isinstance(node.params, SampleParams) and prompts else None


def _runs_model(node: StageNode) -> bool:
    return (
        isinstance(node.params, SftParams | TrainParams)
        or model_of(node) is not None
        or (isinstance(node.params, ScoreParams | GradeParams | AnswerParams | MixtureParams | PerplexityParams))
    )


def _seconds(known: _Known, node: StageNode, placement: Placement, group: AcceleratorGroup | None) -> float | None:
    """Return the seconds that one pod would need for the whole stage, or that its gang needs; None if unknown."""
    speed = None if group is None else speed_of(group.name)
    about = _facts_of(known, node)
    tokens, prompts = tokens_of(known.spec, node, known.records), prompts_of(known.spec, node, known.records)
    if speed is None or about is None or tokens is None or group is None:
        return None
    params = node.params
    if isinstance(params, MergeParams):
        return _search_seconds(known, params, _Pod(about, speed, placement, group))
    if isinstance(params, JointParams):
        return _joint_seconds(known, params, speed, items=prompts)
    if isinstance(params, SftParams | TrainParams):
        alone = training_seconds(
            about,
            speed,
            tokens=tokens,
            checkpointing=bool(params.gradient_checkpointing),
            references=isinstance(params, TrainParams),
        )
        return alone / placement.accelerators
    if isinstance(params, SampleParams | AnswerParams | MixtureParams) and prompts is not None:
        responses = prompts * params.samples_per_prompt
        pod = _Pod(about, speed, placement, group)
        return _generation(pod, responses=responses, request=loaded_model(node, about))
    return forward_seconds(about, speed, tokens=tokens)


def _facts_of(known: _Known, node: StageNode) -> ModelFacts | None:
    """Return the facts about the model that decides a stage's time; None if they are unknown."""
    record = known.records.get(str(node.needs[0].facts)) if node.needs else None
    model = model_of(node) or known.spec.target.model
    return record.facts if record is not None else known.assumed.look_up(model, None)


@dataclass(frozen=True, slots=True)
class _Pod:
    """A model on the accelerators of one pod."""

    facts: ModelFacts
    speed: Speed
    placement: Placement
    group: AcceleratorGroup


def _generation(pod: _Pod, *, responses: int, request: GenerationRequest | None = None) -> float:
    """Return the seconds in which a pod generates; without a request, the model is loaded with the defaults."""
    request = request or GenerationRequest(facts=pod.facts)
    placement = pod.placement
    way = Way(
        group=pod.group,
        tensor=placement.tensor_parallel_size,
        pipeline=placement.pipeline_parallel_size,
        share=placement.gpu_memory_utilization or UTILIZATION,
    )
    return generation_seconds(
        request,
        pod.speed,
        responses=responses,
        accelerators=placement.per_pod,
        room=room(request, way),
    )


def _stored(known: _Known, node: StageNode) -> int | None:
    if known.inventory is None:
        return None
    # Of the models of a fusion, the target is represented in the same way.
    kept = next((known.top_k[stage] for stage in (node.id, *node.upstream) if stage in known.top_k), None)
    rows = prompts_of(known.spec, node, known.records)
    return stored_bytes(node.params, rows=rows, top_k=kept, parent=_parent(known, node))


def _parent(known: _Known, node: StageNode) -> ModelFacts | None:
    """Return the size of the models that a stage merges, which have one architecture."""
    if not isinstance(node.params, MergeParams):
        return None
    return _facts_of_model(known, next(iter(node.params.parents.values())))


def _facts_of_model(known: _Known, model: ModelRef) -> ModelFacts | None:
    """Return the size of a model; what a stage of the experiment makes is as large as the target."""
    target = known.spec.target
    return known.assumed.look_up(
        *((target.model, target.revision) if model.name is None else (model.name, model.revision))
    )


def _cpu_seconds(known: _Known, node: StageNode, tokens: int | None) -> float | None:
    """Return the seconds of one pod without accelerators; None if they are unknown, or for stages of another kind."""
    if known.inventory is None:
        return None
    if isinstance(node.params, AlignParams):
        return None if tokens is None else align_seconds(node.params, tokens=tokens)
    parent = _parent(known, node)
    if parent is None or not isinstance(node.params, MergeParams) or node.params.search is not None:
        return None
    return merge_seconds(node.params, parent)


def _search_seconds(known: _Known, params: MergeParams, pod: _Pod) -> float | None:
    """Return the seconds of a search of merge weights on one accelerator's pod."""
    search = params.search
    if search is None:
        return None
    answers = _generation(pod, responses=search.prompts)
    length = min(search.max_tokens, RESPONSE_TOKENS)
    reward = None if search.reward.name is None else known.assumed.look_up(search.reward.name, search.reward.revision)
    read = search.prompts * (PROMPT_TOKENS + length)
    return search_seconds(
        search,
        merging=merge_seconds(params, pod.facts),
        answering=answers * length / RESPONSE_TOKENS,
        scoring=0.0 if reward is None else forward_seconds(reward, pod.speed, tokens=read),
    )


def _joint_seconds(known: _Known, params: JointParams, speed: Speed, *, items: int | None) -> float | None:
    """Return the seconds of one accelerator that holds all members."""
    members = [facts for member in params.members if (facts := _facts_of_model(known, member)) is not None]
    if items is None or len(members) < len(params.members):
        return None
    return joint_seconds(params, members, speed, answers=items * turns_of(params.benchmark))


def _download(known: _Known, node: StageNode) -> int:
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


def _simulate(
    spec: ExperimentSpec,
    inventory: Inventory | None,
    nodes: list[StageNode],
    hours: Mapping[str, float | None],
    done_before: set[StageId],
) -> tuple[int, float]:
    """Return the most accelerators in use at a time and the hours until the last stage ends.

    Stages start as the planner starts them: when all before have ended, the largest first, of these the most urgent,
    within the limits.
    """
    limits, ended, urgency = limits_of(spec, inventory), set(done_before), urgencies(nodes, done_before)
    waiting = sorted(nodes, key=lambda node: -urgency[node.id])
    running: dict[StageId, float] = {}
    demands = {node.id: demand_of(spec, node, inventory) for node in nodes}
    now, most = 0.0, 0
    while waiting or running:
        ready = [demands[node.id] for node in waiting if all(before in ended for before in _before(node))]
        for stage in admitted(ready, [demands[stage] for stage in running], limits):
            duration = hours.get(str(stage))
            usual = _UNKNOWN_HOURS if demands[stage].accelerators else 0.0
            running[stage] = now + (usual if duration is None else duration)
        waiting = [node for node in waiting if node.id not in running]
        if not running:
            break  # The rest is larger than scheduling.maxGpus.
        most = max(most, sum(_in_use(demands[stage], limits) for stage in running))
        now = min(running.values())
        ended |= {stage for stage, end in running.items() if end <= now}
        running = {stage: end for stage, end in running.items() if end > now}
    return most, now


def _in_use(demand: Demand, limits: Limits) -> int:
    return min(demand.accelerators, limits.totals.get(demand.group, demand.accelerators))


def _before(node: StageNode) -> set[StageId]:
    return {*node.upstream, *(need.facts for need in node.needs)}
