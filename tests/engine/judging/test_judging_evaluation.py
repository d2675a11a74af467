"""The evaluation reads what the judge stage commits."""

from __future__ import annotations

import polars as pl
import pytest
from judging_support import QUESTIONS, MakeJudge
from support.stub_judge import StubJudge

from wrpo_engine.evaluation.cells import verdicts_of
from wrpo_engine.judging.stage import run


def test_the_evaluation_reads_the_verdicts_outcomes_and_identity_of_a_judge(
    make_judge: MakeJudge, judge: StubJudge
) -> None:
    ctx = make_judge()
    run(ctx)
    assert judge.asked
    artifact = ctx.output.committed()
    assert artifact is not None
    items = pl.read_parquet(artifact.file("outcomes.parquet"))["item_id"].to_list()
    cell = verdicts_of(artifact, items, "verdicts/moa--tiny--gpt")
    assert cell.verdicts is not None
    assert cell.verdicts.height == QUESTIONS
    assert cell.counts == {"ok": float(QUESTIONS)}
    assert (cell.identity["model"], cell.identity["protocol"]) == ("stub-judge", "Logprobs")
    assert 100 * cell.judged().mean == pytest.approx(artifact.manifest.metrics["win_rate"])
    assert cell.invalid_share == 0.0
