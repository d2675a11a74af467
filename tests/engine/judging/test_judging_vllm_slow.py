"""vLLM's own server as the judge of a stage: a real peer of the client."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from engine_support import save_small_model
from judging_support import QUESTIONS, MakeJudge

from wrpo_engine.judging.stage import run

pytest.importorskip("vllm")


@pytest.mark.slow
def test_a_stage_serves_a_model_with_vllm_and_reads_its_log_probabilities(
    make_judge: MakeJudge, tmp_path: Path
) -> None:
    model = save_small_model(tmp_path / "model")
    ctx = make_judge(
        model="small",
        serve={"name": str(model)},
        max_tokens=1,
        max_model_length=512,
        engine_args={"seed": 1},
        runtime={"judge_endpoint": None, "judge_max_invalid_share": 1.0},
        environ={"HOME": str(tmp_path)},
    )
    metrics = run(ctx).metrics
    assert metrics["questions"] == QUESTIONS
    assert metrics["failed"] == metrics["too_long"] == 0
    assert metrics["completion_tokens"] >= QUESTIONS
    rows = pl.read_parquet(sorted((ctx.output.directory / "parts").glob("*.parquet")))
    first = [json.loads(raw)[0] for raw in rows["raw"]]
    # Tokens that are parts of a character have the same text, so fewer than five may be left.
    assert all(1 <= len(reply["logprobs"]) <= 6 for reply in first)
    assert {reply["model"] for reply in first} == {"small"}
    assert json.loads((ctx.output.directory / "protocol.json").read_text()) == {"protocol": "Logprobs"}
