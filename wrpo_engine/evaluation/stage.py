"""The evaluate stage: all systems on all benchmarks by all judges, from the artifacts of the cells. No model runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.contract.evaluation import EvaluateParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.evaluation.held_out import metrics_of
from wrpo_engine.evaluation.reading import HELD_OUT, Reading
from wrpo_engine.evaluation.tables import benchmarks_of, outcomes_of
from wrpo_engine.evaluation.tables import metrics_of as metrics_of_benchmarks
from wrpo_engine.stage import StageContext, StageResult

ANSWERS_NAME = "answers.parquet"
EVALUATION_NAME = "evaluation.json"
BENCHMARKS_NAME = "benchmarks.json"
OUTCOMES_NAME = "outcomes.parquet"
EXAMPLES_NAME = "examples.json"


def run(ctx: StageContext) -> StageResult:
    """Aggregate the cells and commit the results."""
    params = ctx.config.params
    assert isinstance(params, EvaluateParams)
    check_names(params)
    read = Reading(ctx, params)
    files: dict[str, Any] = {}
    rows: dict[str, int] = {}
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {"models": read.models()}
    held_out = next((each for each in params.benchmarks if each.kind == HELD_OUT and each.rewards), None)
    if held_out is not None:
        answers, result, rewards = read.held_out(held_out)
        files |= {ANSWERS_NAME: answers, EVALUATION_NAME: result}
        rows[ANSWERS_NAME] = answers.height
        metrics |= metrics_of(result)
        details |= rewards
    content = benchmarks_of(params, read.columns(), read.answers)
    outcomes = outcomes_of(read.columns(), read.answers)
    files |= {BENCHMARKS_NAME: content, OUTCOMES_NAME: outcomes, EXAMPLES_NAME: read.examples()}
    rows[OUTCOMES_NAME] = outcomes.height
    metrics |= metrics_of_benchmarks(content)
    for name, value in files.items():
        ctx.stop.raise_if_requested()
        ctx.output.publish(name, partial(_write, value))
    ctx.output.commit(files=list(files), rows=rows, metrics=metrics, details=details)
    ctx.progress.update(1, 1, metrics=metrics)
    return StageResult(rows=outcomes.height, metrics=metrics)


def check_names(params: EvaluateParams) -> None:
    """Raise ConfigError unless names and labels are unique, and subject and opponents are systems."""
    for field, names in (
        ("evaluation.systems", [system.name for system in params.systems]),
        ("evaluation.systems", [system.label for system in params.systems]),
        ("evaluation.benchmarks", [benchmark.name for benchmark in params.benchmarks]),
    ):
        if len(set(names)) != len(names):
            raise ConfigError(field, ", ".join(names), "names and labels must be unique", "Rename one.")
    known = [system.name for system in params.systems]
    for name in (params.subject, *params.opponents):
        if name not in known:
            raise ConfigError(
                "evaluation.subject", name, f"there is no system of this name among {', '.join(known)}", "Add it."
            )


def _write(value: Any, path: Path) -> None:
    if isinstance(value, pl.DataFrame):
        value.write_parquet(path)
    else:
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
