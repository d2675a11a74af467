"""The tokens of the user's last turn inside what a chat template writes around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wrpo_engine.text.chat import check_conversation, or_error, with_one_bos, written
from wrpo_engine.text.turns import PROMPT_MARK


@dataclass(frozen=True, slots=True)
class LastTurn:
    """A conversation's ids up to the end of the last turn's text."""

    ids: list[int]
    start: int
    """Place of the text's first token."""


def last_turn(tokenizer: Any, messages: Sequence[Mapping[str, str]], system: str | None = None) -> LastTurn:
    """Return the ids of a conversation as a model reads it, and where the text of its last turn begins.

    Arguments and errors are those of `conversation_prompt_ids`. A token that holds text of the turn and of the template
    belongs to the turn.
    """
    check_conversation(messages)
    marked = [*messages[:-1], {**messages[-1], "content": PROMPT_MARK}]
    turns, text = or_error(lambda: written(tokenizer, messages, system))
    _, frame = or_error(lambda: written(tokenizer, marked, system))
    before, _, after = frame.rpartition(PROMPT_MARK)
    whole, opening, closing = turns.encoder.encode([text, before, after])
    start = _common(opening, whole)
    end = max(start, len(whole) - _common(closing[::-1], whole[::-1]))
    ids = with_one_bos(tokenizer, whole)
    moved = len(ids) - len(whole)
    return LastTurn(ids[: end + moved], max(0, start + moved))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences share at the beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
