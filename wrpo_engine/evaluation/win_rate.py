"""Win rate of one model's responses over another's by score, with a confidence interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """Prompts on which a model's response scores above (win), like (tie) or below (loss) another model's."""

    win: int
    tie: int
    loss: int

    @property
    def n(self) -> int:
        """Number of prompts."""
        return self.win + self.tie + self.loss

    @property
    def rate(self) -> float:
        """Share of wins; a tie is half a win."""
        return (self.win + self.tie / 2) / self.n

    def interval(self) -> tuple[float, float]:
        """Return the 95 % Wilson interval of the rate."""
        return wilson_interval(self.rate, self.n)

    def to_json(self) -> dict[str, float]:
        """Return counts, rate and the bounds of its interval for evaluation.json."""
        low, high = self.interval()
        return {
            "win": self.win,
            "tie": self.tie,
            "loss": self.loss,
            "rate": self.rate,
            "ci_low": low,
            "ci_high": high,
            "n": self.n,
        }


def wilson_interval(rate: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return Wilson's score interval of a share `rate` seen in `n` trials.

    With ties as half wins the true variance is at most the binomial one, so the interval errs on the wide side.
    """
    if n < 1:
        raise ValueError(f"n is {n}: an interval needs at least one trial")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}: it must be from 0 to 1")
    shrink = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / shrink
    # Rounding must not push the ends past the rate itself, which is 0 or 1 when every prompt agrees.
    return min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half))


def compare(own: Mapping[str, float], other: Mapping[str, float]) -> WinRate:
    """Compare two models' scores by prompt; both must have responded to the same prompts."""
    if own.keys() != other.keys():
        odd = sorted(own.keys() ^ other.keys())[:3]
        raise ValueError(
            f"the models did not respond to the same prompts; only one of them has a response to {', '.join(odd)}"
        )
    win = sum(score > other[prompt] for prompt, score in own.items())
    loss = sum(score < other[prompt] for prompt, score in own.items())
    return WinRate(win=win, tie=len(own) - win - loss, loss=loss)


def shares(sources: Sequence[str]) -> dict[str, float]:
    """Return each source's share of the rows it gave y_ws to, sorted by name."""
    return {name: sources.count(name) / len(sources) for name in sorted(set(sources))}
