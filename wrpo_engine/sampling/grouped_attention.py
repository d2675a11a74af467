"""Attention for sampling on a CPU: query heads read the key-value head they share in place.

Transformers copies keys and values once for each query head wherever there is a mask, which padded batches always
have: at every token of every layer. Several times slower than the attention itself; the results are the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from wrpo_engine.loading.exact_attention import NAME as EXACT
from wrpo_engine.loading.exact_attention import exact_attention, needs_eager

NAME = "wrpo_grouped_sdpa"


def use_grouped_attention(model: Any) -> None:
    """Switch a model that uses scaled_dot_product_attention on a CPU."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type != "cpu" or model.config._attn_implementation not in {"sdpa", EXACT}:  # noqa: SLF001
        return
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _attend(  # noqa: PLR0913 - signature of Transformers' attention functions
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Query [batch, heads, queries, size], key and value [batch, key-value heads, keys, size]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if needs_eager(module, options):
        return exact_attention(module, query, key, value, attention_mask, scaling=scaling, **options)
    if attention_mask is None or key.shape[1] == query.shape[1] or options.get("position_bias") is not None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return output, None
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None
