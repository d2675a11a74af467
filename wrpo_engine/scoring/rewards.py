"""Types that all scorers share: models, Python functions, servers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from wrpo_engine.errors import DataError
from wrpo_engine.text.chat import Change
from wrpo_engine.text.conversations import Prompt

MAIN_SECTION = "reward"
"""Section of the spec that is the experiment's own reward; errors about a reward name its section."""

Pair = tuple[Prompt, str]
"""Prompt and response."""

OnProgress = Callable[[int], None]
"""Called with the number of further pairs scored (0: still waiting); an exception from it ends scoring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """The reward of one pair."""

    score: float
    truncated: bool = False
    """The model read only a part of the pair."""
    change: Change | None = None
    """What the model's tokenizer changed in the response; None also where the reward does not say."""
    objectives: tuple[float, ...] = ()
    """One number for each of the scorer's objectives."""
    num_tokens: int | None = None
    """Tokens that the model read; None where the reward does not say."""
    num_padding: int | None = None
    """Padding tokens that were computed in addition."""


class Scorer(Protocol):
    """A reward that is ready to score."""

    @property
    def identity(self) -> str:
        """Name for messages and tables."""
        ...

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives of a multi-objective reward; empty for all others."""
        ...

    def rewards(
        self, pairs: Sequence[Pair], names: Sequence[str] | None = None, on_progress: OnProgress | None = None
    ) -> list[Reward]:
        """Return the reward of each pair, in order, all numbers finite. `names` say in errors which row a pair is."""
        ...


def row_name(names: Sequence[str] | None, index: int) -> str:
    """Return the name of a row for messages: the given one, or its number."""
    return names[index] if names is not None else f"row {index}"


def check_finite(identity: str, rewards: Sequence[Reward], names: Sequence[str] | None, *, hint: str) -> None:
    """Refuse rewards that are not numbers; the error names the first such row."""
    for index, reward in enumerate(rewards):
        bad = [value for value in (reward.score, *reward.objectives) if not math.isfinite(value)]
        if bad:
            tokens = "" if reward.num_tokens is None else f" ({reward.num_tokens} tokens)"
            raise DataError(
                f"reward {identity} gives {bad[0]} for {row_name(names, index)}{tokens}",
                code="RewardNotFinite",
                field="reward",
                hint=hint,
            )
