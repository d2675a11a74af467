"""The real protocols through the stage and the judge server, whose opinion is known: longer is better."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from judging_support import answers_frame, bench_files, judge_params
from judging_texts import ALPACA, ARENA, by_length

from wrpo_engine.config import ArtifactRef
from wrpo_engine.judging import cell
from wrpo_engine.judging.protocols import protocol_of
from wrpo_engine.judging.server.batching import BatchingScorer
from wrpo_engine.judging.server.http import JudgeServer
from wrpo_engine.judging.server.opinions import Scale
from wrpo_engine.judging.stage import run
from wrpo_engine.scoring.function import FunctionScorer
from wrpo_engine.stage import StageContext

NUM_ITEMS = 30
NAMES = [f"q{number}" for number in range(NUM_ITEMS)]
ANSWERS = {name: "x" * (number + 1) for number, name in enumerate(NAMES)}


@pytest.fixture(autouse=True)
def real_protocols(monkeypatch: pytest.MonkeyPatch, tiny_protocol: None) -> None:
    monkeypatch.setattr(cell, "protocol_of", protocol_of)


@pytest.fixture
def server() -> Iterator[str]:
    scorer = BatchingScorer(FunctionScorer(f"{by_length.__module__}:by_length"))
    with JudgeServer(("127.0.0.1", 0), model="stub-judge", scorer=scorer, scale=Scale()) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}/v1"
        found.shutdown()
        thread.join()


@pytest.fixture
def judged(make_ctx: Any, commit_artifact: Any) -> Any:
    """`judged(templates, benchmark_protocol=..., runtime=...)`: run a stage; its context and metrics."""

    def make(templates: dict[str, str], *, runtime: dict[str, Any], environ: Any = None, **params: Any) -> Any:
        files = bench_files(NAMES) | {"templates.json": json.dumps(templates)}
        inputs: dict[str, ArtifactRef] = {
            "bench/real": commit_artifact("bench/real", files),
            "answers/moa--tiny": commit_artifact("answer/real", {"parts/part-00000.parquet": answers_frame(ANSWERS)}),
        }
        ctx = make_ctx(judge_params(**params), inputs, stage="judge/real", runtime=runtime, environ=environ)
        return ctx, run(ctx).metrics

    return make


def expected_alpaca() -> float:
    """The mean chance that the answer is preferred to the baseline, by the server's rule."""
    from wrpo_engine.judging.server.opinions import log_sigmoid

    margins = [(len(ANSWERS[name]) - len(f"base {name}")) / 10 for name in NAMES]
    return 100 * sum(2.718281828459045 ** log_sigmoid(margin) for margin in margins) / NUM_ITEMS


def texts(ctx: StageContext, name: str) -> str:
    return (ctx.output.directory / name).read_text()


def test_a_stage_that_serves_a_reward_judges_alpaca_eval_by_it(judged: Any) -> None:
    path = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[3]}"}
    function = f"{by_length.__module__}:by_length"
    ctx, metrics = judged(
        {"alpaca_eval_clf": ALPACA}, runtime={}, environ=path, serve_reward={"function": function}, model="by-length"
    )
    assert metrics["win_rate"] == pytest.approx(expected_alpaca(), abs=1e-6)
    assert (metrics["questions"], metrics["ok"]) == (NUM_ITEMS, NUM_ITEMS)
    assert json.loads(texts(ctx, "benchmark.json"))["judge"]["model"] == "by-length"


def test_arena_hard_is_judged_in_both_orders_without_position_bias(judged: Any, server: str) -> None:
    ctx, metrics = judged(
        {"system": "Judge.", "user": ARENA}, benchmark_protocol="ArenaHard", runtime={"judge_endpoint": server}
    )
    assert (metrics["questions"], metrics["ok"]) == (2 * NUM_ITEMS, 2 * NUM_ITEMS)
    rows = pl.read_parquet(sorted((ctx.output.directory / "parts").glob("*.parquet")))
    by_item = {name: set(rows.filter(pl.col("item_id") == name)["value"]) for name in NAMES}
    assert all(len(values) == 1 for values in by_item.values())
    assert by_item["q0"] == {0.0}
    assert by_item["q29"] == {1.0}


def test_mt_bench_is_rated_with_its_own_prompts(judged: Any, server: str) -> None:
    names = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
    single = "[Question]\n{question}\n\n[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
    reference = "[The Start of Reference Answer]\n{ref_answer_1}\n[The End of Reference Answer]\n\n"
    math = single.replace("[The Start of Assistant's", f"{reference}[The Start of Assistant's")
    turns = "{question_1} {answer_1} {question_2} {answer_2} {ref_answer_1} {ref_answer_2}"
    users = dict(zip(names, (single, math, turns, turns), strict=True))
    templates = {f"{name}/user": user for name, user in users.items()} | {f"{name}/system": "Judge." for name in names}
    ctx, metrics = judged(templates, benchmark_protocol="MTBench", runtime={"judge_endpoint": server})
    assert (metrics["questions"], metrics["ok"]) == (NUM_ITEMS, NUM_ITEMS)
    rows = pl.read_parquet(ctx.output.directory / "parts/part-00000.parquet")
    ratings = dict(zip(rows["item_id"], rows["value"], strict=True))
    assert [ratings[name] for name in NAMES] == sorted(ratings.values())
    assert 1 <= min(ratings.values()) < max(ratings.values()) <= 10
