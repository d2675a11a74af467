"""Attention over families of tokens: exact, without padding, masks or copies of the prompt for each response.

It is registered with Transformers under `IMPLEMENTATION`. Implementations by device:

- CPU: PyTorch's flash kernel on the parts that are not masked (`attention_cpu`);
- CUDA: FlexAttention with a block mask (`attention_flex`);
- `attend_by_segment` below, plain operations under autograd, for other devices and for features that the CPU kernel
  lacks: soft-capped scores, a sliding window, unequal head sizes.

T = tokens of the micro-batch, H = query heads, N = key-value heads, E = head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wrpo_engine.training.batch.layout import AttentionPlan
from wrpo_engine.training.models.attention_cpu import family_attention_cpu

IMPLEMENTATION = "wrpo_families"


def register() -> None:
    """Register the implementation with Transformers; further calls change nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, family_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """Return no mask, because the plan defines the attention."""


def family_attention(
    module: nn.Module,
    query_1HTE: Tensor,
    key_1NTE: Tensor,
    value_1NTE: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    *,
    plan: AttentionPlan,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Return the attention output [1, T, H, E] of one layer.

    Raise ValueError for dropout, attention sinks and position biases.
    """
    if dropout:
        raise ValueError(f"{type(module).__name__} requests attention dropout {dropout}, but training disables it")
    if unused.get("s_aux") is not None or unused.get("position_bias") is not None:
        raise ValueError(f"{type(module).__name__} has attention sinks or biases, which packed rows do not support")
    scale = scaling if scaling is not None else query_1HTE.shape[-1] ** -0.5
    window = sliding_window if sliding_window is not None and sliding_window < plan.longest else None
    if query_1HTE.is_cuda:
        from wrpo_engine.training.models.attention_flex import family_attention_flex

        return family_attention_flex(query_1HTE, key_1NTE, value_1NTE, plan, scale, softcap, window), None
    same_head_sizes = query_1HTE.shape[-1] == value_1NTE.shape[-1]
    if query_1HTE.device.type == "cpu" and window is None and softcap is None and same_head_sizes:
        return family_attention_cpu(query_1HTE, key_1NTE, value_1NTE, plan.families, scale), None
    return attend_by_segment(query_1HTE, key_1NTE, value_1NTE, plan, scale, softcap, window), None


def attend_by_segment(
    query_1HTE: Tensor,
    key_1NTE: Tensor,
    value_1NTE: Tensor,
    plan: AttentionPlan,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Return the attention output [1, T, H, E], computed by one masked attention per prefix and per branch."""
    groups = query_1HTE.shape[1] // key_1NTE.shape[1]
    key_1HTE, value_1HTE = (tensor.repeat_interleave(groups, dim=1) for tensor in (key_1NTE, value_1NTE))
    parts = []
    for family in plan.families:
        for start, stop in (family.prefix, *family.branches):
            seen = [slice(*family.prefix), slice(start, stop)] if start != family.prefix[0] else [slice(start, stop)]
            keys, values = (
                torch.cat([tensor[:, :, part] for part in seen], dim=2) for tensor in (key_1HTE, value_1HTE)
            )
            positions_L = plan.positions_T[start:stop]
            distance_LM = positions_L[:, None] - torch.cat([plan.positions_T[part] for part in seen])
            mask_LM = distance_LM >= 0
            if window is not None:
                mask_LM &= distance_LM < window
            queries = query_1HTE[:, :, start:stop]
            if softcap is None:
                part = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask_LM, scale=scale)
            else:
                scores = softcap * torch.tanh(queries @ keys.mT * (scale / softcap))
                scores = scores.masked_fill(~mask_LM, float("-inf"))
                part = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
                part = part.to(values.dtype) @ values
            parts.append(part)
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()
