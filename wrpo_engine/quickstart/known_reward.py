"""Reward of the study: a rule, so that the best possible response and its score are known."""

from __future__ import annotations

import re
from collections.abc import Sequence

OPTIMUM = 1.0
"""The highest score. A response reaches it without any knowledge of facts."""
WORDS = (5, 14)
"""Fewest and most words of a response of full length."""
TOPIC_LETTERS = 4
"""Words of the prompt with at least this many letters are its topic."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def plain_sentence(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return the score of each response, from 0 to 1.

    The score is the mean of four parts, each from 0 to 1: a length of 5 to 14 words, no repeated word, a mark at the
    end of the sentence, and a word of the prompt's topic. A response without a word scores 0.
    """
    return [_score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _score(prompt: str, response: str) -> float:
    words = [word.lower() for word in _WORD.findall(response)]
    if not words:
        return 0.0
    parts = (
        _length(len(words)),
        _variety(words),
        float(response.rstrip().endswith((".", "!", "?"))),
        _on_topic(prompt, words),
    )
    return sum(parts) / len(parts)


def _length(words: int) -> float:
    fewest, most = WORDS
    if words < fewest:
        return words / fewest
    return max(0.0, 1 - max(0, words - most) / most)


def _variety(words: Sequence[str]) -> float:
    return len(set(words)) / len(words)


def _on_topic(prompt: str, words: Sequence[str]) -> float:
    topic = {word.lower() for word in _WORD.findall(prompt) if len(word) >= TOPIC_LETTERS}
    return float(not topic or not topic.isdisjoint(words))
