"""The two curation stages: SFT rows (x, y_ws) and triples (x, y_ws, y_wt, y_l)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine import records
from wrpo_engine.config import CurateSftParams, CurateTriplesParams
from wrpo_engine.curation.candidates import attribution, best, eligible, left_out
from wrpo_engine.curation.triples import Candidate, Rules, Triple, curate
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.stage import StageContext, StageResult

log = logging.getLogger("wrpo_engine")

TARGET = "target"
_SAMPLES = "samples/"


def run_sft(ctx: StageContext) -> StageResult:
    params = ctx.config.params
    assert isinstance(params, CurateSftParams)
    prompts = _prompts(ctx, "sft")
    sources = _sources(ctx)
    counts: dict[str, float] = {}
    candidates = _candidates(ctx, sources, prompts, drop_truncated=params.drop_truncated, counts=counts)
    chosen = best(candidates)
    rows = prompts.join(chosen, on="prompt_id", how="inner", maintain_order="left").select(
        "prompt_id", "prompt", pl.col("text").alias("response"), "source", "score"
    )
    metrics = {"prompts": float(prompts.height), "rows": float(rows.height), **counts}
    if dropped := prompts.height - rows.height:
        metrics["dropped_no_source_response"] = float(dropped)
    _check_rows(rows.height, metrics, "SFT row", prompts.height)
    metrics |= attribution(rows, sources) | _mean("mean_score", rows["score"])
    rows = rows.cast(records.SFT_ROWS)  # type: ignore[arg-type]
    ctx.output.publish("rows.parquet", rows.write_parquet)
    ctx.output.commit(files=["rows.parquet"], rows={"rows.parquet": rows.height}, metrics=metrics)
    ctx.progress.update(1, 1, metrics={"rows": float(rows.height)})
    return StageResult(rows=rows.height, metrics=metrics)


def run_triples(ctx: StageContext) -> StageResult:
    params = ctx.config.params
    assert isinstance(params, CurateTriplesParams)
    prompts = _prompts(ctx, "preference")
    sources = _sources(ctx) if params.needs_source else []
    counts: dict[str, float] = {}
    source_best = _by_prompt(
        best(_candidates(ctx, sources, prompts, drop_truncated=params.drop_truncated, counts=counts))
    )
    target = _by_prompt(_candidates(ctx, [TARGET], prompts, drop_truncated=params.drop_truncated, counts=counts))
    rules = Rules(
        score_margin=params.score_margin,
        require_source_better=params.require_source_better,
        on_tie=params.on_tie,
        needs_source=params.needs_source,
    )
    curated = curate(
        list(prompts["prompt_id"]), {prompt_id: rows[0] for prompt_id, rows in source_best.items()}, target, rules
    )
    metrics = {"prompts": float(prompts.height), "rows": float(len(curated.triples)), **counts}
    metrics |= {f"dropped_{reason.value}": float(count) for reason, count in sorted(curated.dropped.items())}
    if params.needs_source:
        metrics["source_not_better"] = float(curated.num_source_not_better)
    _check_rows(len(curated.triples), metrics, "triple", prompts.height)
    table = triples_table(curated.triples, dict(prompts.iter_rows()))
    metrics |= attribution(table, sources)
    for name in ("source_score", "target_score", "rejected_score"):
        metrics |= _mean(f"mean_{name}", table[name])
    ctx.output.publish("triples.parquet", table.write_parquet)
    ctx.output.publish(
        "triples.jsonl", lambda path: _write_lines(path, [published_row(row) for row in table.to_dicts()])
    )
    rows = {"triples.parquet": table.height}
    ctx.output.commit(files=[*rows, "triples.jsonl"], rows=rows, metrics=metrics)
    ctx.progress.update(1, 1, metrics={"rows": float(table.height)})
    return StageResult(rows=table.height, metrics=metrics)


def triples_table(triples: Sequence[Triple], prompts: Mapping[str, str]) -> pl.DataFrame:
    """Return the rows of triples.parquet."""
    rows = [
        (
            triple.prompt_id,
            prompts[triple.prompt_id],
            triple.source_chosen.text if triple.source_chosen else None,
            triple.target_chosen.text,
            triple.rejected.text,
            triple.source_chosen.source if triple.source_chosen else None,
            triple.source_chosen.score if triple.source_chosen else None,
            triple.target_chosen.score,
            triple.rejected.score,
        )
        for triple in triples
    ]
    return pl.DataFrame(rows, schema=records.TRIPLES, orient="row")


def published_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a triple in the format of the published data sets: `chosen` is [y_ws, y_wt], or [y_wt] alone."""
    chosen = [text for text in (row["source_chosen"], row["target_chosen"]) if text is not None]
    return {
        "prompt_id": row["prompt_id"],
        "prompt": {"role": "user", "content": row["prompt"]},
        "chosen": [{"role": "assistant", "content": text} for text in chosen],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _prompts(ctx: StageContext, part: str) -> pl.DataFrame:
    return pl.read_parquet(ctx.input("prompts").file(f"{part}.parquet"))


def _sources(ctx: StageContext) -> list[str]:
    names = sorted(role.removeprefix(_SAMPLES) for role in ctx.config.inputs if role.startswith(_SAMPLES))
    sources = [name for name in names if name != TARGET]
    if not sources:
        shown = ", ".join(sorted(ctx.config.inputs)) or "none"
        rule = f"stage {ctx.config.params.stage} needs samples/<source> of at least one source"
        raise ConfigError("inputs", shown, rule, "Add a source, or choose an objective without sources.")
    return sources


def _candidates(
    ctx: StageContext,
    names: Sequence[str],
    prompts: pl.DataFrame,
    *,
    drop_truncated: bool,
    counts: dict[str, float],
) -> pl.DataFrame:
    """Return the eligible answers of these models to these prompts; adds to `counts` what was left out."""
    tables = [pl.DataFrame(schema={name: {**records.SAMPLES, **records.SCORES}[name] for name in _CANDIDATE_COLUMNS})]
    for name in names:
        samples = _read_parts(ctx, f"{_SAMPLES}{name}", prompts)
        scores = _read_parts(ctx, f"scores/{name}", prompts)
        answered = samples.filter(pl.col("finish_reason") != "prompt_too_long").height
        if scores.height != answered:
            raise DataError(
                f"scores/{name} has {scores.height} rows for {answered} answers of samples/{name}",
                code="InputsDisagree",
                hint="Use the scores of exactly these samples.",
            )
        for reason, count in left_out(samples, drop_truncated=drop_truncated).items():
            counts[reason] = counts.get(reason, 0.0) + count
        tables.append(eligible(samples, scores, drop_truncated=drop_truncated))
        ctx.stop.raise_if_requested()
    return pl.concat(tables)


_CANDIDATE_COLUMNS = ("prompt_id", "source", "sample_index", "text", "score")


def _read_parts(ctx: StageContext, role: str, prompts: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of an artifact in parts that belong to these prompts."""
    artifact = ctx.input(role)
    wanted = prompts.select("prompt_id")
    frames = [pl.read_parquet(artifact.file(name)) for name in artifact.files("parts/")]
    return pl.concat(frames).join(wanted, on="prompt_id", how="semi", maintain_order="left")


def _by_prompt(candidates: pl.DataFrame) -> dict[str, list[Candidate]]:
    grouped: dict[str, list[Candidate]] = {}
    for prompt_id, source, index, text, score in candidates.iter_rows():
        grouped.setdefault(prompt_id, []).append(Candidate(source, index, text, score))
    return grouped


def _check_rows(rows: int, metrics: Mapping[str, float], what: str, prompts: int) -> None:
    if rows:
        return
    reasons = ", ".join(
        f"{name.removeprefix('dropped_')} {count:g}" for name, count in metrics.items() if name.startswith("dropped_")
    )
    if prompts == 0:
        raise DataError(
            f"no {what} can be made: there are no prompts in this part",
            code="NoPrompts",
            field="prompts.sftFraction",
            hint="sftFraction 1 leaves no preference prompts, 0 none for SFT: choose a value between, or raise limit.",
        )
    raise DataError(
        f"no {what} is left of {prompts} prompts; dropped: {reasons}",
        code="NothingCurated",
        field="curation",
        hint="Loosen curation (scoreMargin, requireSourceBetter, onTie, dropTruncated), or raise sampling.temperature.",
    )


def _mean(name: str, values: pl.Series) -> dict[str, float]:
    mean = values.drop_nulls().mean()
    return {name: mean} if isinstance(mean, float) else {}
