"""Attention over families of tokens: exact, without padding, masks or copies of the prompt for each response.

It is registered with Transformers under `IMPLEMENTATION` and `SEGMENTS`. Implementations by device:

- CPU: PyTorch's flash kernel on the parts that are not masked (`attention_cpu`);
- CUDA: FlexAttention with a block mask (`attention_flex`);
- plain operations under autograd (`attention_segments`), for other devices and for features that the CPU kernel lacks:
  soft-capped scores, a sliding window, unequal head sizes. `SEGMENTS` is this one on every device.

T = tokens of the micro-batch, H = query heads, N = key-value heads, E = head size.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from wrpo_engine.training.batch.layout import AttentionPlan
from wrpo_engine.training.models.attention_cpu import family_attention_cpu
from wrpo_engine.training.models.attention_flex import family_attention_flex
from wrpo_engine.training.models.attention_segments import ScoreRule, attend_by_segment

IMPLEMENTATION = "wrpo_families"
SEGMENTS = "wrpo_segments"


def register() -> None:
    """Register the implementations with Transformers; further calls change nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for name, function in ((IMPLEMENTATION, family_attention), (SEGMENTS, partial(family_attention, by_segment=True))):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, _no_mask)


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """Return no mask, because the plan defines the attention."""


def family_attention(  # noqa: PLR0913 - signature of Transformers' attention functions
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
    by_segment: bool = False,
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
    rule = ScoreRule(plan, scale, softcap, window)
    if query_1HTE.is_cuda and not by_segment:
        return family_attention_flex(query_1HTE, key_1NTE, value_1NTE, rule), None
    same_head_sizes = query_1HTE.shape[-1] == value_1NTE.shape[-1]
    is_plain = window is None and softcap is None and same_head_sizes
    if query_1HTE.device.type == "cpu" and is_plain and not by_segment:
        return family_attention_cpu(query_1HTE, key_1NTE, value_1NTE, plan.families, scale), None
    return attend_by_segment(query_1HTE, key_1NTE, value_1NTE, rule), None
