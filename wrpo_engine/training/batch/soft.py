"""Soft targets: distributions over a few ids each, in place of one-hot targets (the fusion loss).

The loss of a token is weight * fusion + (1 - weight) * cross-entropy. Both are linear in the target, so one target
holds both: (1 - weight) on the token itself, and weight times the fused distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class FusedRow:
    """Fused distributions of a response's T tokens, over at most K ids each."""

    ids_TK: np.ndarray[Any, Any]
    """Ids, int32; unused places have probability 0."""
    probabilities_TK: np.ndarray[Any, Any]
    """Probabilities, float16 or wider; every token's are divided by their sum."""
    weight: float
    """Share of the fusion loss; the rest is the cross-entropy of the response's tokens."""


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """Targets of R tokens: weights with sum 1 over K ids each. Ids of a token are distinct where weights are not 0."""

    ids_RK: Tensor
    weights_RK: Tensor

    def __getitem__(self, part: slice) -> SoftTargets:
        return SoftTargets(self.ids_RK[part], self.weights_RK[part])

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> SoftTargets:
        """Return the targets with both tensors changed, e.g. copied to a device."""
        return SoftTargets(change(self.ids_RK), change(self.weights_RK))


def mixed_targets(rows: Sequence[FusedRow], labels_R: Tensor) -> SoftTargets:
    """Return the targets of the rows' tokens in turn, with the labels' share in the last column.

    Raise ValueError unless the rows have as many tokens as there are labels.
    """
    lengths = [len(row.ids_TK) for row in rows]
    if sum(lengths) != len(labels_R):
        raise ValueError(f"{sum(lengths)} fused distributions for {len(labels_R)} tokens with loss")
    width = max(row.ids_TK.shape[1] for row in rows)
    ids_RK = np.zeros((len(labels_R), width + 1), dtype=np.int64)
    weights_RK = np.zeros((len(labels_R), width + 1), dtype=np.float32)
    labels = labels_R.numpy()
    start = 0
    for row, length in zip(rows, lengths, strict=True):
        part = slice(start, start + length)
        kept = row.ids_TK.shape[1]
        probabilities = row.probabilities_TK.astype(np.float32)
        ids_RK[part, :kept] = row.ids_TK
        weights_RK[part, :kept] = probabilities / probabilities.sum(-1, keepdims=True) * np.float32(row.weight)
        weights_RK[part, width] = np.float32(1 - row.weight)
        start += length
    # The label has a separate place: no id is there twice, so that the order of additions on a GPU does not matter.
    is_label = ids_RK[:, :width] == labels[:, None]
    weights_RK[:, width] += np.where(is_label, weights_RK[:, :width], 0).sum(-1)
    weights_RK[:, :width][is_label] = 0
    ids_RK[:, width] = labels
    return SoftTargets(torch.from_numpy(ids_RK), torch.from_numpy(weights_RK))
