"""Parameters of sampling and of evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wrpo_engine.contract.base import Declared, Role
from wrpo_engine.contract.types import ATOMIC, Backend, Dtype, EngineArgs, Ratio, Seed, Temperature, Text, Tokens, TopP


class GeneratorFields(Declared, role=Role.COMPUTED):
    """Settings of generation; evaluation inherits them from sampling unless it sets them."""

    backend: Backend = "vLLM"
    """Engine that generates. Transformers is slower and runs everywhere that PyTorch does."""
    dtype: Dtype = "auto"
    """Number format of the weights; auto takes that of the model."""
    system_prompt: Text | None = None
    """System message before every prompt that has none. Unset: none."""


class TokenChoiceFields(Declared, role=Role.COMPUTED):
    """Settings of the choice of each token beyond temperature and nucleus, as in vLLM's sampling parameters.

    Penalties change the scores first, then temperature, minP, topK and topP apply in this order.
    """

    top_k: int = Field(default=0, ge=0, le=1_000_000)
    """Choose among this number of likeliest tokens. 0: all."""
    min_p: Ratio = 0.0
    """Choose among tokens with at least this share of the likeliest one's probability. 0: all."""
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    """Divide positive scores (multiply negative ones) of tokens that the prompt or the response contains. 1: no
    penalty."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtract this from the score of each token that the response contains."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtract this from the score of each token as often as the response contains it."""


class QuantizationFields(Declared, role=Role.COMPUTED):
    """Number format of a model's weights in files."""

    quantization: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")] | None = None
    """vLLM's name of the weights' quantisation, e.g. awq or fp8. Unset: as in the model's config."""


class StopFields(Declared, role=Role.COMPUTED):
    """Ends of a response."""

    stop: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        default=(), max_length=16, json_schema_extra=ATOMIC
    )
    """Strings that end a response and are removed from it."""
    stop_token_ids: tuple[Annotated[int, Field(ge=0, le=2**31 - 1)], ...] = Field(
        default=(), max_length=32, json_schema_extra=ATOMIC
    )
    """Tokens that end a response, in addition to the model's end-of-turn tokens."""


class EngineFields(Declared, role=Role.COMPUTED):
    """Settings of vLLM's engine."""

    max_model_length: Tokens | None = None
    """Maximum tokens of prompt and response together. Unset: the model's limit. Smaller values save memory."""
    engine_args: EngineArgs = Field(default={})
    """Further arguments of vLLM's engine by their Python names, e.g. kv_cache_dtype. Names that vLLM does not know, and
    those that have a separate field here, are refused when a stage starts. Changing an argument that affects only speed
    and memory, e.g. max_num_seqs, re-runs nothing."""


class SourceFields(
    EngineFields, StopFields, QuantizationFields, TokenChoiceFields, GeneratorFields, role=Role.COMPUTED
):
    """Settings of responses, which each source can override."""

    samples_per_prompt: int = Field(default=5, ge=1, le=1024)
    """Responses to each prompt. The best and the worst of the target form a pair, so the target needs at least 2."""
    temperature: Temperature = 0.8
    """0 is greedy: all responses of a model to a prompt are then equal and form no pairs."""
    top_p: TopP = 0.95
    """Nucleus: the share of probability that is sampled from; 1 is all."""
    max_tokens: Tokens = 2048
    """Longest response in tokens; a response that reaches it counts as truncated."""
    seed: Seed = 42
    """Seed of all random numbers."""
    on_prompt_too_long: Literal["Fail", "Skip"] = "Fail"
    """Fail: a prompt that exceeds the model's context fails the stage with an error that names the prompt.
    Skip: it is skipped, recorded with the finish reason `prompt_too_long`, and counted."""


class SourceExecution(Declared, role=Role.EXECUTION):
    """Placement of a model on GPUs, which each source can override."""

    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs that share one copy of the model (vLLM). The pod's resources must request as many."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a GPU's memory that vLLM takes. Unset: vLLM's default on a GPU, 0.3 on a CPU."""


class PartFields(Declared, role=Role.COMPUTED):
    """Settings of committing responses."""

    prompts_per_part: int = Field(default=32, ge=1, le=65536)
    """Prompts committed together; a killed pod loses at most one such part."""


class ShardExecution(Declared, role=Role.EXECUTION):
    """Division of a sampling or scoring stage into pods."""

    shards: int = Field(default=1, ge=1, le=256)
    """Pods that share the work on one model's responses."""


class EvaluationFields(TokenChoiceFields, role=Role.COMPUTED):
    """Settings of responses to held-out prompts."""

    samples_per_prompt: int = Field(default=1, ge=1, le=64)
    """Responses of each model to each held-out prompt."""
    temperature: Temperature = 0.0
    """0 is greedy."""
    top_p: TopP = 1.0
    """Nucleus: the share of probability that is sampled from; 1 is all."""
    max_tokens: Tokens = 2048
    """Longest response in tokens."""
    seed: Seed = 42
    """Seed of all random numbers."""
