"""AlpacaEval's values: the order of the two answers, preferences from a judge's first token, and win rates."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

FIRST, SECOND = "m", "M"
"""Identifiers of the two answers in the judge prompt."""
DRAW = 1.5
_SLACK = 1e-3
"""Rounding error of log probabilities, which are at most 0."""


def is_switched(instruction: str, *, seed: int = 0) -> bool:
    """Return whether the model's answer is shown first. It depends on the text of the instruction and the seed."""
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]  # noqa: S311


def first_chance(logprobs: Mapping[str, float], *, mode: Literal["Compat", "Strict"]) -> float | None:
    """Return the chance of the first identifier among the two; None if neither is there.

    Compat takes the tokens m and M alone. Strict adds up tokens that are one of them but for white space, and refuses
    what is no log probability.
    """
    first, second = (_log_sum(logprobs, name, mode) for name in (FIRST, SECOND))
    if math.isnan(first) or math.isnan(second) or max(first, second) == -math.inf:
        return None
    if mode == "Strict" and max(first, second) > _SLACK:
        return None
    if second == -math.inf:
        return 1.0
    return 0.0 if first == -math.inf else 1 / (1 + math.exp(min(second - first, 700.0)))


def _log_sum(logprobs: Mapping[str, float], name: str, mode: Literal["Compat", "Strict"]) -> float:
    found = [value for token, value in logprobs.items() if (token.strip() if mode == "Strict" else token) == name]
    if not found:
        return -math.inf
    top = max(found)
    return top if not math.isfinite(top) else top + math.log(math.fsum(math.exp(value - top) for value in found))


def chance_of_text(text: str) -> float | None:
    """Return 1 if a reply is the first identifier, 0 for the second; None for anything else."""
    return {FIRST: 1.0, SECOND: 0.0}.get(text.strip())


def preference_of(first: float, *, switched: bool) -> float:
    """Return the preference, from 1 (the baseline wins) to 2 (the model does), of the first identifier's chance."""
    preference = 2 - first
    return 3 - preference if switched else preference


def win_rates(preferences: Sequence[float]) -> dict[str, float]:
    """Return win rate, its standard error and the discrete win rate in per cent, and the counts.

    A preference of 0 is a draw, as 1.5 is. Without a preference there is no rate.
    """
    values = np.array([DRAW if value == 0 else value for value in preferences], dtype=np.float64)
    result = {
        "n_wins": float((values > DRAW).sum()),
        "n_wins_base": float((values < DRAW).sum()),
        "n_draws": float((values == DRAW).sum()),
        "n_total": float(len(values)),
    }
    if not len(values):
        return result
    outcomes = values - 1
    discrete = np.where(values == DRAW, 0.5, np.round(outcomes))
    rates = {"win_rate": 100 * float(outcomes.mean()), "discrete_win_rate": 100 * float(discrete.mean())}
    if len(values) > 1:
        rates["standard_error"] = 100 * float(outcomes.std(ddof=1) / math.sqrt(len(values)))
    return rates | result
