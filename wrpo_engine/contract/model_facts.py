"""Facts about a model that decide how large its pods must be: counted from its config and its weight files' headers."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Annotated, Any

from pydantic import Field, ValidationError

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
    feed_forward_size: Count | None = None
    """Width of the feed-forward network that a token passes through, its experts together. Unset: unknown."""
    splittable: Count | None = None
    """Greatest common divisor of what tensor parallelism divides besides heads: the widths of feed-forward networks and
    the padded vocabulary. Unset: unknown."""
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


class FactsError(ValueError):
    """A config.json that does not describe a model that stages can run. Names the field, its value and the remedy."""


_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
_VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of this."""


def facts_of(
    config: Mapping[str, Any], *, weight_bytes: int | None, stored_parameters: int | None = None
) -> ModelFacts:
    """Return the facts about a model.

    `config` is its parsed config.json. `weight_bytes` is the total of its safetensors files by their index or headers;
    None: parameters times the bytes of the config's dtype. `stored_parameters` is the number of values in these files;
    None: counted from the config. Raises FactsError if the config lacks a needed field.
    """
    text = {**config, **_section(config)}
    hidden = _count(text, "hidden_size", "n_embd", "d_model")
    heads = _count(text, "num_attention_heads", "n_head", "num_heads")
    feed_forward = _optional(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    vocabulary = _count(text, "vocab_size", "padded_vocab_size")
    layers = _count(text, "num_hidden_layers", "n_layer", "num_layers")
    key_value_heads = _optional(text, "num_key_value_heads") or heads
    head_size = _optional(text, "head_dim") or hidden // heads
    dtype = str(text.get("dtype") or text.get("torch_dtype") or "float32").removeprefix("torch.")
    attention = hidden * head_size * (2 * heads + 2 * key_value_heads)
    counted = layers * (attention + 3 * hidden * feed_forward + 2 * hidden) + hidden + 2 * vocabulary * hidden
    parameters = stored_parameters or counted
    latent = _optional(text, "kv_lora_rank")
    padded = -(-vocabulary // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    quantization = (text.get("quantization_config") or {}).get("quant_method")
    try:
        return ModelFacts(
            model_type=str(config.get("model_type") or ""),
            parameters=parameters,
            weight_bytes=weight_bytes or parameters * _WIDTHS.get(dtype, 2),
            layers=layers,
            hidden_size=hidden,
            attention_heads=heads,
            key_value_heads=key_value_heads,
            head_size=head_size,
            latent_size=latent and latent + (_optional(text, "qk_rope_head_dim") or 0),
            feed_forward_size=feed_forward,
            splittable=gcd(feed_forward, padded),
            vocabulary=vocabulary,
            context=_count(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
            dtype=dtype,
            quantization=quantization,
            needs_code="auto_map" in config,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise FactsError(
            f"config.json: {fault['loc'][0]}: {fault['input']!r}: {fault['msg']}. Use a model whose config.json is "
            f"complete, or set the stage's accelerators."
        ) from error


def _section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part about the language model of a config that nests it, e.g. because the model reads images too."""
    for name in ("text_config", "language_config", "llm_config"):
        if isinstance(config.get(name), Mapping):
            found: Mapping[str, Any] = config[name]
            return found
    return {}


def _optional(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise FactsError(
                f"config.json: {name} is {value!r}; it must be a positive integer. Correct it, or set the stage's "
                f"accelerators."
            )
        return value
    return None


def _count(config: Mapping[str, Any], *names: str) -> int:
    found = _optional(config, *names)
    if found is None:
        raise FactsError(
            f"config.json (model_type {config.get('model_type')!r}) has no {names[0]}, which is needed to size the "
            f"model. Name a model whose config.json has it, or set the stage's accelerators."
        )
    return found
