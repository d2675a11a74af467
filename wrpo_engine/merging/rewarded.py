"""Fitness of a candidate of a search: the mean reward of its answers to prompts of the preference part."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.contract.merging import MergeSearch
from wrpo_engine.errors import DataError
from wrpo_engine.merging.candidates import Candidates
from wrpo_engine.merging.search import Place, chosen
from wrpo_engine.scoring.load import Reading, load_scorer
from wrpo_engine.scoring.rewards import Scorer
from wrpo_engine.stage import StageContext

_PROMPTS_FILE = "preference.parquet"
_REWARD_LENGTH = 4096


class RewardedFitness:
    """Scores a candidate's answers."""

    def __init__(self, ctx: StageContext, settings: MergeSearch, seed: int, candidates: Candidates) -> None:
        """Choose the prompts; DataError if there are none."""
        self._ctx, self._settings, self._candidates = ctx, settings, candidates
        self._prompts = _prompts(ctx, settings.prompts, seed)
        self._scorer: Scorer | None = None

    @property
    def measure(self) -> str:
        """What the fitness is."""
        assert self._settings.reward is not None
        return f"mean reward by {self._settings.reward.identity} on {len(self._prompts)} preference prompts"

    def __call__(self, _place: Place, coefficients: Sequence[float], /) -> float:
        """Return the mean reward of a candidate's answers."""
        answers = self._candidates.answers(coefficients, self._prompts)
        if self._scorer is None:
            assert self._settings.reward is not None
            self._scorer = load_scorer(
                self._settings.reward,
                self._ctx,
                Reading(max_length=_REWARD_LENGTH, batch_tokens=self._ctx.config.runtime.batch_tokens),
            )
        pairs = [(item.turns[0], answers[item.item_id][0]) for item in self._prompts]
        names = [f"prompt {item.item_id}" for item in self._prompts]
        scores = [reward.score for reward in self._scorer.rewards(pairs, names)]
        return sum(scores) / len(scores)


def _prompts(ctx: StageContext, count: int, seed: int) -> list[BenchItem]:
    frame = pl.read_parquet(ctx.input("prompts").file(_PROMPTS_FILE))
    rows = zip(frame["prompt_id"], frame["prompt"], strict=True)
    items = [BenchItem(item_id=key, index=index, category="", turns=(text,)) for index, (key, text) in enumerate(rows)]
    if not items:
        raise DataError(
            "the search of merge weights has no prompts: the experiment's preference part is empty",
            code="NoPrompts",
            field="prompts.sftFraction",
            hint="Lower prompts.sftFraction, or use more prompts.",
        )
    return chosen(items, count, seed)
