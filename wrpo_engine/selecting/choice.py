"""Choice of one member for an item by scores. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The chosen member, by its index."""

    member: int
    criterion: float | None = None
    """Its score; None if nothing was compared."""
    margin: float | None = None
    """Distance of its score to the second best one; None without a second one."""


def choose(scores: Sequence[float | None], competing: Sequence[int]) -> Choice:
    """Return the competing member with the highest score, of equal ones the first.

    A member without a score loses against those with one. If no competing member has one, the first is chosen.
    """
    known = [(score, -index) for index in competing if (score := scores[index]) is not None]
    if not known:
        return Choice(member=competing[0])
    best, *rest = sorted(known, reverse=True)
    return Choice(member=-best[1], criterion=best[0], margin=best[0] - rest[0][0] if rest else None)
