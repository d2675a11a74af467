"""Placements: accelerators that the operator chooses for a stage, and their effect on the stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from wrpo_engine.config import SampleParams, ScoreParams, SftParams, TrainParams
from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.evaluation import (
    AnswerParams,
    GradeParams,
    JudgeParams,
    MixtureParams,
    PerplexityParams,
    RankParams,
)
from wrpo_engine.contract.fusing import RepresentParams
from wrpo_engine.contract.merging import JointParams, MergeParams
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.placement import Placement
from wrpo_operator.api.pods import AcceleratorProfile, Scheduling
from wrpo_operator.api.presets import ASKED, SIZES
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import StageStatus
from wrpo_operator.plan.model import Need, Snapshot, StageId, StageNode, Work
from wrpo_operator.plan.resources import asked_nodes, devices_of, pods_of
from wrpo_operator.plan.storage import binding_of
from wrpo_operator.sizing.generation import PIPELINE, USUAL_LENGTH, place_generation
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.profiles import MIB_PER_GIB
from wrpo_operator.sizing.requests import Asked, DoesNotFit, GenerationRequest, ScoringRequest, TrainingRequest
from wrpo_operator.sizing.resource_names import is_slice
from wrpo_operator.sizing.scoring import place_scoring
from wrpo_operator.sizing.together import place_together
from wrpo_operator.sizing.training import place_training

CACHE_DTYPE = "kv_cache_dtype"
"""vLLM's argument for the number format of keys and values."""
SET_BY_SPEC = "as set in the spec"
_RESPONDING = frozenset({"sample", "answer", "mixture", "select", "joint"})
"""Kinds of stages that give responses."""
_BY_TRANSFORMERS = JointParams | MergeParams
"""Models that choose each token together, and candidates of a search, generate by Transformers alone."""
Choice: TypeAlias = Placement | DoesNotFit


def offered(snapshot: Snapshot, spec: ExperimentSpec) -> Inventory | None:
    """Return the accelerators that stages are sized to; those in the spec come first."""
    return snapshot.accelerators if spec.accelerator is None else profiled(spec.accelerator)


def profiled(profile: AcceleratorProfile) -> Inventory:
    """Return the accelerators of spec.accelerator."""
    group = AcceleratorGroup(
        name=profile.product or profile.resource,
        resource=profile.resource,
        memory_mib=profile.memory_gib * MIB_PER_GIB,
        per_node=profile.per_node,
        nodes=profile.nodes,
        labels=profile.node_labels,
        is_slice=is_slice(profile.resource),
    )
    return Inventory(groups=(group,), source="spec.accelerator")


def has_accelerators(inventory: Inventory, placement: Placement) -> bool:
    """Return whether the accelerators of a placement still exist, if it has any."""
    return not placement.resource or any(group.name == placement.accelerator for group in inventory.groups)


def placed(node: StageNode, placement: Placement | None) -> StageNode:
    """Return a stage with a placement applied; what the spec sets holds.

    The hash stays: a placement does not affect what is computed.
    """
    if placement is None or not node.needs:
        return node
    works = {need.work for need in node.needs}
    chosen: dict[str, Any] = {
        "tensor_parallel_size": placement.tensor_parallel_size if Work.GENERATION in works else None,
        "gpu_memory_utilization": placement.gpu_memory_utilization,
        "micro_batch_tokens": placement.micro_batch_tokens if Work.TRAINING in works else None,
        "batch_tokens": placement.micro_batch_tokens if Work.SCORING in works else None,
        "offload": placement.offload,
        "shards": placement.pods if node.shape is Shape.INDEXED_JOB else None,
    }
    unset = {name: value for name, value in chosen.items() if name not in node.runtime.model_fields_set}
    arguments = node.runtime.engine_args
    if placement.pipeline_parallel_size > 1 and PIPELINE not in arguments:
        unset["engine_args"] = arguments | {PIPELINE: placement.pipeline_parallel_size}
    runtime = node.runtime.model_copy(update={name: value for name, value in unset.items() if value is not None})
    params, recompute = node.params, placement.gradient_checkpointing
    is_free = isinstance(params, SftParams | TrainParams) and "gradient_checkpointing" not in params.model_fields_set
    if recompute is not None and is_free:
        params = params.model_copy(update={"gradient_checkpointing": recompute})
    return replace(node, runtime=runtime, params=params, placement=placement)


def described(spec: ExperimentSpec, node: StageNode) -> Placement | None:
    """Return the accelerators of a stage's pods for its record: its placement, or what the spec sets; None if none."""
    if node.placement is not None:
        return node.placement
    for resource, count in devices_of(spec, node).items():
        return Placement(
            resource=resource,
            per_pod=count,
            pods=pods_of(spec, node),
            tensor_parallel_size=node.runtime.tensor_parallel_size,
            arithmetic=SET_BY_SPEC,
        )
    return None


def facts_in(records: Mapping[str, StageStatus]) -> dict[str, ModelFacts]:
    """Return the facts about models by the name of the stage that found them; `records` are those of all stages."""
    return {name: record.facts for name, record in records.items() if record.facts is not None}


def choose(
    spec: ExperimentSpec,
    node: StageNode,
    records: Mapping[str, StageStatus],
    inventory: Inventory,
    *,
    step: int = 0,
) -> Choice:
    """Choose accelerators for a stage whose models' facts are all in the records of the stages before it.

    `step` counts how often more room was given after OutOfMemory. If a stage has several models, all of them are in
    memory at the same time.
    """
    first, *others = (_Question(spec, node, need, records, step) for need in node.needs)
    return place_together([each.part() for each in (first, *others)], inventory) if others else first.answer(inventory)


def loaded_model(node: StageNode, facts: ModelFacts) -> GenerationRequest:
    """Return how a generating stage loads a model, without what the user asked for."""
    params = node.params
    return GenerationRequest(
        facts=facts,
        backend="Transformers" if isinstance(params, _BY_TRANSFORMERS) else getattr(params, "backend", "vLLM"),
        max_model_length=_longest(node),
        whole_context=isinstance(params, JudgeParams),
        quantization=getattr(params, "quantization", None),
        dtype=params.precision if isinstance(params, RepresentParams) else getattr(params, "dtype", "auto"),
        cache_dtype=str(_engine_arguments(node).get(CACHE_DTYPE, "auto")),
        one_by_one=isinstance(params, JointParams),
    )


def _longest(node: StageNode) -> int | None:
    """Return the limit of prompt and response together in tokens; None if only the model's context limits them."""
    match node.params:
        case (
            SampleParams(max_model_length=limit)
            | JudgeParams(max_model_length=limit)
            | RepresentParams(max_length=limit)
        ):
            return limit
        case JointParams(max_tokens=longest_answer):
            return USUAL_LENGTH + longest_answer
        case _:
            return node.runtime.context_limit


def _engine_arguments(node: StageNode) -> dict[str, Any]:
    """Return the arguments of vLLM's engine, those that affect only speed and the others."""
    return {**getattr(node.params, "engine_args", {}), **node.runtime.engine_args}


class _Question:
    """What is asked about one model of a stage."""

    def __init__(
        self,
        spec: ExperimentSpec,
        node: StageNode,
        need: Need,
        records: Mapping[str, StageStatus],
        step: int,
    ) -> None:
        self._spec, self._node, self._need, self._records = spec, node, need, records
        self._common: dict[str, Any] = {
            "facts": facts_in(records)[str(need.facts)],
            "max_accelerators": spec.scheduling.max_gpus,
            "step": step,
            "cached": _is_local(spec, node, need),
        }

    def answer(self, inventory: Inventory) -> Choice:
        """Return the placement of this model alone."""
        match self._need.work:
            case Work.GENERATION:
                return place_generation(self._generation(), inventory)
            case Work.SCORING:
                return place_scoring(self._scoring(), inventory)
            case Work.TRAINING:
                return place_training(self._training(), inventory)

    def part(self) -> GenerationRequest | ScoringRequest:
        """Return this model as one of several in the memory of a pod; none of them is trained."""
        return self._scoring() if self._need.work is Work.SCORING else self._generation()

    def _set(self, name: str) -> Any:
        """Return a field of the runtime if the spec sets it."""
        runtime = self._node.runtime
        return getattr(runtime, name) if name in runtime.model_fields_set else None

    def _pods(self) -> int | None:
        return self._set("shards") if self._node.shape is Shape.INDEXED_JOB else 1

    def _generation(self) -> GenerationRequest:
        pipeline = _engine_arguments(self._node).get(PIPELINE)
        asked = Asked(
            tensor_parallel=self._set("tensor_parallel_size"),
            pipeline_parallel=pipeline if isinstance(pipeline, int) else None,
            utilization=self._set("gpu_memory_utilization"),
            pods=self._pods(),
        )
        prompts = _prompts_of(self._spec, self._node, self._records)
        return replace(loaded_model(self._node, self._common["facts"]), asked=asked, prompts=prompts, **self._common)

    def _scoring(self) -> ScoringRequest:
        return ScoringRequest(
            asked=Asked(pods=self._pods()),
            batch_tokens=self._set("batch_tokens"),
            dtype=getattr(self._node.params, "dtype", "auto"),
            responses=responses_of(self._node, self._records),
            **self._common,
        )

    def _training(self) -> TrainingRequest:
        params, spec = self._node.params, self._spec
        assert isinstance(params, SftParams | TrainParams)
        pods = asked_nodes(spec, self._node.id.kind) or (None if protects_gangs(spec.scheduling) else 1)
        is_free = "gradient_checkpointing" not in params.model_fields_set
        return TrainingRequest(
            asked=Asked(pods=pods, resource=spec.training.gpu_resource_name),
            micro_batch_tokens=self._set("micro_batch_tokens"),
            gradient_checkpointing=None if is_free else params.gradient_checkpointing,
            offload=self._set("offload"),
            precision=params.precision,
            zero_stage=params.zero_stage,
            reference=self._node.runtime.reference if isinstance(params, TrainParams) else "precomputed",
            lora_rank=params.lora.rank if params.lora is not None else None,
            accumulation_dtype=params.gradient_accumulation_dtype,
            moments=params.optimizer_moments,
            **self._common,
        )


def protects_gangs(scheduling: Scheduling) -> bool:
    """Return whether all pods of a gang start or none, or the user accepts partial starts."""
    return bool(scheduling.queue_name or scheduling.pod_group or scheduling.gang == "BestEffort")


def _is_local(spec: ExperimentSpec, node: StageNode, need: Need) -> bool:
    """Return whether a pod reads a model from a mounted volume, so that its local disk need not hold it."""
    name = model_of(node)
    if name is not None and name.startswith("/"):
        return True
    is_stored = need.facts.kind == "fetch" or name is None or name.startswith("storage://")
    return is_stored and binding_of(spec.storage.chosen).claim is not None


def model_of(node: StageNode) -> str | None:
    """Return the first model of a stage as in the spec; None if an upstream stage makes it."""
    match node.params:
        case SampleParams(model=model) | SftParams(model=model) | TrainParams(model=model):
            return model.name
        case AnswerParams(model=model) | MixtureParams(model=model) | PerplexityParams(model=model):
            return model.name
        case JointParams(members=(model, *_)):
            return model.name
        case MergeParams(base=base, models=(model, *_)):
            return (base or model).name
        case ScoreParams(reward=reward) | GradeParams(reward=reward):
            return reward.name
        case RankParams(ranker=ranker):
            return ranker.name
        case RepresentParams(model=model):
            return model.name
        case JudgeParams(serve=served, serve_reward=reward):
            loaded = served or reward
            return loaded.name if loaded is not None else None
        case _:
            return None


def _prompts_of(spec: ExperimentSpec, node: StageNode, records: Mapping[str, StageStatus]) -> int | None:
    """Return the number of a generating stage's prompts as counted before it, or an upper bound; None if unknown."""
    params, counted = node.params, records.get("prepare")
    if isinstance(params, AnswerParams | MixtureParams | PerplexityParams | JointParams):
        return items_of(spec, node, records)
    if isinstance(params, MergeParams):
        return params.search.prompts if params.search is not None else None
    if not isinstance(params, SampleParams):
        return None
    parts = [counted.metrics.get(f"prompts_{part}") if counted is not None else None for part in params.parts]
    known = [int(part) for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else spec.prompts.limit


def items_of(spec: ExperimentSpec, node: StageNode, records: Mapping[str, StageStatus]) -> int | None:
    """Return the items of the benchmark that a stage of the evaluation reads, as counted or published; None if unknown.

    An item of several turns counts once.
    """
    name = next((needed.name for needed in node.inputs.values() if needed.kind == "bench"), None)
    if name is None:
        counted = records.get("prepare")
        found = counted.metrics.get("prompts_evaluation") if counted is not None else None
        return int(found) if found is not None else spec.prompts.evaluation.prompts
    counted = records.get(f"bench/{name}")
    rows = counted.metrics.get("rows") if counted is not None else None
    if rows:
        return int(rows)
    benchmark = next(item for item in spec.evaluation.benchmarks if item.name == name)
    size = SIZES.get(benchmark.kind)
    known = [count for count in (benchmark.limit, size.items if size is not None else None) if count is not None]
    return max(1, min(known) - (benchmark.development or 0)) if known else None


def requests_of(spec: ExperimentSpec, node: StageNode, records: Mapping[str, StageStatus]) -> int | None:
    """Return the requests of a stage to a judge, retries left out; None if there are none, or they are unknown."""
    if isinstance(node.params, MergeParams):
        search = node.params.search
        if search is None or search.judge is None:
            return None
        return search.candidates * search.prompts * ASKED[search.judge.benchmark_protocol].requests
    if not isinstance(node.params, JudgeParams):
        return None
    items = items_of(spec, node, records)
    return None if items is None else items * ASKED[node.params.benchmark_protocol].requests


def responses_of(node: StageNode, records: Mapping[str, StageStatus]) -> int | None:
    """Return the number of a scoring stage's responses as counted by the stage that gave them; None if unknown."""
    samples: list[StageId] = [needed for needed in node.inputs.values() if needed.kind in _RESPONDING]
    counted = records.get(str(samples[0])) if samples else None
    rows = counted.metrics.get("rows") if counted is not None else None
    return int(rows) if rows else None
