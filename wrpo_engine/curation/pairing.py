"""Choice of the responses of a row, by policy; every omitted prompt is counted by one reason. Pure, on whole columns.

One order decides every tie: the better score, then the model's name, then the sample index. So neither the order of the
inputs nor the number of parts matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import polars as pl

from wrpo_engine.contract.data import RowRules


class Dropped(StrEnum):
    """Reasons why a prompt gives no row, in the order of the checks."""

    NO_SOURCE_RESPONSE = "no_source_response"
    NO_TARGET_RESPONSE = "no_target_response"
    NO_RESPONSE = "no_response"
    TARGET_IDENTICAL = "target_identical"
    IDENTICAL = "identical"
    TARGET_TIE = "target_tie"
    TIE = "tie"
    SCORE_MARGIN = "score_margin"
    SCORE_GAP = "score_gap"
    SOURCE_NOT_BETTER = "source_not_better"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, kw_only=True)
class Curated:
    """The rows in prompt order: `prompt`, and the columns of a candidate with the prefix of its place.

    Prefixes: `source_` for y_ws (absent without sources), `chosen_` for y_wt, `rejected_` for y_l.
    """

    rows: pl.DataFrame
    dropped: dict[Dropped, int]
    num_source_not_better: int = 0
    """Prompts whose y_ws does not exceed y_wt in score, whether or not that drops them."""


def best(candidates: pl.DataFrame) -> pl.DataFrame:
    """Return each prompt's best candidate: the highest score, then the first model, then the first sample."""
    return _first(candidates, descending=True)


def _first(candidates: pl.DataFrame, *, descending: bool) -> pl.DataFrame:
    order = ["prompt", "score", "model", "sample_index"]
    ordered = candidates.sort(order, descending=[False, descending, False, False])
    return ordered.unique("prompt", keep="first", maintain_order=True)


def curate(candidates: pl.DataFrame, prompt_keys: pl.Series, rules: RowRules, *, target: int | None) -> Curated:
    """Choose a row for every prompt; `prompt_keys` is the hash of each whole prompt, `target` the target's `model`.

    y_wt (chosen) is the best of the target's responses, or of all; y_l (rejected) the worst with another text, of the
    same pool: the target's, those of the model that gave the chosen one (WithinSource), or all (BestWorst). A response
    compared with its own text teaches nothing, so identical ones never make a pair.
    """
    of_target = candidates.filter(pl.col("model") == target) if target is not None else candidates.clear()
    pool = of_target if rules.pairing == "WRPO" else candidates
    chosen = best(pool)
    rival_on = ["prompt", "model"] if rules.pairing == "WithinSource" else ["prompt"]
    rivals = pool.join(chosen.select(*rival_on, chosen_key="key"), on=rival_on, how="inner")
    rejected = _first(rivals.filter(pl.col("key") != pl.col("chosen_key")).drop("chosen_key"), descending=False)
    table = pl.DataFrame({"prompt": pl.int_range(len(prompt_keys), dtype=pl.UInt32, eager=True), "key": prompt_keys})
    if rules.has_source:
        sources = candidates.filter(pl.col("model") != target) if target is not None else candidates
        table = _joined(table, best(sources), "source_")
    table = _joined(_joined(table, chosen, "chosen_"), rejected, "rejected_")
    table = table.with_columns(reason=_reason(rules)).sort("prompt")
    if rules.drop_duplicates:
        keys = [name for name in table.columns if name == "key" or name.endswith("_key")]
        kept = table.filter(pl.col("reason").is_null())
        again = kept.filter(~pl.struct(keys).is_first_distinct())["prompt"]
        repeated = pl.col("prompt").is_in(again.implode())
        table = table.with_columns(
            reason=pl.when(repeated).then(pl.lit(Dropped.DUPLICATE.value)).otherwise(pl.col("reason"))
        )
    dropped = dict(table["reason"].drop_nulls().value_counts().iter_rows())
    not_better = table.filter(pl.col("source_score") <= pl.col("chosen_score")).height if rules.has_source else 0
    return Curated(
        rows=table.filter(pl.col("reason").is_null()).drop("reason", "key"),
        dropped={reason: dropped[reason.value] for reason in Dropped if reason.value in dropped},
        num_source_not_better=not_better,
    )


def _joined(table: pl.DataFrame, candidates: pl.DataFrame, prefix: str) -> pl.DataFrame:
    named = candidates.rename({name: f"{prefix}{name}" for name in candidates.columns if name != "prompt"})
    return table.join(named, on="prompt", how="left", validate="1:1")


def _reason(rules: RowRules) -> pl.Expr:
    """Return the first reason that applies, or null."""
    triples = rules.pairing == "WRPO"
    gap = pl.col("chosen_score") - pl.col("rejected_score")
    never = pl.lit(value=False)
    conditions = [
        (pl.col("source_key").is_null() if rules.has_source else never, Dropped.NO_SOURCE_RESPONSE),
        (pl.col("chosen_key").is_null(), Dropped.NO_TARGET_RESPONSE if triples else Dropped.NO_RESPONSE),
        (pl.col("rejected_key").is_null(), Dropped.TARGET_IDENTICAL if triples else Dropped.IDENTICAL),
        ((gap == 0) if rules.on_tie == "Drop" else never, Dropped.TARGET_TIE if triples else Dropped.TIE),
        (gap < rules.score_margin, Dropped.SCORE_MARGIN),
        (gap > rules.max_score_gap if rules.max_score_gap is not None else never, Dropped.SCORE_GAP),
        (
            pl.col("source_score") <= pl.col("chosen_score")
            if rules.require_source_better and rules.has_source
            else never,
            Dropped.SOURCE_NOT_BETTER,
        ),
    ]
    return pl.coalesce(pl.when(condition).then(pl.lit(reason.value)) for condition, reason in conditions)
