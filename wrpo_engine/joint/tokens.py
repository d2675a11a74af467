"""PackLLM's map between vocabularies: each token to the equal one, else to the one with the least edit distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wrpo_engine.fusing.vocabulary import UNMAPPED, edit_map, exact_map

Array = np.ndarray[Any, Any]
_MARKS = ("\u0120", "\u2581")


def space_mark(tokens: Sequence[str]) -> str:
    """Return the mark with which a vocabulary begins tokens after a blank: that of most tokens."""
    return max(_MARKS, key=lambda mark: sum(token.startswith(mark) for token in tokens))


def nearest_tokens(
    tokens: Sequence[str], others: Sequence[str], *, mark: str | None = None, other_mark: str | None = None
) -> Array:
    """Return for each token the place of the other vocabulary's token that stands for it.

    The equal one; else that of the text with the first mark exchanged, unless two marks follow each other; else the
    first one with the least edit distance to this text.
    """
    mark, other_mark = mark or space_mark(tokens), other_mark or space_mark(others)
    equal = exact_map(tokens, others).target_ids
    texts = [
        other_mark + token.removeprefix(mark) if token.startswith(mark) and not token.startswith(2 * mark) else token
        for token in tokens
    ]
    return np.where(equal != UNMAPPED, equal, edit_map(texts, others).target_ids)
