"""Memory of models on accelerators. All functions return bytes."""

from __future__ import annotations

from math import ceil

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.sizing.inventory import AcceleratorGroup

MIB = 2**20
GIB = 2**30
RUNTIME_BYTES = int(2.3 * GIB)
"""Context, kernels, graphs and activations of an accelerator that runs a model without training it."""
WEIGHT_OVERHEAD = 1.02 * 1.05
"""Factor on the bytes of weights that are only read: copies of some of them, and fragmentation."""
CPU_MODEL_BYTES = 8 * GIB
"""Largest model that is run on CPUs when a cluster has no accelerators."""

HALF = 2
"""Bytes of a value on accelerators: bfloat16 or float16, in which models stored as float32 are run too."""
_QUANTIZED = {"fp8": 1.0, "int8": 1.0, "awq": 0.55, "gptq": 0.55, "int4": 0.55, "bitsandbytes": 0.55}
"""Bytes of a parameter by method of quantisation, scales included."""
_CACHE_WIDTHS = {"float16": 2, "bfloat16": 2, **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"), 1)}
"""Bytes of a cached value by vLLM's kv_cache_dtype."""


def width_of(dtype: str) -> int:
    """Return the bytes of a value on accelerators in a format of the spec; auto is a half-precision one."""
    return 4 if dtype == "float32" else HALF


def loaded_bytes(facts: ModelFacts, quantization: str | None = None, dtype: str = "auto") -> int:
    """Return the bytes of the weights on accelerators, all parts together."""
    if facts.quantization is not None:
        return facts.weight_bytes
    width = width_of(dtype)
    if quantization is None and width > HALF:
        return facts.parameters * width
    per_parameter = _QUANTIZED.get((quantization or "").split("_")[0].lower(), float(HALF))
    # The embedding and the output stay in 16 bits, which the margin covers: they are few of a large model's parameters.
    return min(facts.weight_bytes, ceil(facts.parameters * per_parameter))


def key_value_bytes(facts: ModelFacts, dtype: str = "auto", cache_dtype: str = "auto") -> int:
    """Return the bytes that all layers cache for one token; sliding windows count in full.

    `cache_dtype` is vLLM's kv_cache_dtype. Formats with scales next to the values count as the format of the weights.
    """
    width = _CACHE_WIDTHS.get(cache_dtype, width_of(dtype))
    if facts.latent_size is not None:
        return facts.latent_size * facts.layers * width
    return 2 * facts.layers * facts.key_value_heads * facts.head_size * width


def feed_forward_size(facts: ModelFacts) -> int:
    """Return the width of the feed-forward network; where it is unknown, the usual one."""
    return facts.feed_forward_size or 4 * facts.hidden_size


def layer_activations(facts: ModelFacts) -> int:
    """Return the bytes of one token's activations in one layer: norms and residuals, attention, gated feed-forward."""
    queries, pairs = facts.attention_heads * facts.head_size, facts.key_value_heads * facts.head_size
    return HALF * (5 * facts.hidden_size + 2 * queries + 2 * pairs + 4 * feed_forward_size(facts))


def legal_tensor_parallel(facts: ModelFacts, most: int) -> tuple[int, ...]:
    """Return the tensor-parallel sizes up to `most` that vLLM accepts, in ascending order; 1 is always legal.

    Heads and key-value heads are divided evenly, or key-value heads are copied evenly. Latent attention has no
    key-value heads to divide. Widths of feed-forward layers and the padded vocabulary are divided evenly too.
    """
    return tuple(size for size in range(1, most + 1) if _is_legal(facts, size))


def _is_legal(facts: ModelFacts, size: int) -> bool:
    if facts.attention_heads % size or (facts.splittable or size) % size:
        return False
    heads = facts.key_value_heads
    return facts.latent_size is not None or not (heads % size if heads >= size else size % heads)


def usable_bytes(group: AcceleratorGroup, share: float) -> int:
    """Return a share of one accelerator's memory."""
    return int(group.memory_mib * MIB * share)


def gib(amount: float) -> str:
    """Return bytes as text in GiB."""
    return f"{amount / GIB:.1f} GiB"
