"""A cell of a benchmark with a tiny protocol, and a stub judge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from judging_support import NUM_ITEMS, SETTLED, MakeJudge, answers_frame, bench_files, judge_params
from judging_tiny import tiny_protocol_of
from support.stub_judge import StubJudge, running

from wrpo_engine.config import ArtifactRef
from wrpo_engine.stage import StageContext


@pytest.fixture
def judge() -> Iterator[StubJudge]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def tiny_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wrpo_engine.judging.cell.protocol_of", tiny_protocol_of)


@pytest.fixture
def cell_inputs(commit_artifact: Any) -> dict[str, ArtifactRef]:
    names = [f"q{number}" for number in range(NUM_ITEMS)]
    texts = {name: f"base {name}" if number < SETTLED else f"mine {name}" for number, name in enumerate(names)}
    return {
        "bench/tiny": commit_artifact("bench/tiny", bench_files(names)),
        "answers/moa--tiny": commit_artifact("answer/moa--tiny", {"parts/part-00000.parquet": answers_frame(texts)}),
    }


@pytest.fixture
def make_judge(make_ctx: Any, judge: StubJudge, cell_inputs: dict[str, ArtifactRef]) -> MakeJudge:
    """`make_judge(protocol="Text", runtime=..., environ=..., inputs=...)`: the context of one attempt."""

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
