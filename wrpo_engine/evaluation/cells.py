"""Cells of the evaluation as their artifacts hold them: answers, grades by rewards, verdicts by judges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from wrpo_engine.artifacts import Artifact, records
from wrpo_engine.artifacts.checks import address
from wrpo_engine.bundles.answers import read_answers
from wrpo_engine.comparison.columns import Judged
from wrpo_engine.comparison.length_control import Rows, rows_of
from wrpo_engine.errors import DataError
from wrpo_engine.evaluation.held_out import TOO_LONG
from wrpo_engine.formats.columns import read_batches, read_columns

OUTCOMES_FILE = "outcomes.parquet"
SUMMARY_FILE = "benchmark.json"
_AGAIN = "Remove this artifact, and its stage runs again."


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One system's answers to one benchmark."""

    frame: pl.DataFrame
    """Rows of `records.ANSWERS`, in the order of the items, samples and turns."""
    details: Mapping[str, Any]
    """Of the artifact's manifest."""

    def counts(self) -> dict[str, float]:
        """Return mean characters and tokens of an answer, and the counts of those that are cut, empty or missing."""
        given = self.frame.filter(pl.col("finish_reason") != TOO_LONG)
        missing = self.frame.height - given.height
        if given.is_empty():
            return {"too_long": float(missing)}
        characters = given["text"].str.len_chars()
        return {
            "characters": float(characters.sum()) / given.height,
            "tokens": float(given["num_tokens"].sum()) / given.height,
            "tokens_read": float(given["prompt_tokens"].sum()) / given.height,
            "truncated": float((given["finish_reason"] == "length").sum()),
            "empty": float((given["text"].str.strip_chars() == "").sum()),
            "too_long": float(missing),
        }

    def characters(self) -> dict[str, float]:
        """Return the mean characters of the answers to each item."""
        means = self.frame.group_by("item_id").agg(pl.col("text").str.len_chars().mean())
        return dict(zip(means["item_id"].to_list(), means["text"].to_list(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one judge or reward says about one system's answers to one benchmark."""

    outcomes: pl.DataFrame
    """Rows of `records.OUTCOMES`, in the order of the items."""
    counts: Mapping[str, float]
    """Questions, or answers, by outcome."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the judge's protocol."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What judged."""
    length_control: Mapping[str, Any] | None = None
    """See `length_control.details_of`."""
    verdicts: pl.DataFrame | None = None
    """Rows of `records.VERDICTS`; None for a reward."""

    def judged(self) -> Judged:
        """Return the valid outcomes, with the features of the length control if every one of them has some."""
        valid = self.outcomes.filter("valid")
        items = tuple(valid["item_id"].to_list())
        known: Mapping[str, Sequence[float]] = (self.length_control or {}).get("features") or {}
        features = [known[item] for item in items if item in known]
        return Judged(
            items=items,
            values=valid["value"].to_numpy(),
            weights=valid["weight"].to_numpy(),
            features=np.array(features, dtype=np.float64) if features and len(features) == len(items) else None,
        )

    def regulariser(self) -> Rows | None:
        """Return the rows of the length control that do not depend on the system."""
        content = (self.length_control or {}).get("regulariser")
        return None if content is None else rows_of(content)

    @property
    def invalid_share(self) -> float:
        """Share of questions without a valid verdict, or of items without a score."""
        known = self.metrics.get("invalid_share")
        if known is not None:
            return float(known)
        total = sum(self.counts.values())
        return 1 - self.counts.get("ok", 0.0) / total if total else 0.0


def answers_of(artifact: Artifact, items: Sequence[str], role: str) -> Answers:
    """Read a system's answers; DataError if they are of other items."""
    frame = read_answers(artifact)
    places = {item: index for index, item in enumerate(items)}
    found = set(frame["item_id"].to_list())
    if odd := sorted(found ^ places.keys()):
        raise DataError(
            f"{_place(artifact, role)} and the benchmark have different items; {len(odd)} are in one of them only, "
            f"e.g. {odd[0]}",
            code="InputsDisagree",
            hint="Evaluate answers together with the benchmark that they answer.",
        )
    order = pl.col("item_id").replace_strict(places, return_dtype=pl.Int64)
    return Answers(frame=frame.sort(order, "sample_index", "turn"), details=artifact.manifest.details)


def grades_of(artifact: Artifact, answers: Answers, role: str) -> pl.Series:
    """Return the scores of a system's answers, aligned with them; null for a prompt that was too long.

    DataError names an answer without a score.
    """
    keys = ["item_id", "turn", "sample_index"]
    frames = list(read_batches(artifact, {name: records.GRADES[name] for name in (*keys, "score")}))
    empty = pl.DataFrame(schema={name: records.GRADES[name] for name in (*keys, "score")})
    grades = pl.concat(frames) if frames else empty
    joined = answers.frame.join(grades, on=keys, how="left", maintain_order="left")
    if joined.height != answers.frame.height:
        raise DataError(f"{_place(artifact, role)} has two scores of one answer", code="PartDamaged", hint=_AGAIN)
    without = joined.filter(pl.col("score").is_null() & (pl.col("finish_reason") != TOO_LONG))
    if not without.is_empty():
        row = without.row(0, named=True)
        raise DataError(
            f"{_place(artifact, role)} has no score of item_id {row['item_id']}, sample_index {row['sample_index']}, "
            f"turn {row['turn']}; {without.height} answers have none",
            code="InputsDisagree",
            hint="Evaluate scores together with the answers that they belong to.",
        )
    return joined["score"]


def graded(answers: Answers, scores: pl.Series, identity: Mapping[str, Any]) -> Cell:
    """Return the cell of a reward: an item's value is the mean score over its samples and turns."""
    rows = answers.frame.select("item_id", score=scores)
    means = rows.group_by("item_id", maintain_order=True).agg(
        value=pl.col("score").mean(), valid=pl.col("score").is_not_null().all()
    )
    outcomes = means.select("item_id", value=pl.when("valid").then("value"), weight=pl.lit(1.0), valid=pl.col("valid"))
    valid = int(outcomes["valid"].sum())
    return Cell(
        outcomes=outcomes,
        counts={"ok": float(valid), "too_long": float(outcomes.height - valid)},
        identity=identity,
    )


def reward_of(artifact: Artifact) -> dict[str, Any]:
    """Return what scored: the model with its revision, the function, or the endpoint."""
    return dict(artifact.manifest.details.get("reward") or {})


def reward_identity(artifact: Artifact) -> str:
    """Return the reward's name in tables: the model as the experiment names it, the function, or the endpoint."""
    asked = (artifact.manifest.config.get("params") or {}).get("reward") or reward_of(artifact)
    return str(asked.get("name") or asked.get("function") or asked.get("endpoint") or "")


def verdicts_of(artifact: Artifact, items: Sequence[str], role: str) -> Cell:
    """Return the cell of a judge; DataError if its outcomes are of other items or out of their ranges."""
    outcomes = read_columns([artifact.file(OUTCOMES_FILE)], records.OUTCOMES, nullable=["value"])
    odd = sorted(set(outcomes["item_id"].to_list()) ^ set(items))
    if odd or outcomes["item_id"].n_unique() != outcomes.height:
        named = odd[0] if odd else outcomes.filter(pl.col("item_id").is_duplicated())["item_id"][0]
        raise DataError(
            f"{OUTCOMES_FILE} of {_place(artifact, role)} must have one row for each item of the benchmark; item "
            f"{named} does not",
            code="InputsDisagree",
            hint="Evaluate verdicts together with the benchmark that they are about.",
        )
    bad = outcomes.filter("valid", pl.col("value").is_null() | ~pl.col("value").is_finite() | ~(pl.col("weight") > 0))
    if not bad.is_empty():
        row = bad.row(0, named=True)
        raise DataError(
            f"{OUTCOMES_FILE} of {_place(artifact, role)}: item {row['item_id']} is valid with value {row['value']} "
            f"and weight {row['weight']}; a valid item has a finite value and a weight above 0",
            code="PartDamaged",
            hint=_AGAIN,
        )
    summary: dict[str, Any] = json.loads(artifact.file(SUMMARY_FILE).read_text(encoding="utf-8"))
    verdicts = pl.concat(
        [
            pl.DataFrame(schema=records.VERDICTS),
            *read_batches(artifact, records.VERDICTS, nullable=[*set(records.VERDICTS) - {*_KEY, "outcome"}]),
        ]
    )
    counted = verdicts["outcome"].value_counts().sort("outcome")
    places = {item: index for index, item in enumerate(items)}
    return Cell(
        outcomes=outcomes.sort(pl.col("item_id").replace_strict(places, return_dtype=pl.Int64)),
        counts={name: float(count) for name, count in counted.iter_rows()},
        metrics=summary.get("metrics") or {},
        identity={**judge_params(artifact), **(summary.get("judge") or {})},
        length_control=(summary.get("details") or {}).get("length_control"),
        verdicts=verdicts,
    )


_KEY = ("item_id", "order", "turn")
_JUDGE_FIELDS = ("model", "protocol", "mode", "temperature", "max_tokens", "serve", "serve_reward", "order_seed")


def judge_params(artifact: Artifact) -> dict[str, Any]:
    """Return the judge's own settings from the manifest."""
    params = artifact.manifest.config.get("params") or {}
    return {name: params[name] for name in _JUDGE_FIELDS if params.get(name) is not None}


def _place(artifact: Artifact, role: str) -> str:
    return f"{role} ({address(artifact.ref)})"
