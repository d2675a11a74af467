"""Family attention by segment: plain operations under autograd, on every device and for every feature.

T = tokens of the micro-batch, H = query heads, N = key-value heads, E = head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wrpo_engine.training.batch.layout import AttentionPlan


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """The tokens that a token attends to, and what becomes of their scores."""

    plan: AttentionPlan
    scale: float
    """Factor of the scores."""
    softcap: float | None = None
    """c in c * tanh(score / c); None: scores are not capped."""
    window: int | None = None
    """Last positions that a token attends to; None: all before it."""


def attend_by_segment(
    query_1HTE: Tensor,
    key_1NTE: Tensor,
    value_1NTE: Tensor,
    rule: ScoreRule,
) -> Tensor:
    """Return the attention output [1, T, H, E], computed by one masked attention per prefix and per branch."""
    plan, scale, softcap, window = rule.plan, rule.scale, rule.softcap, rule.window
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
