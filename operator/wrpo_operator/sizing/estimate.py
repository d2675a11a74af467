"""Time that stages take: a roofline of memory bandwidth and arithmetic, before anything was measured.

Factors of efficiency are usual ones; a figure is right within a factor of `UNCERTAINTY`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.sizing.memory import key_value_bytes, loaded_bytes
from wrpo_operator.sizing.requests import GenerationRequest

UNCERTAINTY = 2
PROMPT_TOKENS = 180
RESPONSE_TOKENS = 500
"""Lengths of a usual prompt and response, by which tokens are counted before there are any."""
MOST_SEQUENCES = 256
"""Sequences that vLLM computes at once by default."""
_BANDWIDTH_SHARE = 0.55
_ARITHMETIC_SHARE = 0.45
_TRAINING_SHARE = 0.33
"""Less than of a forward pass alone, because parameters are gathered and gradients reduced."""
_LAYER_SECONDS = 3e-4
"""Of one layer for one token by Transformers at least, for its Python code: measured on one core with tiny layers."""
_TERA = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """An accelerator's peaks."""

    bandwidth: float
    """Bytes per second of its memory."""
    arithmetic: float
    """Dense bf16 (of older ones fp16) floating-point operations per second."""
    source: str
    """Data sheet of the vendor that states both."""


def _speed(terabytes: float, teraflops: float, source: str) -> Speed:
    return Speed(bandwidth=terabytes * _TERA, arithmetic=teraflops * _TERA, source=source)


_SPEEDS: tuple[tuple[str, Speed], ...] = (
    (r"gb200|b200", _speed(8.0, 2250, "NVIDIA DGX B200 datasheet, one GPU")),
    (r"h200", _speed(4.8, 989, "NVIDIA H200 datasheet, SXM")),
    (r"h100.*(pcie|nvl)", _speed(2.0, 756, "NVIDIA H100 datasheet, PCIe")),
    (r"h100|h800", _speed(3.35, 989, "NVIDIA H100 datasheet, SXM")),
    (r"[ah]800|a100.*80gb", _speed(2.04, 312, "NVIDIA A100 datasheet, SXM 80 GB")),
    (r"a100", _speed(1.56, 312, "NVIDIA A100 datasheet, 40 GB")),
    (r"l40s", _speed(0.864, 362, "NVIDIA L40S datasheet")),
    (r"l4", _speed(0.3, 121, "NVIDIA L4 datasheet")),
    (r"rtx-4090|4090", _speed(1.01, 165, "NVIDIA Ada architecture whitepaper, fp32 accumulation")),
    (r"mi300x", _speed(5.3, 1307, "AMD Instinct MI300X datasheet")),
)
"""Part of a product's name (whole words) -> speed; the first that is found counts."""


def speed_of(product: str) -> Speed | None:
    """Return the speed of a product, named as in labels of nodes or in profiles; None if it is not listed."""
    name = f"-{re.sub(r'[^a-z0-9]+', '-', product.lower())}-"
    return next((speed for words, speed in _SPEEDS if re.search(rf"-({words})-", name)), None)


def generation_seconds(
    request: GenerationRequest, speed: Speed, *, responses: int, accelerators: int, room: int
) -> float:
    """Return the seconds that one pod of so many accelerators needs for all responses; divide by the pods.

    `room` is the number of tokens whose keys and values fit. Steps are limited by reading weights and cache, or by
    arithmetic.
    """
    facts = request.facts
    sequences = max(1, min(MOST_SEQUENCES, room // (PROMPT_TOKENS + RESPONSE_TOKENS), responses))
    cache = (
        sequences * key_value_bytes(facts, request.dtype, request.cache_dtype) * (PROMPT_TOKENS + RESPONSE_TOKENS / 2)
    )
    weights = loaded_bytes(facts, request.quantization, request.dtype)
    reading = (weights + cache) / (speed.bandwidth * accelerators * _BANDWIDTH_SHARE)
    computing = 2 * sequences * _active(facts) / (speed.arithmetic * accelerators * _ARITHMETIC_SHARE)
    return responses * RESPONSE_TOKENS / sequences * max(reading, computing)


def forward_seconds(facts: ModelFacts, speed: Speed, *, tokens: int) -> float:
    """Return the seconds that one accelerator needs for a forward pass of so many tokens, e.g. for scoring."""
    return 2 * _active(facts) * tokens / (speed.arithmetic * _ARITHMETIC_SHARE)


def step_seconds(facts: ModelFacts, speed: Speed) -> float:
    """Return the seconds of one token of one sequence by Transformers on one accelerator."""
    return max(loaded_bytes(facts) / (speed.bandwidth * _BANDWIDTH_SHARE), facts.layers * _LAYER_SECONDS)


def training_seconds(facts: ModelFacts, speed: Speed, *, tokens: int, checkpointing: bool, references: bool) -> float:
    """Return the seconds of training on so many tokens with one accelerator; divide by the accelerators.

    Passes are those forward and backward, of recomputation, and of the reference.
    """
    passes = 3 + int(checkpointing) + int(references)
    return passes * 2 * _active(facts) * tokens / (speed.arithmetic * _TRAINING_SHARE)


def exchanged_bytes(facts: ModelFacts, *, width: int, zero_stage: int) -> int:
    """Return the bytes that a node exchanges with others for each micro-batch; `width` is that of a parameter.

    ZeRO 3 gathers the parameters forward and backward and reduces the gradients; ZeRO 2 reduces gradients. Lower stages
    reduce them once a step, which counts as 0 here.
    """
    times = {3: 3, 2: 1}.get(zero_stage, 0)
    return times * width * facts.parameters


def needed_network(facts: ModelFacts, speed: Speed, *, exchanged: int, tokens: int, checkpointing: bool) -> float:
    """Return the bytes per second of a node's network with which a micro-batch's exchange takes as long as computing.

    The exchange overlaps with computing, so with a slower network it decides the time.
    """
    return exchanged / training_seconds(facts, speed, tokens=tokens, checkpointing=checkpointing, references=False)


def _active(facts: ModelFacts) -> int:
    return facts.active_parameters or facts.parameters
