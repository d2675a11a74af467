"""Positions of a source's tokens whose distributions a target's tokens take: exact spans, or dynamic time warping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from wrpo_engine.fusing.dtw import Preference, warp
from wrpo_engine.fusing.vocabulary import VocabularyMap

NONE = -1
OUTSIDE = -1
"""Start of a label that is no part of the text, such as white space of the template."""
END = -2
"""Start of the label that ends the turn."""
Array = np.ndarray[Any, Any]


def by_spans(target_starts: Sequence[int], source_starts: Sequence[int]) -> Array:
    """Return for each of the target's labels the source's label that begins at the same byte, NONE where none does.

    Both are predicted after the same bytes of the text. Tokens that split a character begin within it.
    """
    # Of labels with one start only the last one has bytes.
    known = {start: index for index, start in enumerate(source_starts) if start != OUTSIDE}
    return np.array([known.get(start, NONE) if start != OUTSIDE else NONE for start in target_starts], dtype=np.int64)


Rule = Literal["EM", "MinED", "MS"]


def by_warping(
    target: Sequence[str],
    source: Sequence[str],
    *,
    rule: Rule,
    target_ids: Sequence[int] = (),
    source_ids: Sequence[int] = (),
    vocabulary: VocabularyMap | None = None,
    band: float = 1.0,
    preference: Preference = Preference.LEFT_FIRST,
) -> Array:
    """Return for each of the target's tokens the source's token that is aligned with it, NONE where none fits.

    EM and MinED: exactly one token is matched, and it is equal or, with MinED, mapped to the target's. A blank before
    the first token does not count, because SentencePiece tokenizers write one. MS: the last of the matched tokens.
    """
    matches = warp(
        [text.replace(" ", "") for text in source],
        [text.replace(" ", "") for text in target],
        band=band,
        preference=preference,
    ).target_to_source(len(target))
    found = np.full(len(target), NONE, dtype=np.int64)
    for index, matched in enumerate(matches):
        last = matched[-1]
        if rule == "MS" or (
            len(matched) == 1
            and (
                _is_equal(target[index], source[last], is_first=index == 0)
                or (
                    rule == "MinED"
                    and vocabulary is not None
                    and vocabulary.target_ids[source_ids[last]] == target_ids[index]
                )
            )
        ):
            found[index] = last
    return found


def _is_equal(target: str, source: str, *, is_first: bool) -> bool:
    return target == source or (is_first and target.removeprefix(" ") == source.removeprefix(" "))


def predicted(aligned: Array) -> Array:
    """Turn positions of aligned tokens into positions of labels: what follows a token predicts the next label.

    The first labels of both follow their prompts.
    """
    found = np.full(len(aligned), NONE, dtype=np.int64)
    found[0] = 0
    previous = aligned[:-1]
    found[1:] = np.where(previous == NONE, NONE, previous + 1)
    return found
