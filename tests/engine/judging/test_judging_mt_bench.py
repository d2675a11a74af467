"""MT-Bench's real questions through every stage: bundle, two turns of answers, ratings, evaluation."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from engine_support import save_tiny_model
from support.stub_judge import MODEL, Reply, StubJudge, completion

from wrpo_engine.answering import stage as answering
from wrpo_engine.bundles import stage as bundles
from wrpo_engine.config import ArtifactRef
from wrpo_engine.evaluation import stage as evaluation
from wrpo_engine.judging import cell
from wrpo_engine.judging import stage as judging
from wrpo_engine.judging.protocols import protocol_of

QUESTIONS = 2
RATINGS = {1: 8, 2: 5}
"""Turn -> the judge's rating of it."""


@pytest.fixture(autouse=True)
def real_protocols(monkeypatch: pytest.MonkeyPatch, tiny_protocol: None) -> None:
    monkeypatch.setattr(cell, "protocol_of", protocol_of)


def rate(_: int, body: dict[str, Any]) -> Reply:
    """The prompt for the second turn has the whole conversation."""
    turn = 2 if "Conversation with User" in json.dumps(body["messages"]) else 1
    return Reply(content=completion(f"It is an answer. Rating: [[{RATINGS[turn]}]]"))


@pytest.mark.slow
def test_the_real_questions_go_through_every_stage_and_native_files_read_back(
    make_ctx: Any, judge: StubJudge, tmp_path: Any
) -> None:
    judge.fault = rate
    inputs: dict[str, ArtifactRef] = {}

    def run(module: Any, role: str, stage: str, params: dict[str, Any], **runtime: Any) -> Any:
        ctx = make_ctx(params, dict(inputs), stage=stage, runtime=runtime)
        module.run(ctx)
        inputs[role] = ArtifactRef(stage=stage, hash=ctx.output.ref.hash)
        return ctx.output.committed()

    bench = run(bundles, "bench/mt", "bench/mt", {"stage": "bench", "benchmark": "MTBench", "limit": QUESTIONS})
    assert json.loads(bench.file("bundle.json").read_text())["reference_set"] == "gpt-4-0125-preview"
    model = {"name": str(save_tiny_model(tmp_path / "model", context=4096))}
    answer = {
        "stage": "answer",
        "model": model,
        "system": "tiny",
        "benchmark": "MTBench",
        "uses_item_temperature": True,
    }
    answers = run(
        answering,
        "answers/tiny--mt",
        "answer/tiny--mt",
        {**answer, "uses_item_temperature": True, "backend": "Transformers", "max_tokens": 8, "dtype": "float32"},
    )
    asked = {
        "stage": "judge",
        "model": MODEL,
        "benchmark": "MTBench",
        "benchmark_protocol": "MTBench",
        "system": "tiny",
        "answers": "answers/tiny--mt",
    }
    verdicts = run(judging, "verdicts/tiny--mt--stub", "judge/tiny--mt--stub", asked, judge_endpoint=judge.endpoint)
    assert len(judge.bodies) == 2 * QUESTIONS
    evaluated = {
        "stage": "evaluate",
        "systems": [{"name": "tiny", "label": "tiny"}],
        "benchmarks": [{"name": "mt", "kind": "MTBench", "protocol": "MTBench", "judges": ["stub"]}],
        "subject": "tiny",
    }
    content = json.loads(run(evaluation, "evaluate", "evaluate", evaluated).file("benchmarks.json").read_text())
    (column,) = content["columns"]
    (row,) = column["cells"]
    assert (column["unit"], column["items"], row["score"]) == ("points", QUESTIONS, 6.5)
    assert [(turn["score"], turn["verdicts"]) for turn in row["turns"]] == [(8, QUESTIONS), (5, QUESTIONS)]
    items = pl.read_parquet(bench.file("items.parquet"))
    (line, *_) = answers.file("native/model_answer/tiny.jsonl").read_text().splitlines()
    native = json.loads(line)
    assert (str(native["question_id"]), len(native["choices"][0]["turns"])) == (items["item_id"][0], 2)
    judged = [
        json.loads(line)
        for line in verdicts.file(f"native/model_judgment/{MODEL}_single.jsonl").read_text().splitlines()
    ]
    assert sorted((each["turn"], each["score"]) for each in judged) == [(1, 8), (1, 8), (2, 5), (2, 5)]
