"""Family attention on a GPU: FlexAttention with a block mask that skips all fully masked pairs of blocks.

If FlexAttention cannot be compiled, the segments are computed one by one instead, and one warning is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from wrpo_engine.training.batch.layout import AttentionPlan
from wrpo_engine.training.models import attention_segments
from wrpo_engine.training.models.attention_segments import ScoreRule

log = logging.getLogger("wrpo_engine")

RECOMPILE_LIMIT = 64
"""Maximum compiled variants of one function. A model with windows in some layers needs eight: with and without window,
with and without gradients, in one block and in several."""

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def sees(plan: AttentionPlan, window: int | None) -> MaskFunction:
    """Return FlexAttention's mask function: true if the query's token attends to the key's token.

    It captures tensors only. A number would become a symbol of the compiled graph, which the kernels' templates do not
    support.
    """
    family_T, branch_T = plan.owners().unbind()
    positions_T = plan.positions_T
    farthest_T = None if window is None else positions_T - window + 1

    def mask(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_family = family_T[query] == family_T[key]
        is_branch = (branch_T[key] == 0) | (branch_T[key] == branch_T[query])
        seen = is_family & is_branch & (query >= key)
        return seen if farthest_T is None else seen & (positions_T[key] >= farthest_T[query])

    return mask


def _softcapped(softcap: Tensor) -> Callable[..., Tensor]:
    """Return FlexAttention's score function; `softcap` is a tensor [], because of the reason given in `sees`."""

    def score(value: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(value / softcap)

    return score


@cache
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # Micro-batches differ in length, so each would be compiled again without dynamic shapes. Without `fullgraph`, one
    # variant too many would run uncompiled without an error, with all T x T scores of all heads in memory.
    compiled: Any = torch.compile  # its annotations lack recompile_limit
    attend, make_mask = (
        compiled(function, dynamic=True, fullgraph=True, recompile_limit=RECOMPILE_LIMIT)
        for function in (flex_attention, create_block_mask)
    )
    return attend, make_mask


class _Failure:
    """State of the process: a missing compiler does not appear later."""

    is_known = False


def use_segments(instead: bool) -> None:
    """Compute segments one by one from now on, or FlexAttention again."""
    _Failure.is_known = instead


def uses_segments() -> bool:
    """Return whether this process computes segments one by one because FlexAttention has failed."""
    return _Failure.is_known


def _compilation_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import InductorError

    errors: tuple[type[Exception], ...] = (TorchDynamoException, FailOnRecompileLimitHit, InductorError)
    if find_spec("triton") is not None:
        errors += (import_module("triton.runtime.errors").OutOfResources,)
    return errors


def family_attention_flex(
    query_1HTE: Tensor,
    key_1NTE: Tensor,
    value_1NTE: Tensor,
    rule: ScoreRule,
) -> Tensor:
    """Return the attention output [1, T, H, E]; plain operations replace FlexAttention if it cannot be compiled."""
    if not _Failure.is_known:
        try:
            return attend_by_flex(query_1HTE, key_1NTE, value_1NTE, rule)
        except _compilation_errors() as error:
            _Failure.is_known = True
            log.warning("FlexAttention cannot be compiled; segments are computed one by one: %s", error)
    return attention_segments.attend_by_segment(query_1HTE, key_1NTE, value_1NTE, rule)


def attend_by_flex(
    query_1HTE: Tensor,
    key_1NTE: Tensor,
    value_1NTE: Tensor,
    rule: ScoreRule,
) -> Tensor:
    """Return the attention output [1, T, H, E]; raise the compiler's error if FlexAttention cannot be compiled."""
    plan, softcap, window = rule.plan, rule.softcap, rule.window
    attend, make_mask = _compiled()
    if window not in plan.block_masks:
        tokens = query_1HTE.shape[2]
        plan.block_masks[window] = make_mask(sees(plan, window), None, None, tokens, tokens, device=query_1HTE.device)
    # Kernels compute scores in fp32.
    score_dtype = torch.promote_types(query_1HTE.dtype, torch.float32)
    output_1HTE: Tensor = attend(
        query_1HTE,
        key_1NTE,
        value_1NTE,
        score_mod=None if softcap is None else _softcapped(query_1HTE.new_full((), softcap, dtype=score_dtype)),
        block_mask=plan.block_masks[window],
        scale=rule.scale,
        enable_gqa=query_1HTE.shape[1] != key_1NTE.shape[1],
    )
    return output_1HTE.transpose(1, 2).contiguous()
