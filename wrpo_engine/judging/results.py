"""What a judge artifact holds in addition to its parts: scores, outcomes of items, and the original tools' files."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.artifacts.parts import PARTS
from wrpo_engine.contract.evaluation import JudgeParams
from wrpo_engine.judging.cell import Cell
from wrpo_engine.judging.decision import DECISION, text_writer
from wrpo_engine.judging.journal import PREFIX
from wrpo_engine.judging.protocol import Summary, Transcript
from wrpo_engine.judging.verdicts import Judged, check_invalid, judged_of, metrics_of
from wrpo_engine.stage import StageContext

log = logging.getLogger("wrpo_engine")

OUTCOMES = "outcomes.parquet"
BENCHMARK = "benchmark.json"
NATIVE = "native/"


def summarise(cell: Cell, judged: Sequence[Judged]) -> Summary:
    """Return the scores of a cell; counts of questions and tokens are among the metrics."""
    verdicts = [*cell.settled, *(each.verdict for each in judged)]
    summary = cell.protocol.summarise(cell.items, cell.answers, verdicts)
    metrics = {name: value for name, value in summary.metrics.items() if math.isfinite(value)}
    return Summary(metrics=metrics | metrics_of(judged), outcomes=summary.outcomes, details=summary.details)


def commit_when_complete(ctx: StageContext, params: JudgeParams, cell: Cell, names: Sequence[str]) -> dict[str, float]:
    """Commit if every part of every shard is there, and return the metrics; otherwise another shard will.

    DataError (InvalidVerdicts) if too many questions have no valid verdict.
    """
    published = frozenset(ctx.output.published(PARTS))
    missing = [name for name in names if name not in published]
    if missing:
        log.info("this shard is done; %d parts of other shards are not there yet", len(missing))
        return {}
    frames = [pl.read_parquet(path) for path in ctx.output.fetch_all(names)]
    judged = judged_of(pl.concat(frames), cell)
    check_invalid(ctx, judged, len(judged))
    summary = summarise(cell, judged)
    files = _native(params, cell, judged)
    files[BENCHMARK] = json.dumps(_description(ctx, params, summary, judged), indent=1, ensure_ascii=False) + "\n"
    for name, content in files.items():
        ctx.output.publish(name, text_writer(content), replace=True)
    ctx.output.publish(OUTCOMES, _outcomes(summary).write_parquet, replace=True)
    # All replies are in the parts.
    ctx.output.discard(PREFIX)
    rows = {name: frame.height for name, frame in zip(names, frames, strict=True)}
    metrics = dict(summary.metrics)
    ctx.output.commit(
        files=[*names, *files, OUTCOMES, *ctx.output.published(DECISION)],
        rows=rows,
        metrics=metrics,
        details={"judge": _judge(params, judged)},
    )
    return metrics


def _outcomes(summary: Summary) -> pl.DataFrame:
    rows = [
        {"item_id": each.item_id, "value": each.value, "weight": each.weight, "valid": each.valid}
        for each in summary.outcomes
    ]
    return pl.DataFrame(rows, schema=records.OUTCOMES)


def _native(params: JudgeParams, cell: Cell, judged: Sequence[Judged]) -> dict[str, str]:
    by_question = {each.question.name: [reply.as_reply() for reply in each.replies] for each in judged}
    files: Mapping[str, str] = cell.protocol.native_files(
        cell.items,
        cell.answers,
        Transcript(
            [each.question.ask for each in judged],
            [*cell.settled, *(each.verdict for each in judged)],
            by_question,
            system=params.system,
            judge=params.model,
        ),
    )
    return {NATIVE + name: content for name, content in sorted(files.items())}


def _judge(params: JudgeParams, judged: Sequence[Judged]) -> dict[str, Any]:
    """Return what a table says of the judge. `reported`: names of the model in the replies."""
    return {
        "model": params.model,
        "reported": sorted({reply.model for each in judged for reply in each.replies if reply.model}),
        "mode": params.mode,
    }


def _description(ctx: StageContext, params: JudgeParams, summary: Summary, judged: Sequence[Judged]) -> dict[str, Any]:
    settings = params.model_dump(mode="json", include={"protocol", "temperature", "max_tokens", "extra_body"})
    inputs = {
        role: {"stage": ref.stage, "hash": ref.hash, "digest": ctx.input(role).digest}
        for role, ref in sorted(ctx.config.inputs.items())
    }
    return {
        "system": params.system,
        "benchmark": params.benchmark,
        "benchmark_protocol": params.benchmark_protocol,
        "judge": _judge(params, judged) | settings,
        "metrics": dict(summary.metrics),
        "details": dict(summary.details),
        "inputs": inputs,
    }
