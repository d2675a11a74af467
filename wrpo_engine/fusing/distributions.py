"""Distributions over few ids: mapped to another vocabulary, normalised, chosen or averaged between models.

T positions, K entries each. An id below 0 marks an empty place; its logit is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

EMPTY = -1
_CELLS = 1 << 22
"""Pairs of entries that are compared at a time."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Kept:
    """The kept logits of T positions, log-probabilities up to a constant; a position without any is empty."""

    ids_TK: Array
    """int32, EMPTY where there is none."""
    logits_TK: Array
    """float32."""


def mapped(kept: Kept, target_ids: Array) -> Kept:
    """Return the entries under the target's ids. Of entries with one id the first stays; unmapped ones are dropped.

    So are ids beyond the map: embeddings may have more rows than their tokenizer has tokens.
    """
    is_known_TK = (kept.ids_TK != EMPTY) & (kept.ids_TK < len(target_ids))
    ids_TK = np.where(is_known_TK, target_ids[np.where(is_known_TK, kept.ids_TK, 0)], EMPTY).astype(np.int32)
    equal_TKK = ids_TK[:, :, None] == ids_TK[:, None, :]
    is_repeated_TK = np.tril(equal_TKK, k=-1).any(-1)
    return Kept(np.where(is_repeated_TK, EMPTY, ids_TK), kept.logits_TK)


def rows_at(kept: Kept, positions: Array) -> Kept:
    """Return the rows of the given positions; those of positions below 0 are empty."""
    ids_TK = kept.ids_TK[np.maximum(positions, 0)].copy() if len(kept.ids_TK) else _empty(len(positions), kept)
    logits_TK = kept.logits_TK[np.maximum(positions, 0)] if len(kept.ids_TK) else np.zeros(ids_TK.shape, np.float32)
    ids_TK[positions < 0] = EMPTY
    return Kept(ids_TK, logits_TK)


def _empty(positions: int, kept: Kept) -> Array:
    return np.full((positions, kept.ids_TK.shape[1]), EMPTY, dtype=np.int32)


def with_one_hot(kept: Kept, ids_T: Array) -> Kept:
    """Return the rows with a single entry, the position's id of `ids_T`, where they are empty."""
    is_empty_T = (kept.ids_TK == EMPTY).all(-1)
    ids_TK, logits_TK = kept.ids_TK.copy(), kept.logits_TK.copy()
    ids_TK[is_empty_T, 0] = ids_T[is_empty_T]
    logits_TK[is_empty_T, 0] = 1.0
    return Kept(ids_TK, logits_TK)


def one_hot_share(kept: Kept) -> float:
    """Return the share of positions without an entry, which become one-hot."""
    return float((kept.ids_TK == EMPTY).all(-1).mean()) if len(kept.ids_TK) else 0.0


def probabilities(kept: Kept, temperature: float = 1.0) -> Array:
    """Return the softmax of every position's kept logits alone, [T, K] in float32; 0 at empty places."""
    logits_TK = np.where(kept.ids_TK == EMPTY, -np.inf, kept.logits_TK.astype(np.float32) / np.float32(temperature))
    exponents_TK = np.exp(logits_TK - logits_TK.max(-1, keepdims=True))
    found: Array = exponents_TK / exponents_TK.sum(-1, keepdims=True)
    return found


def least(cross_entropies: Sequence[float]) -> int:
    """Return the index of the lowest cross-entropy (MinCE); the first of equals. NaN is never the lowest."""
    values = np.asarray(cross_entropies, dtype=np.float32)
    return int(np.argmin(np.where(np.isnan(values), np.inf, values)))


def average_weights(cross_entropies: Sequence[float]) -> Array:
    """Return the models' weights: the softmax of exp(-cross-entropy) (AvgCE). Models with NaN have the weight 0."""
    values = np.asarray(cross_entropies, dtype=np.float64)
    rewards = np.where(np.isnan(values), -np.inf, np.exp(-values))
    exponents = np.exp(rewards - rewards.max())
    found: Array = exponents / exponents.sum()
    return found


def averaged(ids: Sequence[Array], shares: Sequence[Array], weights: Array, top_k: int) -> tuple[Array, Array]:
    """Return the weighted sum of several models' distributions: ids [T, top_k], EMPTY where there is none, and shares.

    The likeliest `top_k` ids of a position are kept and divided by their sum; of equals the one that came first.
    """
    ids_TE = np.concatenate(ids, axis=1)
    shares_TE = np.concatenate([share * weight for share, weight in zip(shares, weights, strict=True)], axis=1)
    step = max(1, _CELLS // ids_TE.shape[1] ** 2)
    parts = [
        _summed(ids_TE[start : start + step], shares_TE[start : start + step], top_k)
        for start in range(0, len(ids_TE), step)
    ]
    return np.concatenate([part for part, _ in parts]), np.concatenate([part for _, part in parts])


def _summed(ids_TE: Array, shares_TE: Array, top_k: int) -> tuple[Array, Array]:
    """Return the `top_k` ids with the highest sums of shares, and these sums divided by their total."""
    is_entry_TE = ids_TE != EMPTY
    equal_TEE = (ids_TE[:, :, None] == ids_TE[:, None, :]) & is_entry_TE[:, :, None]
    totals_TE = np.where(equal_TEE, shares_TE[:, None, :], 0).sum(-1)
    is_repeated_TE = np.tril(equal_TEE, k=-1).any(-1)
    totals_TE[is_repeated_TE | ~is_entry_TE] = -1
    order_TK = np.argsort(-totals_TE, axis=1, kind="stable")[:, :top_k]
    kept_TK = np.maximum(np.take_along_axis(totals_TE, order_TK, axis=1), 0)
    ids_TK = np.where(kept_TK > 0, np.take_along_axis(ids_TE, order_TK, axis=1), EMPTY)
    return ids_TK.astype(np.int32), (kept_TK / kept_TK.sum(-1, keepdims=True)).astype(np.float32)
