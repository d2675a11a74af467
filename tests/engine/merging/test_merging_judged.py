"""A search of merge weights by a judge of a benchmark: its scores are those of a judge stage, and it asks once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import save_tiny_model
from support.protocol_cases import ALPACA, ARENA, MT
from support.stub_judge import MODEL, Body, Reply, StubJudge, completion, running, share_of

from wrpo_engine.artifacts import records
from wrpo_engine.errors import ConfigError, DataError, Interrupted
from wrpo_engine.judging import stage as judging
from wrpo_engine.merging import stage
from wrpo_engine.stage import StageContext, StopRequest

NAMES = [f"q{number}" for number in range(5)]
SEEN, EVALUATED = NAMES[:3], NAMES[3:]
Answer = Callable[[int, Body], Reply | None]


def arena(_: int, body: Body) -> Reply:
    return Reply(content=completion(f"My final verdict: [[{('A>>B', 'A>B', 'A=B', 'B>A')[int(4 * share_of(body))]}]]"))


def points(_: int, body: Body) -> Reply:
    return Reply(content=completion(f"Rating: [[{1 + int(10 * share_of(body))}]]"))


PROTOCOLS: dict[str, tuple[dict[str, str], Answer, str, int]] = {
    "AlpacaEval2": (ALPACA, lambda _, __: None, "win_rate", 1),
    "ArenaHard": (ARENA, arena, "score", 1),
    "MTBench": (MT, points, "overall", 2),
}
"""Judge prompts, replies of the judge, the metric of a judge stage that is a system's score, turns of an item."""


@pytest.fixture
def judge() -> Iterator[StubJudge]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [save_tiny_model(root / str(seed), seed=seed) for seed in range(3)]


def items(names: list[str], turns: int) -> pl.DataFrame:
    rows = [
        {
            "item_id": name,
            "index": index,
            "category": "writing",
            "turns": [f"hi {name}", "why?"][:turns],
            "messages": [],
        }
        for index, name in enumerate(names)
    ]
    return pl.DataFrame(rows, schema=records.BENCH_ITEMS)


@pytest.fixture
def make_search(
    make_ctx: Any, commit_artifact: Any, judge: StubJudge, models: list[Path]
) -> Callable[..., StageContext]:
    """`make_search("MTBench", stop=..., budget=4, max_requests=...)`: the context of one attempt."""

    def make(
        protocol: str = "AlpacaEval2",
        *,
        budget: int = 4,
        stop: StopRequest | None = None,
        max_requests: int | None = None,
        seen: list[str] = SEEN,
    ) -> StageContext:
        templates, judge.fault, _, turns = PROTOCOLS[protocol]
        baseline = [{"item_id": name, "generator": "base", "turns": [f"base {name}"] * turns} for name in NAMES]
        files: dict[str, Any] = {
            "items.parquet": items(EVALUATED, turns),
            "baseline.parquet": pl.DataFrame(baseline, schema=records.BENCH_BASELINE),
            "templates.json": json.dumps(templates),
        }
        files |= {"development.parquet": items(seen, turns)} if seen else {}
        digest = hashlib.sha256(f"{protocol}{seen}".encode()).hexdigest()[:16]
        inputs = {"bench/dev": commit_artifact("bench/dev", files, hash_=digest)}
        params = {
            "stage": "merge", "method": "TaskArithmetic", "base": {"name": str(models[0])},
            "models": [{"name": str(path)} for path in models[1:]], "weight": [0.5],
            "search": {
                "judge": {"model": MODEL, "benchmark": "Custom", "benchmark_protocol": protocol},
                "budget": budget, "population": 2, "groups": "Layer", "prompts": 3, "max_tokens": 4, "sigma": 2.0,
            },
        }  # fmt: skip
        runtime = {
            "judge_endpoint": judge.endpoint, "judge_concurrency": 1, "judge_max_requests": max_requests,
            "model_sections": {"model": "evaluation.judges[stub]"},
        }  # fmt: skip
        ctx: StageContext = make_ctx(params, inputs, stage="merge/m", hash_=digest, runtime=runtime, stop=stop)
        return ctx

    return make


def content(ctx: StageContext) -> dict[str, str]:
    artifact = ctx.output.committed()
    assert artifact is not None
    return {entry.name: entry.sha256 for entry in artifact.manifest.files}


def request_stop(stop: StopRequest, request: int, number: int) -> None:
    if number + 1 >= request:
        stop.request()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_candidate_has_the_score_that_a_judge_stage_gives_the_same_answers(
    make_search: Any, make_ctx: Any, commit_artifact: Any, judge: StubJudge, protocol: str
) -> None:
    ctx = make_search(protocol, budget=2)
    stage.run(ctx)
    artifact = ctx.output.committed()
    templates, _, metric, turns = PROTOCOLS[protocol]
    place = "points/generation-0000-candidate-000"
    answers = json.loads(artifact.file(f"{place}/answers.json").read_text())
    assert sorted(answers) == SEEN, "no item that is evaluated"
    assert {len(texts) for texts in answers.values()} == {turns}
    rows = [
        {"item_id": name, "turn": turn, "sample_index": 0, "text": text, "num_tokens": 1, "finish_reason": "stop",
         "seed": 0, "prompt_tokens": 1, "references_cut": 0}
        for name, texts in answers.items() for turn, text in enumerate(texts)
    ]  # fmt: skip
    baseline = ctx.input("bench/dev").file("baseline.parquet").read_bytes()
    inputs = {
        "bench/dev": commit_artifact("bench/dev", {
            "items.parquet": items(SEEN, turns), "baseline.parquet": baseline, "templates.json": json.dumps(templates),
        }),
        "answers/m--dev": commit_artifact(
            "answer/m--dev", {"parts/part-00000.parquet": pl.DataFrame(rows, schema=records.ANSWERS)}),
    }  # fmt: skip
    params = {
        "stage": "judge", "model": MODEL, "benchmark": "Custom", "benchmark_protocol": protocol, "system": "m",
        "answers": "answers/m--dev",
    }  # fmt: skip
    result = judging.run(make_ctx(params, inputs, stage="judge/m", runtime={"judge_endpoint": judge.endpoint}))
    point = json.loads(artifact.file(f"{place}.json").read_text())
    assert point["fitness"] == pytest.approx(result.metrics[metric])
    found = json.loads(artifact.file("merge.json").read_text())["search"]
    unit = "points" if protocol == "MTBench" else "%"
    assert found["measure"] == f"score ({unit}) by judge {MODEL} on 3 development items of Custom"


def test_a_search_that_is_killed_asks_no_question_twice_and_finds_the_same(make_search: Any, judge: StubJudge) -> None:
    whole = make_search("ArenaHard")
    stage.run(whole)
    expected, needed = content(whole), len(judge.asked)
    assert needed > len(SEEN) * 2, "candidates differ in their answers"
    assert set(judge.asked.values()) == {1}
    shutil.rmtree(whole.output.directory)
    judge.asked.clear()
    judge.bodies.clear()
    attempts = 0
    last = make_search("ArenaHard")
    while last.output.committed() is None:
        stop = StopRequest()
        judge.on_request = partial(request_stop, stop, 1 + 4 * attempts)
        attempts += 1
        with suppress(Interrupted):
            stage.run(make_search("ArenaHard", stop=stop, max_requests=4 * len(SEEN) * 2))
    assert attempts > needed // 4
    assert content(last) == expected
    assert (len(judge.asked), set(judge.asked.values())) == (needed, {1})
    assert "journal" not in {name.partition("/")[0] for name in expected}


def test_a_budget_counts_the_requests_of_all_candidates(make_search: Any, judge: StubJudge) -> None:
    with pytest.raises(ConfigError, match="requests were sent and at least") as caught:
        stage.run(make_search("ArenaHard", max_requests=7))
    assert (caught.value.code, caught.value.field) == ("JudgeBudgetExceeded", "evaluation.judges[stub].maxRequests")
    assert sum(judge.asked.values()) <= 7


def test_a_benchmark_without_development_items_is_refused(make_search: Any, judge: StubJudge) -> None:
    with pytest.raises(DataError, match="the Custom benchmark has no development items") as caught:
        stage.run(make_search(seen=[]))
    assert (caught.value.code, caught.value.field) == ("NoPrompts", "evaluation.benchmarks")
    assert not judge.bodies
