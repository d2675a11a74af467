"""A cell of a benchmark with a tiny protocol, and a stub judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import pytest
from judging_tiny import tiny_protocol_of
from support.stub_judge import MODEL, StubJudge, running

from wrpo_engine.artifacts import records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.stage import StageContext

NUM_ITEMS = 40
SETTLED = 3
"""Items whose answer equals the baseline's."""
QUESTIONS = 2 * (NUM_ITEMS - SETTLED)


@pytest.fixture
def judge() -> Iterator[StubJudge]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def tiny_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wrpo_engine.judging.cell.protocol_of", tiny_protocol_of)


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


@pytest.fixture
def cell_inputs(commit_artifact: Any) -> dict[str, ArtifactRef]:
    names = [f"q{number}" for number in range(NUM_ITEMS)]
    texts = {name: f"base {name}" if number < SETTLED else f"mine {name}" for number, name in enumerate(names)}
    return {
        "bench/tiny": commit_artifact("bench/tiny", bench_files(names)),
        "answers/moa--tiny": commit_artifact("answer/moa--tiny", {"parts/part-00000.parquet": answers_frame(texts)}),
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


@pytest.fixture
def make_judge(make_ctx: Any, judge: StubJudge, cell_inputs: dict[str, ArtifactRef]) -> MakeJudge:
    """`make_judge(max_invalid_share=0.5, runtime=..., environ=..., inputs=...)`: the context of one attempt."""

    def make(
        *,
        runtime: dict[str, Any] | None = None,
        environ: dict[str, str] | None = None,
        inputs: dict[str, ArtifactRef] | None = None,
        stop: Any = None,
        hash_: str = "0123456789abcdef",
        **params: Any,
    ) -> StageContext:
        context: StageContext = make_ctx(
            judge_params(**params),
            inputs or cell_inputs,
            stage="judge/moa--tiny--stub",
            hash_=hash_,
            runtime={"judge_endpoint": judge.endpoint, **(runtime or {})},
            environ=environ,
            stop=stop,
        )
        return context

    return make
