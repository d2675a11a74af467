"""Arena-Hard's verdicts: labels, their reading, and scores of games.

In game 1 (order 0) A is the baseline and B the model; in game 2 (order 1) they change places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DECISIVE = 3
"""Weight of a verdict that one answer is significantly better."""
_A_WINS: Mapping[str, tuple[float, int]] = {
    "A>>B": (1.0, DECISIVE),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, DECISIVE),
    "A<<B": (0.0, DECISIVE),
    "A<B": (0.0, 1),
    "B=A": (0.5, 1),
    "B<A": (1.0, 1),
    "B<<A": (1.0, DECISIVE),
}
_LABELS_2024 = frozenset(("A>>B", "A>B", "A=B", "B>A", "B>>A"))
_DOUBLE = re.compile(r"\[\[([AB<>=]+)\]\]")
_SINGLE = re.compile(r"\[([AB<>=]+)\]")


@dataclass(frozen=True, slots=True)
class Game:
    """One valid game from the model's side."""

    score: float
    """1 if the model wins, 0.5 for a tie, else 0."""
    weight: int


def label_2024(text: str) -> tuple[str | None, bool]:
    """Return the label that all matches agree on, and whether there is no match, which calls for another attempt."""
    found = set(_DOUBLE.findall(text))
    if len(found) != 1:
        return None, not found
    label = found.pop()
    return (label if label in _LABELS_2024 else None), False


def match_2025(text: str) -> str | None:
    """Return the last match of the first pattern that matches the upper-case text."""
    upper = text.upper()
    found = _DOUBLE.findall(upper) or _SINGLE.findall(upper)
    return found[-1] if found else None


def label_2025(text: str) -> str | None:
    """Return the label of the 2025 rule; None if there is none, or the match is none of the ten labels."""
    match = match_2025(text)
    return match if match in _A_WINS else None


def game_of(label: str, order: int) -> Game:
    """Return a game's result from the model's side."""
    first_wins, weight = _A_WINS[label]
    return Game(first_wins if order else 1 - first_wins, weight)


def weighted_score(games: Sequence[Game]) -> float | None:
    """Return the mean score in which a decisive verdict counts three times; None without a game."""
    total = sum(game.weight for game in games)
    return sum(game.score * game.weight for game in games) / total if total else None


def contradict(games: Mapping[int, Game]) -> bool:
    """Return whether the two games of a question prefer different systems."""
    return len(games) == 2 and {games[0].score, games[1].score} == {0.0, 1.0}


def prefers_first(order: int, game: Game) -> bool:
    """Return whether the answer shown first has won the game."""
    return game.score == (1.0 if order else 0.0)
