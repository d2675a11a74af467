"""Choice of the largest elements of a tensor by a threshold that is found exactly, without sorting the tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

_SAMPLE = 1 << 18
_MARGIN = 4.5
"""Half the width of the bracket, in standard deviations of a rank in the sample."""
_PIECE = 1 << 18
"""Elements that are compared at a time, so that intermediate results stay in the caches."""

_Values: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Largest:
    """The k largest elements of a tensor; of those equal to the threshold the first ones."""

    threshold: float
    end: int
    """Place in the flat tensor from which elements equal to the threshold are not selected."""

    def mask(self, values: Tensor, start: int) -> Tensor:
        """Return which of the values are selected, the first of which is at place `start` of the flat tensor."""
        flat = values.reshape(-1)
        before = min(max(self.end - start, 0), flat.numel())
        chosen = torch.cat([flat[:before] >= self.threshold, flat[before:] > self.threshold])
        return chosen.reshape(values.shape)


def largest(values: Tensor, k: int) -> Largest:
    """Return the selection of the k largest elements of a tensor.

    A sample gives two values that are close to the k-th largest one, below and above it. One pass then counts the
    larger elements and collects those between, of which there are few.
    """
    if k <= 0:
        return Largest(threshold=math.inf, end=0)
    flat = values.reshape(-1).numpy()
    threshold, ties = _threshold(flat, k)
    return Largest(threshold=threshold, end=_end(flat, threshold, ties))


def _threshold(values: _Values, k: int) -> tuple[float, int]:
    """Return the k-th largest element, and how many elements that are equal to it are among the k largest."""
    if values.size > _SAMPLE:
        low, high = _bracket(values, k)
        larger, at_high, between, at_low = _divided(values, low, high)
        # Many elements may have one of the two values: differences of bf16 numbers have few values.
        rest = k - larger
        if 0 < rest <= at_high:
            return high, rest
        if 0 < rest - at_high <= between.size:
            return _kth(between, rest - at_high)
        if 0 < rest - at_high - between.size <= at_low:
            return low, rest - at_high - between.size
    # Few elements, or the sample is not like the tensor.
    return _kth(values, k)


def _bracket(values: _Values, k: int) -> tuple[float, float]:
    """Return two values between which, or at which, the k-th largest element is expected."""
    places = np.random.default_rng(0).integers(values.size, size=_SAMPLE)
    sample = np.sort(values[places])
    share = 1 - k / values.size
    margin = _MARGIN * (share * (1 - share) / _SAMPLE) ** 0.5 + 1 / _SAMPLE
    low, high = (round((share + sign * margin) * _SAMPLE) for sign in (-1, 1))
    return float(sample[low]) if low >= 0 else -math.inf, float(sample[high]) if high < _SAMPLE else math.inf


def _divided(values: _Values, low: float, high: float) -> tuple[int, int, _Values, int]:
    """Return the numbers of elements above `high` and at it, the elements between, and the number at a lower `low`."""
    larger = at_high = at_low = 0
    between: list[_Values] = []
    for start in range(0, values.size, _PIECE):
        piece = values[start : start + _PIECE]
        below = piece < high
        above = int(np.count_nonzero(piece > high))
        larger += above
        at_high += piece.size - above - int(np.count_nonzero(below))
        inside = below & (piece > low)
        at_low += int(np.count_nonzero(below & (piece >= low))) - int(np.count_nonzero(inside))
        between.append(piece[inside])
    return larger, at_high, np.concatenate(between), at_low


def _kth(values: _Values, k: int) -> tuple[float, int]:
    threshold = np.partition(values, values.size - k)[values.size - k]
    return float(threshold), k - int(np.count_nonzero(values > threshold))


def _end(values: _Values, threshold: float, ties: int) -> int:
    """Return the place after the first `ties` elements that are equal to the threshold."""
    for start in range(0, values.size, _PIECE):
        places = np.flatnonzero(values[start : start + _PIECE] == threshold)
        if len(places) >= ties:
            return start + int(places[ties - 1]) + 1
        ties -= len(places)
    raise AssertionError("the threshold is an element")
