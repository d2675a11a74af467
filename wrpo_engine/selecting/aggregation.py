"""Scores and ranks of candidates from comparisons of pairs, as LLM-Blender defines them (arXiv:2306.02561). Pure.

M[i, j] is the logit of candidate i, on the left, against candidate j, on the right; above 0, i is better. Both orders
count, because a ranker prefers a side. The diagonal is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Aggregation: TypeAlias = Literal["MaxLogits", "MaxWins"]
Matrix: TypeAlias = NDArray[np.float64]


def max_logits(logits_NN: Matrix) -> Matrix:  # noqa: N803 (shape suffixes)
    """Return each candidate's score [N]: the mean over all N candidates, itself included, of M[i, j] - M[j, i]."""
    scores: Matrix = (logits_NN - logits_NN.T).mean(axis=1)
    return scores


def max_wins(logits_NN: Matrix) -> Matrix:  # noqa: N803
    """Return each candidate's number of wins [N], of 2(N - 1): on the left (M[i, j] > 0) and the right (M[j, i] < 0).

    The released code ranks by these. What it returns as scores is `max_wins_as_released`.
    """
    wins: Matrix = ((logits_NN > 0).sum(axis=1) + (logits_NN < 0).sum(axis=0)).astype(np.float64)
    return wins


def max_wins_as_released(logits_NN: Matrix) -> Matrix:  # noqa: N803
    """Return the scores [N] of the released code: wins on the left plus the share, not the number, of those on the
    right. Compatible with published scores; nothing here ranks by them.
    """
    scores: Matrix = (logits_NN > 0).sum(axis=1) + (logits_NN < 0).mean(axis=0)
    return scores


def scores_of(logits_NN: Matrix, aggregation: Aggregation) -> Matrix:  # noqa: N803
    """Return each candidate's score [N], higher is better."""
    return max_logits(logits_NN) if aggregation == "MaxLogits" else max_wins(logits_NN)


def ranks_of(scores: Sequence[float] | Matrix) -> list[int]:
    """Return each candidate's rank: 1 is the highest score, and equal scores share the better rank."""
    ordered = sorted(scores, reverse=True)
    return [ordered.index(score) + 1 for score in scores]


def best_of(scores: Sequence[float] | Matrix) -> int:
    """Return the index of the best rank; of equal ones the first."""
    ranks = ranks_of(scores)
    return ranks.index(min(ranks))


def bubble(logits_NN: Matrix, order: Sequence[int]) -> list[int]:  # noqa: N803
    """Return the better candidate of each step of one pass over `order`; the last one is the best.

    The better one so far meets the next candidate in both orders, and stays if M[c, n] - M[n, c] is above 0. It asks
    for O(N) comparisons instead of O(N^2), but its result depends on the order.
    """
    winners: list[int] = []
    current = order[0]
    for candidate in order[1:]:
        stays = logits_NN[current, candidate] - logits_NN[candidate, current] > 0
        current = current if stays else candidate
        winners.append(current)
    return winners
