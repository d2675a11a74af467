"""The two curation stages: SFT rows (x, y_ws) and triples (x, y_ws, y_wt, y_l), or pairs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.config import CurateSftParams, CurateTriplesParams
from wrpo_engine.contract.data import RowRules
from wrpo_engine.curation import pairing
from wrpo_engine.curation.attribution import attribution, metrics_of
from wrpo_engine.curation.inputs import (
    TARGET,
    ScoredResponses,
    read_prompts,
    read_scored,
    require_models,
    sampled_models,
    with_texts,
)
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.formats.prompt_columns import history_in, whole_prompt
from wrpo_engine.formats.published import write_published
from wrpo_engine.stage import StageContext, StageResult

log = logging.getLogger("wrpo_engine")

ATTRIBUTION_FILE = "attribution.parquet"


def run_sft(ctx: StageContext) -> StageResult:
    """Choose y_ws for every SFT prompt and commit the rows."""
    params = ctx.config.params
    assert isinstance(params, CurateSftParams)
    prompts = read_prompts(ctx, "sft")
    sources = [name for name in sampled_models(ctx) if name != TARGET]
    require_models(ctx, sources, "<source> of at least one source")
    scored = read_scored(ctx, sources, prompts)
    chosen = pairing.best(scored.candidates)
    metrics = {"prompts": float(prompts.height), "rows": float(chosen.height), **scored.counts}
    if dropped := prompts.height - chosen.height:
        metrics["dropped_no_source_response"] = float(dropped)
    _check_rows(chosen.height, metrics, "SFT row", prompts.height)
    named = chosen.rename({name: f"source_{name}" for name in chosen.columns if name != "prompt"})
    rows = with_texts(ctx, scored, named.sort("prompt"), ["source"])
    table = prompts[rows["prompt"]].with_columns(
        response=rows["source_text"], source=rows["source_name"], score=rows["source_score"]
    )
    given = _attribution(table, table["source"], pl.Series("gain", [None] * table.height, dtype=pl.Float64), sources)
    metrics |= metrics_of(given, sources) | _mean("mean_score", table["score"])
    schema = {**records.SFT_ROWS, **history_in(table.columns)}
    table = table.select(pl.col(name).cast(kind) for name, kind in schema.items())
    ctx.output.publish("rows.parquet", table.write_parquet)
    return _commit(ctx, ["rows.parquet"], table.height, given, metrics)


def run_triples(ctx: StageContext) -> StageResult:
    """Choose the triples or pairs of the preference prompts and commit the rows."""
    params = ctx.config.params
    assert isinstance(params, CurateTriplesParams)
    _require_rows(params)
    prompts = read_prompts(ctx, "preference")
    models = _models(ctx, params)
    scored = read_scored(ctx, models, prompts)
    target = scored.models.index(TARGET) if TARGET in scored.models else None
    keys = prompts.select(whole_prompt(prompts.columns))["prompt"].hash()
    curated = pairing.curate(scored.candidates, keys, params, target=target)
    rows = curated.rows
    metrics = {"prompts": float(prompts.height), "rows": float(rows.height), **scored.counts}
    metrics |= {f"dropped_{reason.value}": float(count) for reason, count in curated.dropped.items()}
    if params.has_source:
        metrics["source_not_better"] = float(curated.num_source_not_better)
    _check_rows(rows.height, metrics, "triple" if params.pairing == "WRPO" else "pair", prompts.height)
    table = _triples_table(ctx, scored, rows, params)
    giver, over = ("source", "target") if params.has_source else ("target", "rejected")
    names = table["source" if params.has_source else "target_source"]
    givers = [name for name in scored.models if not (params.has_source and name == TARGET)]
    given = _attribution(table, names, table[f"{giver}_score"] - table[f"{over}_score"], givers)
    metrics |= metrics_of(given, givers)
    for name in ("source_score", "target_score", "rejected_score"):
        metrics |= _mean(f"mean_{name}", table[name])
    ctx.output.publish("triples.parquet", table.write_parquet)
    ctx.output.publish("triples.jsonl", lambda path: write_published(table, path))
    return _commit(ctx, ["triples.parquet", "triples.jsonl"], table.height, given, metrics)


def _require_rows(params: CurateTriplesParams) -> None:
    """Refuse rules that no row can fulfil, and rules without effect."""
    if params.max_score_gap is not None and params.max_score_gap < params.score_margin:
        raise ConfigError(
            "curation.maxScoreGap",
            params.max_score_gap,
            f"it is below curation.scoreMargin, {params.score_margin:g}: no pair can fulfil both",
            "Raise maxScoreGap or lower scoreMargin.",
        )
    if params.require_source_better and params.pairing != "WRPO":
        raise ConfigError(
            "curation.requireSourceBetter",
            params.require_source_better,
            f"it has no effect with pairing {params.pairing}, whose rows hold no y_ws",
            "Set it to false, or curation.pairing to WRPO.",
        )


def _models(ctx: StageContext, rules: RowRules) -> list[str]:
    """Return the models whose responses count: for pairs all there are, the target among them or not."""
    models = sampled_models(ctx)
    if rules.pairing != "WRPO":
        require_models(ctx, models, "<model> of at least one model")
        return models
    sources = [name for name in models if name != TARGET]
    if rules.needs_source:
        require_models(ctx, sources, "<source> of at least one source")
    return [*(sources if rules.needs_source else []), TARGET]


def _triples_table(ctx: StageContext, scored: ScoredResponses, rows: pl.DataFrame, rules: RowRules) -> pl.DataFrame:
    """Return the rows of triples.parquet."""
    places = [*(["source"] if rules.has_source else []), "chosen", "rejected"]
    rows = with_texts(ctx, scored, rows, places)
    none = pl.lit(None)
    table = rows.select(
        source_chosen="source_text" if rules.has_source else none,
        target_chosen="chosen_text",
        rejected="rejected_text",
        source="source_name" if rules.has_source else none,
        source_score="source_score" if rules.has_source else none,
        target_score="chosen_score",
        rejected_score="rejected_score",
        target_source="chosen_name",
        rejected_source="rejected_name",
        source_truncated="source_truncated" if rules.has_source else none,
        target_truncated="chosen_truncated",
        rejected_truncated="rejected_truncated",
    )
    schema = {**records.TRIPLES, **records.TRIPLE_ORIGINS, **history_in(scored.prompts.columns)}
    whole = pl.concat([scored.prompts[rows["prompt"]], table], how="horizontal")
    return whole.select(pl.col(name).cast(kind) for name, kind in schema.items())


def _attribution(table: pl.DataFrame, names: pl.Series, gains: pl.Series, models: Sequence[str]) -> pl.DataFrame:
    rows = table.select(num_chars=pl.col("prompt").str.len_chars().cast(pl.Int64))
    return attribution(rows.with_columns(names.alias("source"), gains.alias("gain")), models)


def _commit(
    ctx: StageContext, files: Sequence[str], rows: int, given: pl.DataFrame, metrics: Mapping[str, float]
) -> StageResult:
    """Commit the files, of which the first one has the rows, and the attribution `given`."""
    ctx.output.publish(ATTRIBUTION_FILE, given.write_parquet)
    ctx.output.commit(
        files=[*files, ATTRIBUTION_FILE],
        rows={files[0]: rows},
        metrics=metrics,
        details={"attribution": given.to_dicts()},
    )
    ctx.progress.update(1, 1, metrics={"rows": float(rows)})
    return StageResult(rows=rows, metrics=dict(metrics))


def _check_rows(rows: int, metrics: Mapping[str, float], what: str, prompts: int) -> None:
    if rows:
        return
    if prompts == 0:
        raise DataError(
            f"no {what} can be made: there are no prompts in this part",
            code="NoPrompts",
            field="prompts.sftFraction",
            hint="sftFraction 1 leaves no preference prompts, 0 none for SFT: choose a value between, or raise limit.",
        )
    reasons = _counted(metrics, "dropped_")
    left_out = _counted(metrics, "responses_")
    raise DataError(
        f"no {what} is left of {prompts} prompts; dropped: {reasons}"
        + (f"; responses left out: {left_out}" if left_out else ""),
        code="NothingCurated",
        field="curation",
        hint="Loosen curation (scoreMargin, maxScoreGap, requireSourceBetter, onTie, dropTruncated, "
        "maxResponseTokens), or raise sampling.temperature.",
    )


def _counted(metrics: Mapping[str, float], prefix: str) -> str:
    counts = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    return ", ".join(f"{name} {count:g}" for name, count in sorted(counts.items()))


def _mean(name: str, values: pl.Series) -> dict[str, float]:
    mean = values.drop_nulls().mean()
    return {name: mean} if isinstance(mean, float) else {}
