"""Units in which scores are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["%", "points", "reward"]


@dataclass(frozen=True, slots=True)
class Scale:
    """Unit of a score, and what an outcome is multiplied with to be in it."""

    name: Unit
    factor: float


def scale_of(protocol: str | None) -> Scale:
    """Return the scale of a judge's protocol; that of rewards for None."""
    if protocol is None:
        return Scale("reward", 1.0)
    return Scale("points", 1.0) if protocol == "MTBench" else Scale("%", 100.0)
