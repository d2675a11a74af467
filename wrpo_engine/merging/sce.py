"""SCE (select, calculate, erase) as FuseChat's authors have it.

mergekit's method of this name is another one: it merges only the selected elements, and it falls back to equal weights
if the sum of the mean squares is below 1e-6, which is their usual size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wrpo_engine.merging.election import of_majority, total_of
from wrpo_engine.merging.largest import largest
from wrpo_engine.merging.operands import Operands
from wrpo_engine.merging.recipe import Prepared


def prepare_sce(operands: Operands, top_k: float) -> Prepared:
    """Calculate the models' weights from the deltas' elements of highest variance; the first operand is the base."""
    weights = _weights(operands, _selection(operands, top_k))

    def combine(rows: slice) -> Tensor:
        base, deltas = operands.deltas(rows)
        total, divisor = of_majority(deltas, total_of(deltas), weights, weights)
        # Where no delta agrees, the total is 0, too.
        return base + total.div_(divisor.masked_fill_(divisor == 0, 1))

    return Prepared(combine=combine, weights=weights)


def _selection(operands: Operands, top_k: float) -> Callable[[slice], Tensor] | None:
    """Return which of some rows' elements have the highest variance over models; None for all elements."""
    if top_k >= 1:
        return None
    variances = operands.collected(lambda rows: _variance(operands.all(rows)[1:]))
    selection = largest(variances, int(top_k * int(torch.count_nonzero(variances))))
    return lambda rows: selection.mask(variances[rows], operands.start(rows))


def _variance(values: list[Tensor]) -> Tensor:
    """Return each element's variance over models. It is that of the deltas, because the base moves all models alike.

    Differences from the first model make it exactly 0 where all are equal. torch.var is ten times slower.
    """
    first, *others = values
    shifted = [other - first for other in others]
    mean = total_of(shifted).div_(len(values))
    squares = mean.square()
    for value in shifted:
        value.sub_(mean)
        squares.addcmul_(value, value)
    return squares.div_(len(values))


def _weights(operands: Operands, selection: Callable[[slice], Tensor] | None) -> tuple[float, ...]:
    """Return each model's mean square of the selected elements, with sum 1; equal ones if all are zero."""

    def squares(rows: slice) -> list[float]:
        base, deltas = operands.deltas(rows)
        if selection is not None:
            mask = selection(rows).to(base.dtype)
            deltas = [delta.mul_(mask) for delta in deltas]
        return [float(delta.reshape(-1) @ delta.reshape(-1)) for delta in deltas]

    sums = [sum(values) for values in zip(*(found for _, found in operands.mapped(squares)), strict=True)]
    total = sum(sums)
    return tuple(value / total for value in sums) if total > 0 else (1 / len(sums),) * len(sums)
