"""Scores of all models' held-out responses by every reward; the score is the rewards' weighted mean.

Each reward is loaded once, scores the pending responses, and is freed before the next one is loaded. The scores of one
reward for one model are stored at once, so a killed pod loses no more than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import polars as pl

from wrpo_engine.config import EvaluateParams, RewardModel
from wrpo_engine.errors import ConfigError
from wrpo_engine.evaluation.answers import SCORED_ANSWERS
from wrpo_engine.scoring.changes import refuse_changed
from wrpo_engine.scoring.load import load_scorer
from wrpo_engine.scoring.rewards import Scorer
from wrpo_engine.stage import StageContext

REWARD_PREFIX = "reward/"
"""Columns of `answers.parquet` where there are several rewards: reward/IDENTITY, in the order of the experiment."""


def all_rewards(params: EvaluateParams) -> tuple[RewardModel, ...]:
    """Return the first reward and the further ones, in the order of their weights."""
    return (params.reward, *params.more_rewards)


def weights_of(params: EvaluateParams) -> tuple[float, ...]:
    """Return the rewards' weights, which add up to 1."""
    rewards, weights = all_rewards(params), params.reward_weights or (1.0,) * (1 + len(params.more_rewards))
    total = sum(weights)
    valid = len(weights) == len(rewards) and all(math.isfinite(weight) and weight >= 0 for weight in weights)
    if not valid or total <= 0:
        raise ConfigError(
            "reward.weight",
            list(weights),
            f"there must be one weight of 0 or more for each of the {len(rewards)} rewards, and one above 0",
            "Correct reward.weight and reward.additional[].weight.",
        )
    return tuple(weight / total for weight in weights)


def score_answers(
    ctx: StageContext, params: EvaluateParams, answers: Mapping[str, pl.DataFrame]
) -> dict[str, pl.DataFrame]:
    """Return each model's responses with their scores; `answers` are by label."""
    weights = weights_of(params)
    for index, reward in enumerate(all_rewards(params)):
        done = set(ctx.output.published("models/"))
        pending = [label for label in answers if scores_name(label, index) not in done]
        if not pending:
            continue
        ctx.stop.raise_if_requested()
        batch_tokens = ctx.config.runtime.batch_tokens
        scorer = load_scorer(reward, ctx, max_length=params.max_length, batch_tokens=batch_tokens)
        for label in pending:
            scores = _scores(ctx, scorer, label, answers[label])
            ctx.output.publish(scores_name(label, index), scores.write_parquet)
    columns = reward_columns(params)
    return {label: _combined(ctx, label, rows, columns, weights) for label, rows in answers.items()}


def reward_columns(params: EvaluateParams) -> list[str]:
    """Return the column of each reward; of two with the same identity the second one's has its number behind it."""
    names: list[str] = []
    for index, reward in enumerate(all_rewards(params)):
        name = f"{REWARD_PREFIX}{reward.identity}"
        names.append(name if name not in names else f"{name}#{index + 1}")
    return names


def scores_name(label: str, index: int) -> str:
    """Return the name of the file with one reward's scores for a model; `index` is the reward's position."""
    return f"models/{label}.scores-{index}.parquet"


def _scores(ctx: StageContext, scorer: Scorer, label: str, rows: pl.DataFrame) -> pl.DataFrame:
    names = [
        f"{label}, prompt_id {prompt_id}, sample_index {index}"
        for prompt_id, index in rows[["prompt_id", "sample_index"]].iter_rows()
    ]
    pairs = list(zip(rows["prompt"], rows["text"], strict=True))
    rewards = scorer.rewards(pairs, names, lambda _: ctx.stop.raise_if_requested())
    changes = pl.Series("change", [reward.change for reward in rewards], dtype=pl.String)
    refuse_changed(rows.select("label", "prompt_id", "sample_index").with_columns(changes))
    return pl.DataFrame({"score": [reward.score for reward in rewards]}, schema={"score": pl.Float64})


def _combined(
    ctx: StageContext, label: str, rows: pl.DataFrame, columns: list[str], weights: tuple[float, ...]
) -> pl.DataFrame:
    scores = [
        pl.read_parquet(ctx.output.fetch(scores_name(label, index)))["score"].alias(column)
        for index, column in enumerate(columns)
    ]
    if len(scores) == 1:
        return rows.with_columns(scores[0].alias("score")).select(list(SCORED_ANSWERS))
    mean = [
        sum(weight * value for weight, value in zip(weights, values, strict=True))
        for values in zip(*scores, strict=True)
    ]
    return rows.with_columns(pl.Series("score", mean, dtype=pl.Float64), *scores).select([*SCORED_ANSWERS, *columns])
