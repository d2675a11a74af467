"""Conversion of the spec to the engine's stage parameters (hashed) and runtime (not hashed).

Fields of the same name are copied; only differences are written out. Meaning and role of a field are declared in
`wrpo_engine.contract`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

from wrpo_engine.config import (
    SPEED_ENGINE_ARGS,
    CurateSftParams,
    CurateTriplesParams,
    FuseParams,
    ModelRef,
    PrepareParams,
    ReportParams,
    RewardModel,
    Runtime,
    SampleParams,
    ScoreParams,
    SftParams,
    TrainParams,
)
from wrpo_engine.contract.base import project, values_of
from wrpo_engine.contract.data import ModelUse, ScoreExecution, TemplateFields
from wrpo_engine.contract.fusing import AlignParams, RepresentParams
from wrpo_engine.contract.fusion import FusionLoss
from wrpo_engine.contract.sampling import GeneratorFields, ShardExecution, SourceExecution
from wrpo_engine.contract.training import BothExecution, OptimizerFields, SharedExecution, SharedFields
from wrpo_operator.api.evaluation import Judge
from wrpo_operator.api.fusion import Fusion
from wrpo_operator.api.names import MAIN_REWARD, TARGET
from wrpo_operator.api.sections import PinnedModel, RewardProvider, RewardSource, Source, Target
from wrpo_operator.api.spec import ExperimentSpec

Named: TypeAlias = PinnedModel | RewardSource | Judge
"""A section of the spec that has a name in errors of the engine."""
Part: TypeAlias = Literal["sft", "preference", "evaluation"]


def prepare(spec: ExperimentSpec) -> PrepareParams:
    """Return the parameters of selecting and splitting prompts."""
    held_out = spec.prompts.evaluation
    return project(
        PrepareParams,
        values_of(spec.prompts),
        evaluation_prompts=held_out.prompts,
        evaluation_dataset=held_out.dataset,
        evaluation_revision=held_out.revision,
    )


def named_model(model: Target) -> ModelRef:
    """Return the reference to a model of the spec."""
    return project(ModelRef, values_of(model), name=model.model)


def made_model(role: str, origin: Target) -> ModelRef:
    """Return a model that an upstream stage derived from another; template and code are those of that one."""
    return project(
        ModelRef,
        values_of(origin, TemplateFields),
        input=role,
        trust_remote_code=origin.trust_remote_code,
    )


def start_model(spec: ExperimentSpec) -> ModelRef:
    """Return the model that preference optimisation starts from, which is also its reference."""
    return made_model("sft", spec.target) if spec.sft.enabled else named_model(spec.target)


def reward_model(reward: RewardSource) -> RewardModel:
    """Return a reward as a parameter of the engine."""
    return project(RewardModel, values_of(reward), name=reward.model)


def model_uses(spec: ExperimentSpec, model: PinnedModel | RewardSource) -> tuple[ModelUse, ...]:
    """Return all uses of a model by the experiment."""
    same = (model.model, model.revision)
    return tuple(use for user, use in _uses(spec) if (user.model, user.revision) == same)


def section_of(spec: ExperimentSpec, named: Named) -> str:
    """Return the section of the spec that is this model or judge, e.g. sources[qwen]; errors of the engine name it."""
    return next(section for section, found in _sections(spec) if found is named)


def _sections(spec: ExperimentSpec) -> Iterator[tuple[str, Named]]:
    """Yield each section of the spec that is a model, a reward or a judge."""
    yield "target", spec.target
    yield from ((f"sources[{source.name}]", source) for source in spec.sources)
    yield "reward", spec.reward
    yield from ((f"reward.additional[{reward.name}]", reward) for reward in spec.reward.additional)
    for system in spec.evaluation.systems:
        section = f"evaluation.systems[{system.name}]"
        if system.model is not None:
            yield f"{section}.model", system.model
        if system.select is not None and system.select.ranker is not None:
            yield f"{section}.select.ranker", system.select.ranker
    for judge in spec.evaluation.judges:
        section = f"evaluation.judges[{judge.name}]"
        yield section, judge
        if judge.serve is not None:
            yield f"{section}.serve", judge.serve
        if judge.reward is not None:
            yield f"{section}.reward", judge.reward


def _uses(spec: ExperimentSpec) -> Iterator[tuple[Target | RewardSource, ModelUse]]:
    """Yield every model of the spec and its use."""
    yield spec.target, _use(spec, spec.target, "train")
    yield spec.target, _use(spec, spec.target, "sample", _sampling(spec, None))
    for source in spec.sources:
        yield source, _use(spec, source, "sample", _sampling(spec, source))
    rewards: tuple[RewardProvider, ...] = (spec.reward, *spec.reward.additional)
    yield from ((reward, _use(spec, reward, "score")) for reward in rewards)
    yield from _evaluation_uses(spec)


def _evaluation_uses(spec: ExperimentSpec) -> Iterator[tuple[Target | RewardSource, ModelUse]]:
    """Yield the models that only the evaluation uses."""
    common = values_of(spec.sampling, GeneratorFields) | values_of(spec.evaluation, GeneratorFields)
    for system in spec.evaluation.systems:
        if system.model is not None:
            settings = common | values_of(system.model, GeneratorFields)
            yield system.model, _use(spec, system.model, "sample", settings)
    for judge in spec.evaluation.judges:
        if judge.serve is not None:
            yield judge.serve, _use(spec, judge.serve, "sample", {"backend": "vLLM"})
        if judge.reward is not None:
            yield judge.reward, _use(spec, judge.reward, "score")


def _use(
    spec: ExperimentSpec, model: Target | RewardSource, purpose: str, settings: Mapping[str, Any] | None = None
) -> ModelUse:
    return project(ModelUse, values_of(model), settings or {}, field=section_of(spec, model), purpose=purpose)


def scoring(spec: ExperimentSpec, reward: RewardProvider) -> ScoreParams:
    """Return the parameters of scoring the samples of one model with one reward."""
    return project(ScoreParams, values_of(spec.reward), reward=reward_model(reward))


def scoring_runtime(spec: ExperimentSpec) -> Runtime:
    """Return shards and batches of a scoring stage."""
    return project(Runtime, values_of(spec.reward))


def curate_sft(spec: ExperimentSpec) -> CurateSftParams:
    """Return the parameters of selecting the rows of SFT."""
    return project(CurateSftParams, values_of(spec.curation), reward_weights=reward_weights(spec))


def curate_triples(spec: ExperimentSpec, *, needs_source: bool) -> CurateTriplesParams:
    """Return the parameters of selecting the rows of preference optimisation."""
    return project(
        CurateTriplesParams,
        values_of(spec.curation),
        needs_source=needs_source,
        reward_weights=reward_weights(spec),
    )


def reward_weights(spec: ExperimentSpec) -> dict[str, float]:
    """Return the weights of the rewards by name; empty if there is one reward."""
    weights = {MAIN_REWARD: spec.reward.weight} | {item.name: item.weight for item in spec.reward.additional}
    return weights if spec.reward.additional else {}


def sampling(spec: ExperimentSpec, source: Source | None, parts: tuple[Part, ...]) -> SampleParams:
    """Return the sampling parameters of a source, or of the target if it is None."""
    settings = _sampling(spec, source)
    return project(
        SampleParams,
        settings,
        model=named_model(source) if source else start_model(spec),
        source=source.name if source else TARGET,
        parts=parts,
        engine_args=engine_args(settings, for_speed=False),
    )


def sampling_runtime(spec: ExperimentSpec, source: Source | None) -> Runtime:
    """Return the runtime of a sampling stage: shards, GPU use and the engine's speed settings."""
    settings = _sampling(spec, source)
    return project(Runtime, settings, engine_args=engine_args(settings, for_speed=True))


def _engine_runtime(spec: ExperimentSpec, source: Source | None) -> dict[str, Any]:
    """Return what sampling's runtime says about the engine, without its shards."""
    settings = _sampling(spec, source)
    found = {name: value for name, value in settings.items() if name in SourceExecution.model_fields}
    return found | {"engine_args": engine_args(settings, for_speed=True)}


def _sampling(spec: ExperimentSpec, source: Source | None) -> dict[str, Any]:
    """Return the effective settings of a source, or of the target if it is None."""
    common = values_of(spec.sampling)
    return common | values_of(source.sampling) | values_of(source, ShardExecution) if source else common


def engine_args(settings: Mapping[str, Any], *, for_speed: bool) -> dict[str, Any]:
    """Return the engine's arguments that affect only speed and memory, or the others."""
    return {name: value for name, value in settings["engine_args"].items() if (name in SPEED_ENGINE_ARGS) == for_speed}


def sft(spec: ExperimentSpec) -> SftParams:
    """Return the parameters of SFT."""
    loss = None if spec.sft.fusion is None else fusion_loss(spec.sft.fusion, "align/all")
    return project(SftParams, _sft(spec), model=named_model(spec.target), fusion=loss)


def _sft(spec: ExperimentSpec) -> dict[str, Any]:
    return values_of(spec.training, SharedFields) | values_of(spec.sft)


def fuse(spec: ExperimentSpec, fusion: Fusion, targets: str) -> FuseParams:
    """Return the parameters of the SFT of a system that fuses the distributions of the role `targets`."""
    return project(FuseParams, _sft(spec), model=named_model(spec.target), fusion=fusion_loss(fusion, targets))


def fusion_loss(fusion: Fusion, targets: str) -> FusionLoss:
    """Return the fusion term of SFT on the distributions of the role `targets`."""
    return FusionLoss(targets=targets, weight=fusion.weight)


def represent(spec: ExperimentSpec, fusion: Fusion, source: Source | None) -> RepresentParams:
    """Return the parameters of the distributions of a source, or of the target if it is None."""
    # The target's rows are cut as SFT cuts them. A source's tokens are others, so that no limit would cut alike.
    lengths = {} if source is not None else values_of(spec.sft, OptimizerFields)
    return project(
        RepresentParams,
        {name: lengths[name] for name in ("max_length", "max_prompt_length") if name in lengths},
        values_of(fusion),
        model=named_model(source or spec.target),
        source=source.name if source is not None else TARGET,
    )


def represent_runtime(spec: ExperimentSpec, fusion: Fusion, source: Source | None) -> Runtime:
    """Return the runtime of those distributions: shards and batches of scoring, and with vLLM the engine's settings."""
    batches = values_of(spec.reward, ShardExecution, ScoreExecution)
    return project(Runtime, batches, *([_engine_runtime(spec, source)] if fusion.backend == "vLLM" else []))


def align(fusion: Fusion, target: str, sources: tuple[str, ...]) -> AlignParams:
    """Return the parameters of aligning the distributions of the roles `sources` with those of the role `target`."""
    return project(AlignParams, values_of(fusion), target_input=target, source_inputs=sources)


def sft_runtime(spec: ExperimentSpec) -> Runtime:
    """Return the runtime of SFT."""
    return project(Runtime, values_of(spec.training, SharedExecution, BothExecution), values_of(spec.sft))


def train(spec: ExperimentSpec) -> TrainParams:
    """Return the parameters of preference optimisation."""
    return project(TrainParams, values_of(spec.training), model=start_model(spec))


def training_runtime(spec: ExperimentSpec) -> Runtime:
    """Return the runtime of preference optimisation."""
    return project(Runtime, values_of(spec.training))


def report(spec: ExperimentSpec) -> ReportParams:
    """Return the parameters of the report."""
    names = ", ".join(source.name for source in spec.sources)
    title = f"{spec.training.objective.value}: {names} teach {spec.target.model}"
    return project(ReportParams, values_of(spec.report), title=title)
