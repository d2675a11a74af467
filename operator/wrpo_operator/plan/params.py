"""Spec -> the engine's stage parameters (hashed) and runtime (not hashed)."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from wrpo_engine.config import (
    SPEED_ENGINE_ARGS,
    AlphaParams,
    EvaluateModel,
    EvaluateParams,
    HoldoutParams,
    LoraParams,
    ModelRef,
    Objective,
    RewardModel,
    Runtime,
    SampleParams,
    ScoreParams,
    SftParams,
    TrainParams,
)
from wrpo_operator.api.names import MAIN_REWARD, TARGET
from wrpo_operator.api.sections import RewardProvider, Source, Target
from wrpo_operator.api.spec import ExperimentSpec, OptimizerSpec

Part: TypeAlias = Literal["sft", "preference", "evaluation"]

_OVERRIDABLE = (
    "backend",
    "samples_per_prompt",
    "temperature",
    "top_p",
    "max_tokens",
    "seed",
    "dtype",
    "max_model_length",
    "system_prompt",
    "on_prompt_too_long",
    "quantization",
    "stop",
    "stop_token_ids",
    "engine_args",
)
_OPTIMIZER = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "epochs",
    "global_batch_size",
    "max_length",
    "max_prompt_length",
    "seed",
    "shuffle",
)
_SHARED = ("precision", "zero_stage", "gradient_checkpointing")
"""Fields of training that hold for SFT too unless sft sets them."""
_SFT_RUNTIME = ("micro_batch_tokens", "checkpoint_every_steps", "offload")
"""The same, of those that change nothing that is computed."""
_RUNTIME = (
    "keep_checkpoints",
    "micro_batch_size",
    "layout",
    "torch_compile",
    "reference",
    "offload_nvme_path",
    "trackers",
    "collective_timeout_seconds",
    "rendezvous_timeout_seconds",
    "hang_timeout_seconds",
)
"""Fields of training that hold for both stages and change nothing that is computed."""


def named_model(model: Target) -> ModelRef:
    """Return a model of the spec."""
    return ModelRef(
        name=model.model,
        revision=model.revision,
        chat_template=model.chat_template,
        trust_remote_code=model.trust_remote_code,
    )


def made_model(role: str, spec: ExperimentSpec) -> ModelRef:
    """Return a model made from the target by an upstream stage; template and code stay the target's."""
    return ModelRef(
        input=role, chat_template=spec.target.chat_template, trust_remote_code=spec.target.trust_remote_code
    )


def start_model(spec: ExperimentSpec) -> ModelRef:
    """Return the model that preference optimisation starts from, which is also its reference."""
    return made_model("sft", spec) if spec.sft.enabled else named_model(spec.target)


def reward_model(reward: RewardProvider) -> RewardModel:
    """Return a reward as the engine knows it."""
    return RewardModel(
        name=reward.model,
        revision=reward.revision,
        trust_remote_code=reward.trust_remote_code,
        chat_template=reward.chat_template,
        function=reward.function,
        endpoint=reward.endpoint,
        endpoint_model=reward.endpoint_model,
    )


def scoring(spec: ExperimentSpec, reward: RewardProvider) -> ScoreParams:
    """Return how one reward scores the samples of one model."""
    settings = spec.reward
    return ScoreParams(
        reward=reward_model(reward),
        max_length=settings.max_length,
        truncation=settings.truncation,
        dtype=settings.dtype,
        rows_per_part=settings.rows_per_part,
    )


def scoring_runtime(spec: ExperimentSpec) -> Runtime:
    """Return shards and batches of a scoring stage."""
    return Runtime(
        shards=spec.reward.shards,
        batch_tokens=spec.reward.batch_tokens,
        reward_concurrency=spec.reward.concurrency,
    )


def curation(spec: ExperimentSpec) -> dict[str, Any]:
    """Return what both curations share."""
    weights = {MAIN_REWARD: spec.reward.weight} | {item.name: item.weight for item in spec.reward.additional}
    return {
        "drop_truncated": spec.curation.drop_truncated,
        "max_response_tokens": spec.curation.max_response_tokens,
        "score_column": spec.curation.score_column,
        "reward_weights": weights if spec.reward.additional else {},
    }


def sampling(spec: ExperimentSpec, source: Source | None, parts: tuple[Part, ...]) -> SampleParams:
    """Return how a source, or the target where it is None, answers."""
    values: dict[str, Any] = {name: _override(source, name, getattr(spec.sampling, name)) for name in _OVERRIDABLE}
    values["engine_args"] = {
        name: value for name, value in values["engine_args"].items() if name not in SPEED_ENGINE_ARGS
    }
    return SampleParams(
        model=named_model(source) if source else start_model(spec),
        source=source.name if source else TARGET,
        parts=parts,
        prompts_per_part=spec.sampling.prompts_per_part,
        **values,
    )


def _override(source: Source | None, name: str, common: Any) -> Any:
    own = getattr(source.sampling, name) if source else None
    return common if own is None else own


def sampling_runtime(spec: ExperimentSpec, source: Source | None) -> Runtime:
    """Return shards, GPU use and the engine's settings for speed of a sampling stage."""
    engine_args = _override(source, "engine_args", spec.sampling.engine_args)
    return Runtime(
        engine_args={name: value for name, value in engine_args.items() if name in SPEED_ENGINE_ARGS},
        shards=(source.shards if source else None) or spec.sampling.shards,
        tensor_parallel_size=_override(source, "tensor_parallel_size", spec.sampling.tensor_parallel_size),
        gpu_memory_utilization=_override(source, "gpu_memory_utilization", spec.sampling.gpu_memory_utilization),
    )


def _optimizer(section: OptimizerSpec, shared: dict[str, Any]) -> dict[str, Any]:
    values = {name: getattr(section, name) for name in _OPTIMIZER} | shared
    if section.lora is not None:
        values["lora"] = LoraParams(**section.lora.model_dump())
    if section.holdout is not None:
        values["holdout"] = HoldoutParams(**section.holdout.model_dump())
    return values


def sft(spec: ExperimentSpec) -> SftParams:
    """Return the parameters of SFT."""
    shared = {name: _sft_or_training(spec, name) for name in _SHARED}
    return SftParams(model=named_model(spec.target), loss_tokens=spec.sft.loss_tokens, **_optimizer(spec.sft, shared))


def train(spec: ExperimentSpec) -> TrainParams:
    """Return the parameters of preference optimisation."""
    training = spec.training
    shared = {name: getattr(training, name) for name in _SHARED}
    return TrainParams(
        model=start_model(spec),
        objective=training.objective,
        alpha=AlphaParams(schedule=training.alpha.schedule, max=training.alpha.max),
        beta=training.beta,
        gamma=training.gamma,
        tau=training.tau,
        label_smoothing=training.label_smoothing,
        length_normalized=training.length_normalized,
        ipo_mean=training.ipo_mean,
        nll_weight=training.nll_weight,
        **_optimizer(training, shared),
    )


def _sft_or_training(spec: ExperimentSpec, name: str) -> Any:
    own = getattr(spec.sft, name)
    return getattr(spec.training, name) if own is None else own


def training_runtime(spec: ExperimentSpec) -> Runtime:
    """Return how preference optimisation runs."""
    return Runtime(**{name: getattr(spec.training, name) for name in (*_RUNTIME, *_SFT_RUNTIME)})


def sft_runtime(spec: ExperimentSpec) -> Runtime:
    """Return how SFT runs."""
    own = {name: _sft_or_training(spec, name) for name in _SFT_RUNTIME}
    shared = {name: getattr(spec.training, name) for name in _RUNTIME if name != "reference"}
    return Runtime(**own, **shared)


def evaluation(spec: ExperimentSpec) -> EvaluateParams:
    """Return what is compared: the target, the SFT model and the trained model, as far as they exist."""
    models = [EvaluateModel(label="target", model=named_model(spec.target))]
    if spec.sft.enabled:
        models.append(EvaluateModel(label="sft", model=made_model("sft", spec)))
    if spec.training.objective is not Objective.SFT_ONLY:
        models.append(EvaluateModel(label=spec.training.objective.value, model=made_model("model", spec)))
    settings = spec.evaluation
    return EvaluateParams(
        models=tuple(models),
        reward=reward_model(spec.reward),
        more_rewards=tuple(reward_model(reward) for reward in spec.reward.additional),
        reward_weights=tuple(reward.weight for reward in (spec.reward, *spec.reward.additional))
        if spec.reward.additional
        else (),
        backend=settings.backend or spec.sampling.backend,
        samples_per_prompt=settings.samples_per_prompt,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        dtype=settings.dtype or spec.sampling.dtype,
        max_length=spec.reward.max_length,
        system_prompt=settings.system_prompt or spec.sampling.system_prompt,
    )


def evaluation_runtime(spec: ExperimentSpec) -> Runtime:
    """Return how evaluation runs."""
    return Runtime(
        batch_tokens=spec.reward.batch_tokens,
        reward_concurrency=spec.reward.concurrency,
        tensor_parallel_size=spec.sampling.tensor_parallel_size,
        gpu_memory_utilization=spec.sampling.gpu_memory_utilization,
    )
