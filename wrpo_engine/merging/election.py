"""Merge of the deltas that have the majority's sign, element by element, as in TIES and SCE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def total_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors in their order, which decides the sign of sums near zero."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


def of_majority(
    deltas: Sequence[Tensor], majority: Tensor, factors: Sequence[float], shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the sum of the agreeing deltas times factors, and the sum of these deltas' shares.

    A delta agrees where it has the sign of `majority`, of which 0 counts as positive. A delta of 0 never agrees.
    """
    sign = torch.where(majority >= 0, 1, -1).to(majority.dtype)
    total, divisor = torch.zeros_like(majority), torch.zeros_like(majority)
    for delta, factor, share in zip(deltas, factors, shares, strict=True):
        size = (delta * sign).clamp_(min=0)
        total.add_(size, alpha=factor)
        divisor.add_(size.sign_(), alpha=share)
    return total.mul_(sign), divisor
