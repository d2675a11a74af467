"""Maps from a source's vocabulary to the target's: equal tokens, least edit distance, statistics of alignments.

Tokens are compared as texts in which a blank takes the place of a tokenizer's mark for it (Ġ, ▁), one character a byte.
So byte-level and SentencePiece vocabularies are compared by what their tokens mean. None is a token without a text,
such as a special one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

UNMAPPED = -1
_WINDOWS = (1, 4, 16, 1 << 30)
"""Differences of length within which the nearest token is looked for, one after the other."""
_CELLS = 1 << 25
"""Distances that are computed at a time."""
_CONTAINED = 0.1
"""Factor of a pair's distance if one text contains the other (FuseChat)."""
Array = np.ndarray[Any, Any]


class Kind(StrEnum):
    """How a token of a source was mapped."""

    EXACT = "exact"
    EDIT = "edit"
    STATISTICS = "statistics"


@dataclass(frozen=True)
class VocabularyMap:
    """For each id of a source, the id of the target, or UNMAPPED."""

    target_ids: Array
    """int32."""
    distances: Array
    """Edit distance of the two texts, int32; 0 for exact and unmapped ones."""
    kinds: tuple[Kind | None, ...]

    def replaced(self, pairs: Mapping[int, int]) -> VocabularyMap:
        """Return the map with pairs of tokens that mean the same regardless of their texts, e.g. the ends of a turn."""
        target_ids, distances, kinds = self.target_ids.copy(), self.distances.copy(), list(self.kinds)
        for source, target in pairs.items():
            target_ids[source], distances[source], kinds[source] = target, 0, Kind.EXACT
        return VocabularyMap(target_ids, distances, tuple(kinds))

    @property
    def num_exact(self) -> int:
        """Tokens that both vocabularies have."""
        return sum(kind is Kind.EXACT for kind in self.kinds)


def identity_map(size: int) -> VocabularyMap:
    """Return the map of a vocabulary to itself, special tokens included."""
    return VocabularyMap(np.arange(size, dtype=np.int32), np.zeros(size, dtype=np.int32), (Kind.EXACT,) * size)


def first_token_ids(
    base: VocabularyMap, source: Sequence[str | None], target: Sequence[str | None]
) -> tuple[Array, Array]:
    """Return maps for the first token of a text if only one tokenizer writes a blank in front of it.

    The first map is for a source that does: its tokens lose the blank. The second is for a target that does: they get
    one. Tokens without an equal one are unmapped.
    """
    known: dict[str, int] = {}
    for index, text in enumerate(target):
        if text is not None:
            known.setdefault(text, index)
    less, more = base.target_ids.copy(), base.target_ids.copy()
    for index, text in enumerate(source):
        if text:
            less[index] = known.get(text[1:], UNMAPPED) if text.startswith(" ") else UNMAPPED
            more[index] = known.get(f" {text}", UNMAPPED)
    return less, more


def exact_map(source: Sequence[str | None], target: Sequence[str | None]) -> VocabularyMap:
    """Map each token of the source to the target's token of the same text; of equal ones to the first."""
    known: dict[str, int] = {}
    for index, text in enumerate(target):
        if text is not None:
            known.setdefault(text, index)
    found = [UNMAPPED if text is None else known.get(text, UNMAPPED) for text in source]
    kinds = tuple(None if index == UNMAPPED else Kind.EXACT for index in found)
    return VocabularyMap(np.array(found, dtype=np.int32), np.zeros(len(found), dtype=np.int32), kinds)


def edit_map(source: Sequence[str | None], target: Sequence[str | None]) -> VocabularyMap:
    """Map each token to the target's equal one, otherwise to the first one with the least edit distance (MinED)."""
    exact = exact_map(source, target)
    target_ids, distances, kinds = exact.target_ids.copy(), exact.distances.copy(), list(exact.kinds)
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, text in enumerate(source):
        if text is not None and target_ids[index] == UNMAPPED:
            by_length[len(text)].append(index)
    choices = _Choices.of(target)
    if not choices.texts:
        return exact
    for length, queries in by_length.items():
        nearest = choices.nearest([str(source[index]) for index in queries], length)
        for index, (best, distance) in zip(queries, nearest, strict=True):
            target_ids[index], distances[index], kinds[index] = best, distance, Kind.EDIT
    return VocabularyMap(target_ids, distances, tuple(kinds))


@dataclass(frozen=True)
class _Choices:
    """The target's texts, with their ids and lengths."""

    texts: list[str]
    ids: Array
    lengths: Array

    @classmethod
    def of(cls, target: Sequence[str | None]) -> _Choices:
        kept = [(index, text) for index, text in enumerate(target) if text is not None]
        ids = np.array([index for index, _ in kept], dtype=np.int32)
        return cls([text for _, text in kept], ids, np.array([len(text) for _, text in kept], dtype=np.int32))

    def nearest(self, queries: list[str], length: int) -> list[tuple[int, int]]:
        """Return (id, distance) of the nearest text to each query of one length; the first of equals.

        A text whose length differs by w has at least the distance w. So a nearest text within a window of lengths is
        the nearest of all if its distance is no more than the window.
        """
        found: list[tuple[int, int]] = [(UNMAPPED, 0)] * len(queries)
        open_ = list(range(len(queries)))
        for window in _WINDOWS:
            inside = np.flatnonzero(np.abs(self.lengths - length) <= window)
            if not open_ or not len(inside):
                continue
            texts = [self.texts[index] for index in inside]
            undecided: list[int] = []
            step = max(1, _CELLS // len(texts))
            for start in range(0, len(open_), step):
                part = open_[start : start + step]
                # Beyond the window a distance decides nothing yet: the cut-off saves most of the work.
                table = process.cdist(
                    [queries[index] for index in part],
                    texts,
                    scorer=Levenshtein.distance,
                    dtype=np.int32,
                    score_cutoff=min(window, max(length, int(self.lengths.max()))),
                )
                best = table.argmin(axis=1)
                for index, column, distance in zip(part, best, table[np.arange(len(part)), best], strict=True):
                    if distance > window:
                        undecided.append(index)
                    else:
                        found[index] = (int(self.ids[inside[column]]), int(distance))
            open_ = undecided
        return found


Weighting = Literal["Sigmoid", "Count"]


def statistics_map(
    counts: Iterable[tuple[int, int, float]],
    first: Sequence[str | None],
    second: Sequence[str | None],
    *,
    by: Weighting,
) -> dict[int, int]:
    """Return for tokens of the first vocabulary the second's that fits best, from counts of aligned pairs (MS).

    `counts` are (id of the first, id of the second, times that they are aligned). Sigmoid is FuseChat's rule: the least
    distance * w * sigmoid(count), w = 0.1 if one text contains the other. As the sigmoid grows with the count, frequent
    pairs lose against rare ones. Count: the highest count, then the least distance. Of equals the lowest id. Texts are
    compared without blanks. Tokens that are aligned with none are left out.
    """
    best: dict[int, tuple[tuple[float, ...], int]] = {}
    for one, other, count in sorted(counts):
        if count <= 0:
            continue
        left, right = ((text or "").replace(" ", "") for text in (first[one], second[other]))
        distance = Levenshtein.distance(left, right) * (_CONTAINED if left in right or right in left else 1.0)
        score = (distance / (1 + np.exp(-count)),) if by == "Sigmoid" else (-count, distance)
        if one not in best or score < best[one][0]:
            best[one] = (score, other)
    return {one: other for one, (_, other) in best.items()}


def with_statistics(
    base: VocabularyMap, pairs: Mapping[int, int], source: Sequence[str | None], target: Sequence[str | None]
) -> VocabularyMap:
    """Return the map in which tokens that are not exact are mapped by statistics where these know them."""
    target_ids, distances, kinds = base.target_ids.copy(), base.distances.copy(), list(base.kinds)
    for one, other in pairs.items():
        if kinds[one] is not Kind.EXACT:
            target_ids[one], kinds[one] = other, Kind.STATISTICS
            distances[one] = Levenshtein.distance(source[one] or "", target[other] or "")
    return VocabularyMap(target_ids, distances, tuple(kinds))
