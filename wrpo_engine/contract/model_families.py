"""Architectures by the `model_type` of config.json: what their configs omit, and what their layers consist of.

Names of fields that differ between architectures are unified here. The number of parameters follows from the shape; a
test compares it with models that Transformers builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "hidden_size": ("n_embd", "d_model", "dim"),
        "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
        "num_attention_heads": ("n_head", "n_heads", "num_heads"),
        "num_key_value_heads": ("num_kv_heads", "n_head_kv", "n_kv_heads", "multi_query_group_num"),
        "head_dim": ("attention_head_dim", "kv_channels"),
        "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim"),
        "vocab_size": ("padded_vocab_size",),
        "max_position_embeddings": ("n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx"),
        "num_experts": ("num_local_experts", "n_routed_experts"),
        "num_experts_per_tok": ("num_experts_per_token", "moe_topk"),
        "moe_intermediate_size": (),
        "n_shared_experts": ("num_shared_experts",),
        "first_k_dense_replace": (),
        "shared_expert_intermediate_size": (),
        "kv_lora_rank": (),
        "q_lora_rank": (),
        "qk_rope_head_dim": (),
        "qk_nope_head_dim": (),
        "v_head_dim": (),
    }
)
"""Name of a field -> its names in other architectures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Parts of an architecture's layers, and its config's defaults."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values that the architecture has where config.json omits them."""
    known: bool = True
    """False: an architecture that is not listed; it counts as a usual decoder."""
    native: bool = True
    """Whether Transformers and vLLM have its code, so that a checkpoint's own is not needed."""
    gated: bool = True
    """Three matrices in the feed-forward network, or two."""
    query_bias: bool = False
    """Biases of queries, keys and values."""
    output_bias: bool = False
    """Bias of the attention's output."""
    feed_forward_bias: bool = False
    norms: int = 2
    """Norms of hidden size in each layer."""
    norm_bias: bool = False
    head_norms: bool = False
    """Norms of queries and keys, of head size."""
    wide_norms: bool = False
    """Norms of queries and keys, over all heads together."""
    tied: bool = False
    """Whether embedding and output share their weights unless the config states otherwise."""
    positions: bool = False
    """Whether positions are learned embeddings."""
    more_positions: int = 0
    """Positions beyond the context, e.g. of padding."""
    head_bias: bool = False
    encoder: bool = False
    """Bidirectional: pooler or dense layer before the head, norm of the embeddings, no output matrix."""


_BIASED: dict[str, Any] = {
    "query_bias": True,
    "output_bias": True,
    "feed_forward_bias": True,
    "norm_bias": True,
    "gated": False,
}

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(),
        "mistral": Family(defaults={"num_key_value_heads": 8}),
        "mixtral": Family(defaults={"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}),
        "qwen2": Family(query_bias=True),
        "qwen2_moe": Family(query_bias=True, defaults={"num_experts": 60, "num_experts_per_tok": 4}),
        "qwen3": Family(head_norms=True, defaults={"head_dim": 128}),
        "qwen3_moe": Family(head_norms=True, defaults={"num_experts": 128, "num_experts_per_tok": 8}),
        "gemma": Family(tied=True, defaults={"head_dim": 256}),
        "gemma2": Family(tied=True, norms=4, defaults={"head_dim": 256}),
        "gemma3_text": Family(
            tied=True,
            norms=4,
            head_norms=True,
            defaults={
                "head_dim": 256,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "vocab_size": 262208,
                "max_position_embeddings": 131072,
            },
        ),
        "phi3": Family(),
        "phi": Family(**_BIASED, norms=1, head_bias=True),
        "internlm2": Family(native=False),
        "smollm3": Family(tied=True, defaults={"num_key_value_heads": 4}),
        "olmo2": Family(wide_norms=True),
        "granite": Family(),
        "starcoder2": Family(**_BIASED, tied=True, defaults={"num_key_value_heads": 2}),
        "deepseek_v2": Family(),
        "deepseek_v3": Family(defaults={"num_experts_per_tok": 8}),
        "gpt2": Family(**_BIASED, positions=True, tied=True),
        "gpt_neox": Family(**_BIASED),
        "opt": Family(**_BIASED, positions=True, more_positions=2, tied=True),
        "bert": Family(**_BIASED, positions=True, encoder=True),
        "roberta": Family(**_BIASED, positions=True, encoder=True),
        "xlm-roberta": Family(**_BIASED, positions=True, encoder=True),
        "deberta-v2": Family(**_BIASED, encoder=True, defaults={"position_biased_input": True}),
    }
)
"""model_type -> architecture."""


def family_of(model_type: str) -> Family:
    """Return the architecture of a model type; an unlisted one counts as a usual decoder."""
    return FAMILIES.get(model_type, Family(known=False, native=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Numbers of config.json under unified names. 0: the architecture has no such part."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_size: int
    feed_forward: int
    """Width of dense layers."""
    vocabulary: int
    context: int
    experts: int = 0
    chosen_experts: int = 0
    expert_width: int = 0
    shared_width: int = 0
    """Width of the experts that every token passes through, all together."""
    shared_gate: bool = False
    dense_layers: int = 0
    """Layers without experts, if others have some."""
    latent_rank: int = 0
    query_rank: int = 0
    rope_size: int = 0
    nope_size: int = 0
    value_size: int = 0
    tied: bool = False
    labels: int = 0
    """Outputs of a classifier or reward model. 0: a language model."""
    attention_bias: bool = False
    feed_forward_bias: bool = False
    token_types: int = 0
    positions: int = 0
    """Learned embeddings of positions."""
    relative_positions: int = 0
    """Learned embeddings of distances."""
    relative_norm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Parameters by part."""

    total: int
    active: int


def count(family: Family, shape: Shape) -> Counts:
    """Return the parameters of a model, and those that one token passes through."""
    sparse = shape.layers - shape.dense_layers if shape.experts else 0
    per_expert = (3 if family.gated else 2) * shape.hidden * shape.expert_width
    dense = (shape.layers - sparse) * _feed_forward(family, shape)
    shared = sparse * (shape.hidden * (3 * shape.shared_width + shape.experts + shape.shared_gate))
    common = shape.layers * (_attention(family, shape) + _norms(family, shape)) + _outside(family, shape)
    total = common + dense + shared + sparse * shape.experts * per_expert
    return Counts(total=total, active=total - sparse * (shape.experts - shape.chosen_experts) * per_expert)


def _attention(family: Family, shape: Shape) -> int:
    if shape.latent_rank:
        return _latent_attention(shape)
    queries, pairs = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    matrices = shape.hidden * (2 * queries + 2 * pairs)
    matrices += (queries + 2 * pairs) * (family.query_bias or shape.attention_bias)
    matrices += shape.hidden * (family.output_bias or shape.attention_bias)
    return matrices + 2 * shape.head_size * family.head_norms + (queries + pairs) * family.wide_norms


def _latent_attention(shape: Shape) -> int:
    query_width = shape.heads * (shape.nope_size + shape.rope_size)
    if shape.query_rank:
        queries = shape.hidden * shape.query_rank + shape.query_rank + shape.query_rank * query_width
    else:
        queries = shape.hidden * query_width
    latent = shape.hidden * (shape.latent_rank + shape.rope_size) + shape.latent_rank
    expanded = shape.latent_rank * shape.heads * (shape.nope_size + shape.value_size)
    return queries + latent + expanded + shape.heads * shape.value_size * shape.hidden


def _feed_forward(family: Family, shape: Shape) -> int:
    matrices = (3 if family.gated else 2) * shape.hidden * shape.feed_forward
    if family.feed_forward_bias or shape.feed_forward_bias:
        matrices += (2 if family.gated else 1) * shape.feed_forward + shape.hidden
    return matrices


def _norms(family: Family, shape: Shape) -> int:
    return family.norms * shape.hidden * (1 + family.norm_bias)


def _outside(family: Family, shape: Shape) -> int:
    """Return the parameters outside the layers: embeddings, last norm, output."""
    rows = shape.vocabulary + shape.positions + shape.token_types + shape.relative_positions
    norm = shape.hidden * (1 + family.norm_bias)
    return rows * shape.hidden + norm * (1 + shape.relative_norm) + _output(family, shape)


def _output(family: Family, shape: Shape) -> int:
    dense = shape.hidden * (shape.hidden + 1) if family.encoder else 0
    if shape.labels:
        return dense + shape.labels * (shape.hidden + family.encoder)
    return dense if shape.tied or family.encoder else shape.vocabulary * (shape.hidden + family.head_bias)
