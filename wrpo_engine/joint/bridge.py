"""EVA's bridge between vocabularies: embeddings of two models in one space, by the tokens that both have.

The closed form is VecMap's for a given dictionary: whitening, orthogonal map, re-weighting, de-whitening.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wrpo_engine.errors import DataError

Array = np.ndarray[Any, Any]
_BATCH = 256
"""Tokens of the other model whose similarities exist at a time."""
_FLAT_COUNT = 5
_FLAT_STD = 0.01
"""More candidates than this with a smaller standard deviation say nothing: EVA maps such a token to none."""
_SINGULAR = 1e-6
"""Smallest singular value of the anchors as a share of the largest one."""


def anchors_of(main: Sequence[str | None], other: Sequence[str | None]) -> list[tuple[int, int]]:
    """Return the ids of the tokens that both vocabularies have; of equal texts the first."""
    known: dict[str, int] = {}
    for index, text in enumerate(main):
        if text is not None:
            known.setdefault(text, index)
    pairs: dict[str, tuple[int, int]] = {}
    for index, text in enumerate(other):
        if text is not None and text in known:
            pairs.setdefault(text, (known[text], index))
    return sorted(pairs.values())


def project(main: Array, other: Array, anchors: Sequence[tuple[int, int]]) -> tuple[Array, Array]:
    """Return both embeddings in one space, [tokens, dimensions]; in float64.

    Raises DataError if the anchors are fewer than the dimensions, or do not span them.
    """
    dimensions = max(main.shape[1], other.shape[1])
    if len(anchors) < dimensions:
        raise DataError(
            f"the vocabularies have {len(anchors)} tokens in common, but embeddings of {dimensions} dimensions need at "
            f"least {dimensions} to be compared",
            code="AnchorsTooFew",
            field="evaluation.systems",
            hint="Use members whose tokenizers share more tokens, or smaller models; PackSim needs no common tokens.",
        )
    x, z = _normalised(main), _normalised(other)
    pairs = np.array(anchors)
    white_x, white_z = _whitening(x[pairs[:, 0]]), _whitening(z[pairs[:, 1]])
    anchor_x, anchor_z = x[pairs[:, 0]] @ white_x, z[pairs[:, 1]] @ white_z
    u, s, v = np.linalg.svd(anchor_x.T @ anchor_z, full_matrices=False)
    root = np.sqrt(s)
    return (
        (x @ white_x @ u * root) @ u.T @ np.linalg.inv(white_x) @ u,
        (z @ white_z @ v.T * root) @ v @ np.linalg.inv(white_z) @ v.T,
    )


def unit(rows: Array) -> Array:
    """Return rows of length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths == 0, 1, lengths))


def _normalised(rows: Array) -> Array:
    first = unit(rows.astype(np.float64))
    return unit(first - first.mean(axis=0))


def _whitening(anchors: Array) -> Array:
    _, s, v = np.linalg.svd(anchors, full_matrices=False)
    rank = int((s > _SINGULAR * s[0]).sum())
    if rank < anchors.shape[1]:
        raise DataError(
            f"the {len(anchors)} common tokens' embeddings span {rank} of {anchors.shape[1]} dimensions, so the "
            "embeddings cannot be compared",
            code="AnchorsTooFew",
            field="evaluation.systems",
            hint="Use members whose tokenizers share more tokens, or smaller models; PackSim needs no common tokens.",
        )
    return np.asarray(v.T / s @ v)


def similarities(main: Array, other: Array, untouched: Sequence[int] = ()) -> Array:
    """Return CSLS with neighbourhood 1, [main tokens, other tokens], of rows of length 1.

    2 cos(x, z) minus the highest cosine that z has. `untouched` are tokens of the other model, such as special ones,
    from which nothing is subtracted.
    """
    cosines = main @ other.T
    nearest = cosines.max(axis=0)
    nearest[list(untouched)] = 0
    return np.asarray(2 * cosines - nearest)


def bridge(main: Array, other: Array, same: Mapping[int, int], *, neighbours: int, threshold: float) -> Tensor:
    """Return the map of distributions, sparse [other tokens, main tokens], of projected embeddings.

    A token goes to its `neighbours` most similar tokens with at least the `threshold`, by their similarities, which
    are divided by their sum, so that a distribution stays one. Many equally similar ones mean nothing. `same` are
    tokens (other -> main) that mean the same, such as the ends of a turn.
    """
    x, z = unit(main).astype(np.float32), unit(other).astype(np.float32)
    rows: list[Array] = []
    columns: list[Array] = []
    values: list[Array] = []
    for start in range(0, len(z), _BATCH):
        table = similarities(x, z[start : start + _BATCH])
        for place, found in enumerate(table.T):
            index = start + place
            chosen, shares = _neighbours(found, neighbours, threshold)
            if index in same:
                chosen, shares = np.array([same[index]]), np.ones(1)
            rows.append(np.full(len(chosen), index))
            columns.append(chosen)
            values.append(shares)
    indices = np.stack([np.concatenate(rows), np.concatenate(columns)])
    weights = torch.from_numpy(np.concatenate(values).astype(np.float32))
    return torch.sparse_coo_tensor(
        torch.from_numpy(indices), weights, (len(z), len(x)), check_invariants=True
    ).coalesce()


def _neighbours(found: Array, neighbours: int, threshold: float) -> tuple[Array, Array]:
    size = min(neighbours, len(found))
    best = np.argpartition(-found, size - 1)[:size]
    best = best[found[best] >= threshold]
    shares = found[best]
    if len(best) == 0 or (len(best) > _FLAT_COUNT and shares.std() <= _FLAT_STD):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    return best, shares / shares.sum()
