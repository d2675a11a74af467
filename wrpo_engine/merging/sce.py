"""SCE (select, calculate, erase) as FuseChat's authors have it.

mergekit's method of this name is another one: it merges only the selected elements, and it falls back to equal weights
if the sum of the mean squares is below 1e-6, which is their usual size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrpo_engine.merging.largest import Largest, largest
from wrpo_engine.merging.operands import Operands
from wrpo_engine.merging.recipe import Prepared


def prepare_sce(operands: Operands, top_k: float) -> Prepared:
    """Calculate the models' weights from the deltas' elements of highest variance; the first operand is the base."""
    weights = _weights(operands, _selection(operands, top_k))

    def combine(rows: slice) -> Tensor:
        base, deltas = operands.deltas(rows)
        positive = sum(deltas[1:], deltas[0]) >= 0
        total, divisor = torch.zeros_like(base), torch.zeros_like(base)
        for weight, delta in zip(weights, deltas, strict=True):
            # An element of sign 0 never agrees with the majority.
            share = torch.where(positive, delta > 0, delta < 0).to(base.dtype) * weight
            total += share * delta
            divisor += share
        return base + torch.where(divisor == 0, torch.zeros_like(base), total / divisor)

    return Prepared(combine=combine, weights=weights)


def _selection(operands: Operands, top_k: float) -> Largest | None:
    """Return the selection of the elements with the highest variance over models; None for all elements."""
    if top_k >= 1:
        return None
    variances = torch.cat([_variance(operands.deltas(rows)[1]).reshape(-1) for rows in operands.chunks()])
    return largest(variances, int(top_k * int(torch.count_nonzero(variances))))


def _variance(deltas: list[Tensor]) -> Tensor:
    return torch.var(torch.stack(deltas), dim=0, unbiased=False)


def _weights(operands: Operands, selection: Largest | None) -> tuple[float, ...]:
    """Return each model's mean square of the selected elements, with sum 1; equal ones if all are zero."""
    count = operands.count - 1
    sums = [0.0] * count
    for rows in operands.chunks():
        deltas = operands.deltas(rows)[1]
        mask = None if selection is None else selection.mask(_variance(deltas))
        for index, delta in enumerate(deltas):
            kept = delta if mask is None else delta * mask
            sums[index] += float(kept.double().square().sum())
    total = sum(sums)
    return tuple(value / total for value in sums) if total > 0 else (1 / count,) * count
