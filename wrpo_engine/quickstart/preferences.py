"""Training data of the quickstart's reward model: real responses, each with some that are worse by construction.

There are four kinds of worse response, each for one property: another prompt's response (relevance), a truncated one
(completeness), its words in another order (grammar), and a piece of it over and over (the loops small models fall
into). Nothing is labelled by hand and no model's output is called good or bad.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from wrpo_engine.quickstart.corpus import Exchange

RELEVANCE, COMPLETENESS, GRAMMAR, REPETITION = "relevance", "completeness", "grammar", "repetition"
_MIN_WORDS = 5
"""Shorter responses cannot be cut, shuffled or looped in a way that is surely worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One prompt, its real response, and worse ones with the kind of each."""

    prompt: str
    chosen: str
    rejected: tuple[str, ...]
    kinds: tuple[str, ...]


def comparison_of(exchange: Exchange, others: Sequence[Exchange], generator: random.Random) -> Comparison:
    """Return the exchange with two other prompts' responses, and one damaged form of its response if long enough."""
    elsewhere = [other.response for other in others if other.response != exchange.response]
    rejected = generator.sample(elsewhere, 2)
    kinds = [RELEVANCE, RELEVANCE]
    words = exchange.response.split()
    if len(words) >= _MIN_WORDS:
        kind = generator.choice([COMPLETENESS, GRAMMAR, REPETITION])
        kinds.append(kind)
        rejected.append(_damaged(words, kind, generator))
    else:
        # A real but irrelevant sentence that runs on, as a model that misses a short fact writes it.
        kinds.append(RELEVANCE)
        rejected.append(generator.choice([text for text in elsewhere if text not in rejected]))
    return Comparison(prompt=exchange.prompt, chosen=exchange.response, rejected=tuple(rejected), kinds=tuple(kinds))


def _damaged(words: Sequence[str], kind: str, generator: random.Random) -> str:
    if kind == COMPLETENESS:
        return " ".join(words[: max(2, round(len(words) * generator.uniform(0.3, 0.7)))])
    if kind == GRAMMAR:
        shuffled = list(words)
        while shuffled == list(words) and len(set(words)) > 1:
            generator.shuffle(shuffled)
        return " ".join(shuffled)
    start = generator.randrange(len(words) - 2)
    return " ".join([*words[: start + 3], *(list(words[start : start + 3]) * generator.randint(2, 5))])


def comparisons(exchanges: Sequence[Exchange], *, seed: int) -> list[Comparison]:
    """Return one comparison an exchange; the same for the same seed."""
    generator = random.Random(seed)  # noqa: S311
    return [comparison_of(exchange, exchanges, generator) for exchange in exchanges]
