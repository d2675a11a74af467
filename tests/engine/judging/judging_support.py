"""Items, answers and parameters of a small cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
from support.stub_judge import MODEL

from wrpo_engine.artifacts import records
from wrpo_engine.stage import StageContext

NUM_ITEMS = 40
SETTLED = 3
"""Items whose answer equals the baseline's."""
QUESTIONS = 2 * (NUM_ITEMS - SETTLED)


def answers_frame(texts: dict[str, str]) -> pl.DataFrame:
    counts = {"turn": 0, "sample_index": 0, "num_tokens": 1, "seed": 0, "prompt_tokens": 1, "references_cut": 0}
    rows = [{"item_id": name, "text": text, "finish_reason": "stop", **counts} for name, text in texts.items()]
    return pl.DataFrame(rows, schema=records.ANSWERS)


def bench_files(names: list[str]) -> dict[str, Any]:
    items = [
        {"item_id": name, "index": index, "category": "", "turns": [f"question {name}"], "messages": []}
        for index, name in enumerate(names)
    ]
    baseline = [{"item_id": name, "generator": "base", "turns": [f"base {name}"]} for name in names]
    return {
        "items.parquet": pl.DataFrame(items, schema=records.BENCH_ITEMS),
        "baseline.parquet": pl.DataFrame(baseline, schema=records.BENCH_BASELINE),
        "templates.json": "{}",
    }


def judge_params(**more: Any) -> dict[str, Any]:
    return {
        "stage": "judge",
        "model": MODEL,
        "benchmark": "Custom",
        "benchmark_protocol": "AlpacaEval2",
        "system": "moa",
        "answers": "answers/moa--tiny",
        **more,
    }


MakeJudge = Callable[..., StageContext]
