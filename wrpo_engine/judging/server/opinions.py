"""What a reward says about a question, in the form that each benchmark's judge prompt asks for."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from wrpo_engine.judging.server.questions import Question

_TIE, _DECISIVE = 0.1, 1.0
"""Arena-Hard: margins in units of the temperature up to which it is a tie, and above which a verdict is decisive."""
_LOWEST, _HIGHEST = 1.0, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """A verdict: the text of the reply, and log probabilities of its first token if it is the verdict."""

    text: str
    logprobs: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Meaning of differences between rewards, and of single ones."""

    temperature: float = 1.0
    calibration: Sequence[float] = ()
    """Sorted rewards of typical answers, by which MT-Bench's rating is a quantile; empty: the sigmoid of the reward."""

    def opinion(self, question: Question, rewards: Sequence[float]) -> Opinion:
        """Return the verdict about a question whose answers have these rewards."""
        if question.kind == "MTBench":
            return Opinion(text=f"The reward model rates this answer. Rating: [[{self.rating(rewards[0]):.1f}]]")
        margin = (rewards[0] - rewards[1]) / self.temperature
        if question.kind == "AlpacaEval2":
            logprobs = sorted((("m", log_sigmoid(margin)), ("M", log_sigmoid(-margin))), key=lambda each: -each[1])
            return Opinion(text=logprobs[0][0], logprobs=tuple(logprobs))
        return Opinion(text=f"The reward model's final verdict is: [[{label(margin)}]]")

    def rating(self, reward: float) -> float:
        """Return a rating from 1 to 10 that grows with the reward."""
        if not self.calibration:
            share = math.exp(log_sigmoid(reward / self.temperature))
        else:
            below = bisect.bisect_left(self.calibration, reward)
            share = (below + bisect.bisect_right(self.calibration, reward)) / 2 / len(self.calibration)
        return _LOWEST + (_HIGHEST - _LOWEST) * share


def label(margin: float) -> str:
    """Return Arena-Hard's label for the margin of A over B; the opposite one for the opposite margin."""
    if abs(margin) <= _TIE:
        return "A=B"
    mark = ">>" if abs(margin) > _DECISIVE else ">"
    return f"A{mark}B" if margin > 0 else f"B{mark}A"


def log_sigmoid(value: float) -> float:
    """Return log(1 / (1 + exp(-value))) without overflow."""
    return -math.log1p(math.exp(-value)) if value >= 0 else value - math.log1p(math.exp(value))
