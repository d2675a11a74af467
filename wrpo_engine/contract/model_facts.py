"""Facts about a model that decide how large its pods must be: counted from its config and its weight files' headers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wrpo_engine.contract.base import Declared

Count = Annotated[int, Field(ge=1, le=2**53)]


class ModelFacts(Declared):
    """Size and shape of a model. A stage that has read them puts them into its termination message."""

    model_type: Annotated[str, Field(min_length=1, max_length=64)]
    """`model_type` of config.json, e.g. llama."""
    parameters: Count
    """Number of parameters."""
    active_parameters: Count | None = None
    """Parameters that one token passes through. Unset: all, because the model is no mixture of experts."""
    weight_bytes: Count
    """Bytes of the weights as stored."""
    layers: Count
    """Transformer layers."""
    hidden_size: Count
    """Width of the residual stream."""
    attention_heads: Count
    """Query heads of a layer."""
    key_value_heads: Count
    """Key-value heads of a layer."""
    head_size: Count
    """Width of one key-value head."""
    latent_size: Count | None = None
    """Multi-head latent attention: values that a token caches per layer (kv_lora_rank + qk_rope_head_dim), which tensor
    parallelism does not divide. Unset: keys and values of all heads are cached."""
    vocabulary: Count
    """Rows of the embedding."""
    context: Count
    """Longest sequence in tokens that the model supports."""
    dtype: Annotated[str, Field(min_length=1, max_length=32)] = "bfloat16"
    """Number format of the weights."""
    quantization: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Quantisation method of the stored weights, e.g. fp8. Unset: none."""
    needs_code: bool = False
    """Whether the checkpoint needs its own Python code (trust_remote_code)."""
