"""Choice of the largest elements of a tensor that is read in chunks, by a threshold that is found exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DIGIT = 16
"""Bits that are decided by one pass over the values."""
_SIZE = 1 << _DIGIT
_PIECE = 1 << 22


@dataclass
class Largest:
    """Selects the k largest of values that are shown in order; of those equal to the threshold the first ones."""

    threshold: float
    ties: int
    """Elements equal to the threshold that are still to be selected."""

    def mask(self, values: Tensor) -> Tensor:
        """Return which of the next values are selected."""
        chosen = values > self.threshold
        if self.ties:
            equal = values == self.threshold
            first = equal & (equal.reshape(-1).cumsum(0).reshape(equal.shape) <= self.ties)
            self.ties -= int(first.sum())
            chosen |= first
        return chosen


def largest(values: Tensor, k: int) -> Largest:
    """Return the selection of the k largest elements of a tensor of non-negative numbers.

    Non-negative floating-point numbers are in the order of their bits. So the k-th largest is found digit by digit from
    counts, without sorting: the memory needed does not depend on the size of the tensor.
    """
    if k <= 0:
        return Largest(threshold=float("inf"), ties=0)
    flat = values.reshape(-1)
    wide = flat.dtype == torch.float64
    bits = flat.numpy().view(np.uint64 if wide else np.uint32)
    prefix, wanted = 0, k
    for shift in range((64 if wide else 32) - _DIGIT, -1, -_DIGIT):
        counts = _counts(_pieces(bits), prefix, shift)
        from_top = counts[::-1].cumsum()
        digit = _SIZE - 1 - int(np.searchsorted(from_top, wanted))
        wanted -= int(from_top[_SIZE - 1 - digit]) - int(counts[digit])
        prefix = prefix << _DIGIT | digit
    kind = np.uint64 if wide else np.uint32
    threshold = np.array([prefix], dtype=kind).view(np.float64 if wide else np.float32)[0]
    return Largest(threshold=float(threshold), ties=wanted)


def _pieces(bits: np.ndarray[Any, Any]) -> Iterable[np.ndarray[Any, Any]]:
    return (bits[start : start + _PIECE] for start in range(0, len(bits), _PIECE))


def _counts(pieces: Iterable[np.ndarray[Any, Any]], prefix: int, shift: int) -> np.ndarray[Any, Any]:
    """Return how often each digit occurs at a place among the numbers whose higher digits are the prefix."""
    counts = np.zeros(_SIZE, dtype=np.int64)
    for piece in pieces:
        shifted = piece >> shift
        same = shifted if shift + _DIGIT >= 8 * piece.itemsize else shifted[shifted >> _DIGIT == prefix]
        counts += np.bincount((same & (_SIZE - 1)).astype(np.int64), minlength=_SIZE)
    return counts
