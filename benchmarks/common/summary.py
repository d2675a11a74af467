"""Several measurements as one figure with its spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Median with extremes, because a mean hides single steps that other processes disturbed."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        if not values:
            raise ValueError("a summary needs at least one measurement")
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, unit: str = "", digits: int = 2) -> str:
        """Return `median unit (low..high)`."""
        return f"{self.median:.{digits}f}{unit} ({self.low:.{digits}f}..{self.high:.{digits}f})"


def alternating(sides: Sequence[str], rounds: int) -> list[str]:
    """Return the order of runs, reversed in every second round, so that a drift of the machine affects all sides."""
    order: list[str] = []
    for round_ in range(rounds):
        order += list(sides) if round_ % 2 == 0 else list(reversed(sides))
    return order
