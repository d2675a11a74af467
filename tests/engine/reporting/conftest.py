"""A whole small experiment as artifacts, without any model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from wrpo_engine.artifacts import records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.evaluation.held_out import SCORED_ANSWERS
from wrpo_engine.evaluation.held_out import evaluation as evaluate_answers

HOSTILE = "<script>alert('x')</script> & \"quotes\""
LABELS = ["target", "sft", "WRPO-DPO"]


def answers_table() -> pl.DataFrame:
    """Six held-out prompts; the last model wins 4, ties 1 and loses 1 against the target."""
    scores = {
        "target": [0.1, 0.2, 0.3, 0.4, 0.5, 0.9],
        "sft": [0.2, 0.3, 0.5, 0.4, 0.9, 0.8],
        "WRPO-DPO": [0.3, 0.6, 0.5, 0.4, 0.7, 0.6],
    }
    rows = [
        (
            label,
            f"id{index}",
            HOSTILE if index == 0 else f"question {index}",
            0,
            f"{label} says {HOSTILE}",
            9,
            "stop",
            value,
        )
        for label in LABELS
        for index, value in enumerate(scores[label])
    ]
    return pl.DataFrame(rows, schema=SCORED_ANSWERS, orient="row")


def scores_table(source: str, values: list[float]) -> pl.DataFrame:
    rows = [(f"p{index}", source, 0, value, False) for index, value in enumerate(values)]
    return pl.DataFrame(rows, schema=records.SCORES, orient="row")


def triples_table() -> pl.DataFrame:
    rows = [
        (f"p{index}", "q", "best", "good", "bad", "tall" if index < 3 else "small", 0.9, 0.5, 0.1) for index in range(4)
    ]
    return pl.DataFrame(rows, schema=records.TRIPLES, orient="row")


def attribution_table() -> pl.DataFrame:
    rows = [("all", 1, 9, "tall", 3, 0.75, 2, 0.4, 0.5), ("all", 1, 9, "small", 1, 0.25, 0, -0.1, -0.1)]
    rows += [(str(part), part, part + 1, HOSTILE, 2, 1.0, 1, 0.25, 0.125) for part in (1, 2)]
    return pl.DataFrame(rows, schema=records.ATTRIBUTION, orient="row")


def step_lines(count: int) -> str:
    rows = [
        {
            "step": step,
            "loss": 0.69 - 0.02 * step,
            "alpha": 0.1 * (step - 1) / count,
            "margin_source": 0.01 * step,
            "margin_target": 0.02 * step,
            "accuracy_source": 0.5 + 0.02 * step,
            "accuracy_target": 0.5 + 0.04 * step,
        }
        for step in range(1, count + 1)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def experiment_inputs(commit_artifact: Callable[..., ArtifactRef]) -> dict[str, ArtifactRef]:
    """The inputs of a report about a whole experiment."""
    answers = answers_table()
    result: dict[str, Any] = evaluate_answers(answers, LABELS, {"tall": 0.75, "small": 0.25})
    samples = pl.DataFrame([("p0", "tall", 0, "text", 1, "stop", 1)], schema=records.SAMPLES, orient="row")
    prompts = pl.DataFrame([("id0", "q")], schema=records.PROMPTS, orient="row")
    model = {"model": {"name": "storage://models/base", "revision": None}}
    return {
        "prompts": commit_artifact("prepare", {"sft.parquet": prompts}, metrics={"dropped_duplicate": 7.0}),
        "samples/tall": commit_artifact("sample/tall", {"parts/part-00000.parquet": samples}, details=model),
        "scores/tall": commit_artifact("score/tall", {"parts/part-00000.parquet": scores_table("tall", [0.2, 0.9])}),
        "scores/small": commit_artifact("score/small", {"parts/part-00000.parquet": scores_table("small", [0.1, 0.6])}),
        "scores/target": commit_artifact(
            "score/target", {"parts/part-00000.parquet": scores_table("target", [0.0, 0.4])}
        ),
        "sft": commit_artifact("sft", {"metrics.jsonl": step_lines(4)}),
        "triples": commit_artifact(
            "curate-triples",
            {"triples.parquet": triples_table(), "attribution.parquet": attribution_table()},
            metrics={"dropped_all_tie": 3.0},
        ),
        "model": commit_artifact(
            "train", {"metrics.jsonl": step_lines(8)}, details={"dropped": {"prompt_too_long": 2}}
        ),
        "evaluation": commit_artifact(
            "evaluate",
            {"answers.parquet": answers, "evaluation.json": json.dumps(result)},
            details={"models": {"target": {"name": "storage://models/base", "revision": "abc"}}},
        ),
    }
