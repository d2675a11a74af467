"""Dynamic time warping between two tokenizations of one text, by edit distance of tokens, as FuseLLM and FuseChat do.

D(i, j) = c(i, j) + min(D(i-1, j), D(i, j-1), D(i-1, j-1)). The path is followed back from the end,
each time to the predecessor with the least D, which is not always the one that gave D(i, j). Equal ones have an order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

_MIN_HALF_WIDTH = 32
"""Tokens; shorter sequences than this have no band."""
_INFINITE = math.inf


class Preference(Enum):
    """Order in which equal predecessors are taken; the first sequence is the source's."""

    UP_FIRST = "diagonal, up, left"
    """FuseLLM: after the diagonal the same token of the target."""
    LEFT_FIRST = "diagonal, left, up"
    """FuseChat: after the diagonal the same token of the source."""


@dataclass(frozen=True, slots=True)
class Warping:
    """The path of least cost between a source's and the target's tokens."""

    matches: list[tuple[int, int]]
    """(source token, target token), in order."""
    cost: float

    def target_to_source(self, num_target: int) -> list[list[int]]:
        """Return for each of the target's tokens the source's tokens it is matched with, in order."""
        found: list[list[int]] = [[] for _ in range(num_target)]
        for source, target in self.matches:
            found[target].append(source)
        return found

    def source_to_target(self, num_source: int) -> list[list[int]]:
        """Return for each of the source's tokens the target's tokens it is matched with, in order."""
        found: list[list[int]] = [[] for _ in range(num_source)]
        for source, target in self.matches:
            found[source].append(target)
        return found


def warp(
    source: Sequence[str], target: Sequence[str], *, band: float = 1.0, preference: Preference = Preference.LEFT_FIRST
) -> Warping:
    """Return the warping of two sequences of token texts without their blanks.

    Pairs are at most `band`, a share of the sequence, away from the diagonal. If the path touches the band's border,
    the band is doubled, so that only a path that leaves and re-enters it could be missed. ValueError for an empty
    sequence.
    """
    if not source or not target:
        raise ValueError(f"both sequences need tokens; got {len(source)} and {len(target)}")
    costs = _costs(source, target)
    half_width = max(_MIN_HALF_WIDTH, math.ceil(band * len(target)), 2 * math.ceil(len(target) / len(source)))
    while True:
        bounds = _bounds(len(source), len(target), half_width)
        found = _backtracked(_table(costs, bounds), preference)
        is_whole = half_width >= len(target)
        if is_whole or not _touches(found.matches, bounds, len(target)):
            return found
        half_width *= 2


def _costs(source: Sequence[str], target: Sequence[str]) -> list[list[int]]:
    """Return the edit distances of all pairs; each pair of different texts is computed once."""
    sources, targets = list(dict.fromkeys(source)), list(dict.fromkeys(target))
    distances = process.cdist(sources, targets, scorer=Levenshtein.distance, dtype=np.int32)
    rows = {text: index for index, text in enumerate(sources)}
    columns = {text: index for index, text in enumerate(targets)}
    picked: Any = distances[np.ix_([rows[text] for text in source], [columns[text] for text in target])]
    costs: list[list[int]] = picked.tolist()
    return costs


def _bounds(num_source: int, num_target: int, half_width: int) -> list[tuple[int, int]]:
    """Return for each row the first column of the band and the one after its last; the corners are in it."""
    slope = (num_target - 1) / max(1, num_source - 1)
    middles = [round(row * slope) for row in range(num_source)]
    middles[-1] = num_target - 1 if num_source > 1 else 0
    bounds = [(max(0, middle - half_width), min(num_target, middle + half_width + 1)) for middle in middles]
    return [(0, num_target)] if num_source == 1 else bounds


def _table(costs: list[list[int]], bounds: list[tuple[int, int]]) -> list[list[float]]:
    """Return D, infinite outside the band."""
    width = len(costs[0])
    before = [_INFINITE] * width
    table: list[list[float]] = []
    for row, (start, stop) in enumerate(bounds):
        values = [_INFINITE] * width
        left = _INFINITE
        for column in range(start, stop):
            best = min(before[column], left, before[column - 1] if column else _INFINITE)
            left = values[column] = costs[row][column] + (best if row or column else 0)
        table.append(values)
        before = values
    return table


def _backtracked(table: list[list[float]], preference: Preference) -> Warping:
    row, column = len(table) - 1, len(table[0]) - 1
    cost = table[row][column]
    matches = [(row, column)]
    while row or column:
        diagonal = table[row - 1][column - 1] if row and column else _INFINITE
        up = table[row - 1][column] if row else _INFINITE
        left = table[row][column - 1] if column else _INFINITE
        up_wins = up <= left if preference is Preference.UP_FIRST else up < left
        if diagonal <= min(up, left) and row and column:
            row, column = row - 1, column - 1
        elif up_wins:
            row -= 1
        else:
            column -= 1
        matches.append((row, column))
    return Warping(matches[::-1], cost)


def _touches(matches: list[tuple[int, int]], bounds: list[tuple[int, int]], width: int) -> bool:
    return any(
        (column == bounds[row][0] and column > 0) or (column == bounds[row][1] - 1 and column < width - 1)
        for row, column in matches
    )
