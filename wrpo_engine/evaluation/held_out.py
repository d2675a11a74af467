"""Results on held-out prompts: scored answers of target, SFT and trained model, and the trained model's wins. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from wrpo_engine.errors import DataError
from wrpo_engine.evaluation.win_rate import compare

SCORED_ANSWERS = {
    "label": pl.String,
    "prompt_id": pl.String,
    "prompt": pl.String,
    "sample_index": pl.Int64,
    "text": pl.String,
    "num_tokens": pl.Int64,
    "finish_reason": pl.String,
    "score": pl.Float64,
}
"""evaluate: answers.parquet."""
REWARD_PREFIX = "reward/"
"""Columns of `answers.parquet` where there are several rewards: reward/IDENTITY, in the order of the experiment."""
TOO_LONG = "prompt_too_long"
"""Finish reason of an item that leaves no room for an answer in the model's context."""


def common_prompts(answers: Mapping[str, pl.DataFrame]) -> tuple[dict[str, pl.DataFrame], list[str]]:
    """Return each model's answers to the items that all models answered, and the other items' ids, sorted.

    DataError if there is no such item.
    """
    is_too_long = pl.col("finish_reason") == TOO_LONG
    skipped = sorted({key for rows in answers.values() for key in rows.filter(is_too_long)["item_id"]})
    common = {label: rows.filter(~pl.col("item_id").is_in(skipped)) for label, rows in answers.items()}
    if any(rows.is_empty() for rows in common.values()):
        raise DataError(
            f"each of the {len(skipped)} held-out prompts is too long for the context of one of the models "
            f"{', '.join(answers)}",
            code="PromptTooLong",
            field="prompts.evaluation",
            hint="Use shorter held-out prompts, or models with a longer context.",
        )
    return common, skipped


def scored_answers(
    label: str, answers: pl.DataFrame, prompts: Mapping[str, str], scores: Mapping[str, pl.Series], weights: list[float]
) -> pl.DataFrame:
    """Return a model's rows of answers.parquet; `scores` are aligned with `answers`, by the rewards' identities.

    The score is the mean of the rewards by `weights`, which add up to 1. Several rewards have a column each.
    """
    mean = [
        sum(weight * value for weight, value in zip(weights, values, strict=True))
        for values in zip(*scores.values(), strict=True)
    ]
    frame = answers.with_columns(
        label=pl.lit(label),
        prompt_id=pl.col("item_id"),
        prompt=pl.col("item_id").replace_strict(prompts, return_dtype=pl.String),
        score=next(iter(scores.values())) if len(scores) == 1 else pl.Series(mean, dtype=pl.Float64),
    )
    columns = {f"{REWARD_PREFIX}{name}": values for name, values in scores.items()} if len(scores) > 1 else {}
    return frame.with_columns(**columns).select([*SCORED_ANSWERS, *columns])


def evaluation(
    answers: pl.DataFrame, labels: Sequence[str], source_share: Mapping[str, float], skipped: int = 0
) -> dict[str, Any]:
    """Return the content of evaluation.json. A prompt's score is the mean over a model's responses to it.

    `skipped` prompts were too long for one of the models and are not compared.
    """
    by_label = {label: _score_by_prompt(answers.filter(pl.col("label") == label)) for label in labels}
    last = labels[-1]
    return {
        "labels": list(labels),
        "num_prompts": len(by_label[last]),
        "skipped_prompt_too_long": skipped,
        "mean_reward": {label: sum(scores.values()) / len(scores) for label, scores in by_label.items()},
        "win_rates": {label: compare(by_label[last], by_label[label]).to_json() for label in labels[:-1]},
        "source_share": dict(source_share),
        **_mean_by_reward(answers, labels),
        "mean_tokens": {label: _mean_tokens(answers.filter(pl.col("label") == label)) for label in labels},
    }


def _mean_by_reward(answers: pl.DataFrame, labels: Sequence[str]) -> dict[str, Any]:
    """Return the mean of each reward by itself, where there are several."""
    columns = [name for name in answers.columns if name.startswith(REWARD_PREFIX)]
    if not columns:
        return {}
    means = {
        column.removeprefix(REWARD_PREFIX): {
            label: answers.filter(pl.col("label") == label)[column].mean() for label in labels
        }
        for column in columns
    }
    return {"mean_reward_by_reward": means}


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the manifest's metrics."""
    metrics = {f"mean_reward_{label}": float(value) for label, value in result["mean_reward"].items()}
    metrics |= {f"win_rate_vs_{label}": float(entry["rate"]) for label, entry in result["win_rates"].items()}
    counts = {name: float(result[name]) for name in ("num_prompts", "skipped_prompt_too_long")}
    return {**metrics, **counts}


def _score_by_prompt(rows: pl.DataFrame) -> dict[str, float]:
    means = rows.group_by("prompt_id", maintain_order=True).agg(pl.col("score").mean())
    return dict(zip(means["prompt_id"].to_list(), means["score"].to_list(), strict=True))


def _mean_tokens(rows: pl.DataFrame) -> float:
    return float(rows["num_tokens"].sum()) / rows.height
