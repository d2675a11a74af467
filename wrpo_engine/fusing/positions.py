"""Positions of a source's tokens whose distributions a target's tokens take: exact spans, or dynamic time warping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a response in one model's vocabulary."""

    ids: Sequence[int]
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Matching:
    """How the tokens of a source are matched with the target's."""

    rule: Rule
    to_target: VocabularyMap
    """Of the source's vocabulary."""
    band: float = 1.0
    preference: Preference = Preference.LEFT_FIRST

    def is_match(self, target: Tokens, index: int, source: Tokens, place: int) -> bool:
        """Return whether two tokens are equal or, with MinED, one is mapped to the other."""
        if _is_equal(target.texts[index], source.texts[place], is_first=index == 0):
            return True
        return self.rule == "MinED" and bool(self.to_target.target_ids[source.ids[place]] == target.ids[index])


def by_warping(target: Tokens, source: Tokens, matching: Matching) -> Array:
    """Return for each of the target's tokens the source's token that is aligned with it, NONE where none fits.

    EM and MinED: exactly one token is matched, and it is equal or, with MinED, mapped to the target's. A blank before
    the first token does not count, because SentencePiece tokenizers write one. MS: the last of the matched tokens.
    """
    matches = warp(
        [text.replace(" ", "") for text in source.texts],
        [text.replace(" ", "") for text in target.texts],
        band=matching.band,
        preference=matching.preference,
    ).target_to_source(len(target.texts))
    found = np.full(len(target.texts), NONE, dtype=np.int64)
    for index, matched in enumerate(matches):
        last = matched[-1]
        if matching.rule == "MS" or (len(matched) == 1 and matching.is_match(target, index, source, last)):
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
