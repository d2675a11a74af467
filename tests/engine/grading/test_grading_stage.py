"""Grades belong to their answers, whatever parts, shards and interruptions; wrong inputs are errors that name a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cells import answers_frame, items_frame, rows_of

from wrpo_engine.artifacts import records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import DataError, Interrupted
from wrpo_engine.grading import stage
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.scoring.reward_model import RewardScorer
from wrpo_engine.stage import StopRequest

ROLE = "answers/qwen--mt"
TURNS = {"q1": ["hi", "and now?"], "q2": ["one"], "q3": ["two", "three"], "q4": ["far too long"]}
ANSWERS: dict[str, Any] = {"q1": ["yo", "later"], "q2": "won", "q3": ["tu", ""], "q4": None}


@pytest.fixture
def inputs(commit_artifact: Any) -> dict[str, ArtifactRef]:
    return {
        "bench/mt": commit_artifact("bench/mt", {"items.parquet": items_frame(TURNS)}),
        ROLE: commit_artifact("answer/qwen--mt", {"parts/part-00000.parquet": answers_frame(ANSWERS)}),
    }


def params(reward: Path, **changes: Any) -> dict[str, Any]:
    return {"stage": "grade", "reward": {"name": str(reward)}, "answers": ROLE, "rows_per_part": 2, **changes}


def test_each_answer_is_scored_after_the_conversation_so_far(
    make_ctx: Any, inputs: dict[str, ArtifactRef], tiny_reward_dir: Path
) -> None:
    ctx = make_ctx(params(tiny_reward_dir), inputs, stage="grade/qwen--mt--main")
    result = stage.run(ctx)
    rows = rows_of(ctx)
    scorer = RewardScorer(ResolvedModel(tiny_reward_dir, "tiny", None), max_length=4096, batch_tokens=4096)
    first = scorer.score([("hi", "yo"), ("one", "won"), ("two", "tu")])
    later = scorer.score(
        [
            ((("user", "hi"), ("assistant", "yo"), ("user", "and now?")), "later"),
            ((("user", "two"), ("assistant", "tu"), ("user", "three")), ""),
        ]
    )
    expected = [first[0], later[0], first[1], first[2], later[1]]
    assert list(rows.select("item_id", "turn", "sample_index").iter_rows()) == [
        ("q1", 0, 0),
        ("q1", 1, 0),
        ("q2", 0, 0),
        ("q3", 0, 0),
        ("q3", 1, 0),
    ]
    assert rows["score"].to_list() == pytest.approx(expected, abs=1e-6)
    assert dict(rows.select(*records.GRADES).schema) == records.GRADES
    assert (result.metrics["responses"], result.metrics["skipped"]) == (5, 1)
    assert result.metrics["mean_score"] == pytest.approx(sum(expected) / 5)
    assert ctx.output.committed().manifest.details["reward"]["name"] == str(tiny_reward_dir)


def test_held_out_prompts_are_graded_as_the_score_stage_does(
    make_ctx: Any, commit_artifact: Any, tiny_reward_dir: Path
) -> None:
    prompts = pl.DataFrame({"prompt_id": ["p1", "p2"], "prompt": ["one?", "two?"]})
    inputs = {
        "prompts": commit_artifact("prepare", {"evaluation.parquet": prompts}),
        ROLE: commit_artifact(
            "answer/sft--held-out", {"parts/part-00000.parquet": answers_frame({"p1": "a", "p2": "b"})}
        ),
    }
    ctx = make_ctx(params(tiny_reward_dir), inputs, stage="grade/sft--held-out--main")
    stage.run(ctx)
    scorer = RewardScorer(ResolvedModel(tiny_reward_dir, "tiny", None), max_length=4096, batch_tokens=4096)
    assert rows_of(ctx)["score"].to_list() == pytest.approx(scorer.score([("one?", "a"), ("two?", "b")]), abs=1e-6)


def content(ctx: Any) -> dict[str, bytes]:
    artifact = ctx.output.committed()
    return {name: artifact.file(name).read_bytes() for name in artifact.files()}


def test_shards_and_interruptions_change_no_byte(
    make_ctx: Any, inputs: dict[str, ArtifactRef], tiny_reward_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_ctx(params(tiny_reward_dir), inputs, stage="grade/whole")
    stage.run(whole)

    stop = StopRequest()
    stopped = make_ctx(params(tiny_reward_dir), inputs, stage="grade/stopped", stop=stop)
    monkeypatch.setattr(stopped.progress, "update", lambda done, *_, **__: stop.request() if done >= 3 else None)
    with pytest.raises(Interrupted):
        stage.run(stopped)
    assert 0 < len(stopped.output.published("parts/")) < 3
    resumed = make_ctx(params(tiny_reward_dir), inputs, stage="grade/stopped")
    assert stage.run(resumed).rows < 5
    assert content(resumed) == content(whole)

    shards = [
        make_ctx(params(tiny_reward_dir), inputs, stage="grade/sharded", runtime={"shards": 2}, shard=shard)
        for shard in (1, 0)
    ]
    assert [bool(stage.run(ctx).metrics) for ctx in shards] == [False, True]
    assert content(shards[0]) == content(whole)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an item without an answer": ({"q2": None}, "the answer item_id q2, sample_index 0, turn 0 of {role} is missing"),
    "a turn without an answer": ({"q3": ["tu"]}, "the answer item_id q3, sample_index 0, turn 1 of {role} is missing"),
    "an answer to no item": (
        {"q9": "what?"},
        "the answer item_id q9, sample_index 0, turn 0 of {role} belongs to no item of the benchmark",
    ),
    "an answer to no turn": (
        {"q2": ["won", "more"]},
        "the answer item_id q2, sample_index 0, turn 1 of {role} belongs to none of the item's 1 turns",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_answers_that_do_not_fit_the_items_are_refused_by_name(
    name: str, make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    change, message = WRONG[name]
    answers = {**ANSWERS, **change}
    if name == "an item without an answer":
        del answers["q2"]
    refuse(make_ctx, commit_artifact, inputs, answers_frame(answers), message)


def test_two_answers_to_one_turn_are_refused_by_name(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    frame = answers_frame(ANSWERS)
    twice = pl.concat([frame, frame.head(1)])
    refuse(
        make_ctx, commit_artifact, inputs, twice, "the answer item_id q1, sample_index 0, turn 0 of {role} occurs twice"
    )


def refuse(make_ctx: Any, commit_artifact: Any, inputs: Any, frame: pl.DataFrame, message: str) -> None:
    wrong = commit_artifact("answer/wrong", {"parts/part-00000.parquet": frame})
    ctx = make_ctx(params(Path("/nowhere")), {**inputs, ROLE: wrong}, stage="grade/qwen--mt--main")
    with pytest.raises(DataError) as error:
        stage.run(ctx)
    assert error.value.message == message.format(role=ROLE)
    assert error.value.code == "InputsDisagree"
    assert error.value.hint == "Use answers together with the items of the benchmark that they answer."
