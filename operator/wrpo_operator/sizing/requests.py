"""Questions to the sizing functions, and their result if a model fits nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wrpo_engine.contract.model_facts import ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user set, which holds. None: automatic."""

    accelerators: int | None = None
    """Accelerators of each pod. 0: the CPU."""
    resource: str | None = None
    """Name of the accelerators' resource, e.g. amd.com/gpu."""
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    utilization: float | None = None
    """Share of an accelerator's memory that vLLM takes."""
    pods: int | None = None
    """Shards, or nodes of a training gang."""
    memory_gib: int | None = None
    """Host memory of each pod."""
    ephemeral_storage_gib: int | None = None
    """Local disk of each pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What all questions have in common."""

    facts: ModelFacts
    asked: Asked = Asked()
    max_accelerators: int | None = None
    """`scheduling.maxGpus`. None: no limit."""
    step: int = 0
    """Step of the ladder: how often more room was given after OutOfMemory."""
    cached: bool = False
    """Whether the model is read from the model cache, so that a pod needs no disk for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest(Request):
    """A model that generates responses: a stage of sampling or of evaluation."""

    backend: Literal["vLLM", "Transformers"] = "vLLM"
    """Transformers runs on one accelerator."""
    max_model_length: int | None = None
    """Longest sequence in tokens. None: a usual one."""
    whole_context: bool = False
    """Whether the engine must have room for the model's whole context, as vLLM's server does that nothing limits."""
    prompts: int | None = None
    """Prompts of the stage, which bound the number of shards. None: unknown."""
    quantization: str | None = None
    """Quantisation when loading, e.g. fp8. None: as stored."""
    dtype: str = "auto"
    """Number format of the weights, as in the spec."""
    cache_dtype: str = "auto"
    """Number format of the cache: vLLM's kv_cache_dtype."""
    one_by_one: bool = False
    """Whether the model reads one text at a time, with the scores of all its tokens, to choose tokens with others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringRequest(Request):
    """A reward model. It runs on one accelerator."""

    batch_tokens: int | None = None
    """Tokens of one forward pass. None: automatic."""
    dtype: str = "auto"
    """Number format of the weights, as in the spec."""
    responses: int | None = None
    """Responses to score, which bound the number of shards. None: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRequest(Request):
    """A model that is trained by SFT or by preference optimisation."""

    micro_batch_tokens: int | None = None
    """Tokens of one forward pass of one rank. None: automatic."""
    gradient_checkpointing: bool | None = None
    """None: automatic."""
    offload: str | None = None
    """none, optimizer, or optimizer-and-parameters. None: automatic."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    zero_stage: Literal[0, 1, 2, 3] = 3
    reference: Literal["precomputed", "in-memory"] = "precomputed"
    lora_rank: int | None = None
    """None: all weights are trained."""
    accumulation_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of accumulated gradients."""
    moments: Literal["float32", "bfloat16", "8bit"] = "float32"
    """Number format of AdamW's moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoesNotFit:
    """No placement exists."""

    needs: str
    """What the model needs at least, e.g. `4 accelerators of 80 GiB (273 GiB)`."""
    largest: str
    """The largest that exists, e.g. `2 x NVIDIA-L4 of 22.5 GiB in a pod`."""
    message: str
    """One sentence with need, largest and remedies."""
    final: bool = False
    """True: other accelerators do not help, only a change of the spec."""
