"""The select stage takes each item's answers from one member: the best by its criterion, of equal ones the first."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cells import answers_frame, commit_cells, items_frame, rows_of

from wrpo_engine.artifacts import records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.selecting import select
from wrpo_engine.selecting.choice import choose

TURNS = {"q1": ["hi"], "q2": ["one?", "two?"], "q3": ["long"], "q4": ["all too long"]}
MEMBERS: dict[str, dict[str, Any]] = {
    "answers/a--b": {"q1": "a1", "q2": ["a2", "a3"], "q3": "a4", "q4": None},
    "answers/b--b": {"q1": "b1", "q2": ["b2", "b3"], "q3": None, "q4": None},
    "mixture/c--b": {"q1": "c1", "q2": ["c2", "c3"], "q3": "c4", "q4": None},
}
PERPLEXITY = ["perplexity/a--b", "perplexity/b--b", "perplexity/c--b"]
GRADES = ["grades/a--b--main", "grades/b--b--main", "grades/c--b--main"]


@pytest.fixture
def inputs(commit_artifact: Any) -> Any:
    return commit_cells(commit_artifact, TURNS, MEMBERS)


def params(by: str, criteria: list[str], **changes: Any) -> dict[str, Any]:
    return {"stage": "select", "by": by, "members": list(MEMBERS), "criteria": criteria, **changes}


def perplexities(rows: dict[str, tuple[float, int, int]]) -> pl.DataFrame:
    columns = ("item_id", "sum_logp", "tokens", "bytes", "skipped_eos")
    return pl.DataFrame(
        [(item, *values, 0) for item, values in rows.items()], schema=dict(records.PERPLEXITIES), orient="row"
    ).select(*columns)


def grades(rows: list[tuple[str, int, float]]) -> pl.DataFrame:
    full = [(item, turn, 0, score, False) for item, turn, score in rows]
    return pl.DataFrame(full, schema=dict(records.GRADES), orient="row")


def ranks(logits: dict[tuple[str, int, int], float]) -> pl.DataFrame:
    roles = list(MEMBERS)
    rows = [(item, roles[i], roles[j], logit, False, False) for (item, i, j), logit in logits.items()]
    return pl.DataFrame(rows, schema=dict(records.RANKS), orient="row")


def commit_parts(commit_artifact: Any, role: str, frame: pl.DataFrame) -> ArtifactRef:
    kind, _, name = role.partition("/")
    half = frame.height // 2
    parts = {"parts/part-00000.parquet": frame[:half], "parts/part-00001.parquet": frame[half:]}
    return commit_artifact(f"{kind}/{name}", parts)


def run(make_ctx: Any, inputs: Any, given: dict[str, Any], stage: str = "select/s--b") -> tuple[pl.DataFrame, Any]:
    ctx = make_ctx(given, inputs, stage=stage)
    result = select.run(ctx)
    return rows_of(ctx), result.metrics


def with_perplexities(commit_artifact: Any, inputs: Any, tables: list[dict[str, tuple[float, int, int]]]) -> Any:
    frames = zip(PERPLEXITY, map(perplexities, tables), strict=True)
    return {**inputs, **{role: commit_parts(commit_artifact, role, frame) for role, frame in frames}}


LOGPS: list[dict[str, tuple[float, int, int]]] = [
    {"q1": (-10.0, 5, 20), "q2": (-8.0, 4, 10), "q3": (-9.0, 3, 9), "q4": (0.0, 0, 1)},
    {"q1": (-9.0, 3, 20), "q2": (-8.0, 4, 10), "q3": (-1.0, 3, 9), "q4": (0.0, 0, 1)},
    {"q1": (-12.0, 5, 40), "q2": (-8.0, 4, 10), "q3": (-9.0, 3, 9), "q4": (0.0, 0, 1)},
]


def test_the_member_with_the_lowest_perplexity_of_the_prompt_is_chosen(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    given = with_perplexities(commit_artifact, inputs, LOGPS)
    rows, metrics = run(make_ctx, given, params("Perplexity", PERPLEXITY))
    assert dict(rows.schema) == records.ANSWERS | records.SELECTED
    assert rows.select("item_id", "turn", "text", "member", "criterion", "margin").rows() == [
        ("q1", 0, "a1", "a", -2.0, pytest.approx(0.4)),
        ("q2", 0, "a2", "a", -2.0, 0.0),
        ("q2", 1, "a3", "a", -2.0, 0.0),
        ("q3", 0, "a4", "a", -3.0, 0.0),
        ("q4", 0, "", "a", None, None),
    ]
    assert metrics == {
        "items": 4,
        "share_a": 1.0,
        "share_b": 0.0,
        "share_c": 0.0,
        "undecided": 1,
        "skipped": 1,
        "mean_margin": pytest.approx(0.4 / 3),
    }


def test_perplexity_per_byte_compares_members_of_different_tokenizers(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    given = with_perplexities(commit_artifact, inputs, LOGPS)
    rows, _ = run(make_ctx, given, params("Perplexity", PERPLEXITY, normalise="PerByte"))
    first = rows.filter(item_id="q1")
    assert (first["member"][0], first["criterion"][0], first["text"][0]) == ("c", pytest.approx(-0.3), "c1")
    assert first["margin"][0] == pytest.approx(0.15)
    assert rows.filter(item_id="q4")["criterion"][0] is None


def test_packllm_chooses_the_expert_of_the_least_loss() -> None:
    path = Path(__file__).parents[2] / "golden" / "comparisons" / "packllm.json"
    golden = json.loads(path.read_text())
    losses = golden["mean_losses"]
    choice = choose([-loss for loss in losses], range(len(losses)))
    assert golden["fusion"]["top1"]["printed"] == [f"top1 id:  tensor({choice.member})"]
    assert choice.criterion == -golden["fusion"]["top1"]["loss"]
    assert [math.exp(loss) for loss in losses] == pytest.approx(golden["perplexities"])


def test_a_member_without_a_target_in_the_prompt_loses_against_those_with_one() -> None:
    assert choose([None, -3.0, -2.0], [0, 1, 2]).member == 2
    assert choose([None, -3.0, None], [0, 1, 2]).margin is None
    assert choose([None, None, None], [1, 2]).member == 1


def with_grades(commit_artifact: Any, inputs: Any, tables: list[list[tuple[str, int, float]]]) -> Any:
    frames = zip(GRADES, map(grades, tables), strict=True)
    return {**inputs, **{role: commit_parts(commit_artifact, role, frame) for role, frame in frames}}


SCORES = [
    [("q1", 0, 0.5), ("q2", 0, 3.0), ("q2", 1, 0.0), ("q3", 0, -2.0)],
    [("q1", 0, 0.75), ("q2", 0, 1.0), ("q2", 1, 1.0)],
    [("q1", 0, 0.75), ("q2", 0, 0.0), ("q2", 1, 3.5), ("q3", 0, -2.5)],
]


def test_the_member_with_the_highest_mean_score_over_turns_is_chosen(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    rows, metrics = run(make_ctx, with_grades(commit_artifact, inputs, SCORES), params("Reward", GRADES))
    chosen = rows.unique("item_id", maintain_order=True).select("item_id", "member", "criterion", "margin").rows()
    assert chosen == [("q1", "b", 0.75, 0.0), ("q2", "c", 1.75, 0.25), ("q3", "a", -2.0, 0.5), ("q4", "a", None, None)]
    assert (metrics["share_a"], metrics["share_b"], metrics["share_c"]) == (0.5, 0.25, 0.25)


def all_pairs(item: str, matrix: list[list[float]], indices: list[int]) -> dict[tuple[str, int, int], float]:
    return {(item, i, j): matrix[i][j] for i in indices for j in indices if i != j}


M1 = [[0, 2.0, -1.0], [1.0, 0, 0.5], [3.0, 1.5, 0]]
M2 = [[0, 9.0, -0.1], [-0.1, 0, -0.1], [0.1, 0.1, 0]]
RANKS = all_pairs("q1", M1, [0, 1, 2]) | all_pairs("q2", M2, [0, 1, 2]) | all_pairs("q3", M1, [0, 2])


def test_the_best_rank_of_pairrm_is_chosen_among_the_members_that_answered(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    logits = RANKS | all_pairs("q4", M1, [0, 1, 2])
    given = {**inputs, "rank/s--b": commit_parts(commit_artifact, "rank/s--b", ranks(logits))}
    rows, _ = run(make_ctx, given, params("PairRM", ["rank/s--b"]))
    chosen = rows.unique("item_id", maintain_order=True).select("item_id", "member", "criterion", "margin").rows()
    assert chosen == [
        ("q1", "c", pytest.approx(5 / 3), pytest.approx(7 / 3)),
        ("q2", "a", pytest.approx(8.9 / 3), pytest.approx(8.9 / 3 - 0.4 / 3)),
        ("q3", "c", 2.0, 4.0),
        ("q4", "c", pytest.approx(5 / 3), pytest.approx(7 / 3)),
    ]
    wins, _ = run(make_ctx, given, params("PairRM", ["rank/s--b"], aggregation="MaxWins"), stage="select/wins--b")
    assert wins.filter(item_id="q2").select("member", "criterion", "margin").row(0) == ("c", 4.0, 2.0)


def test_a_draw_follows_from_seed_and_item_alone_and_is_even(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    items = {f"i{number}": ["?"] for number in range(900)}
    given = {"bench/b": commit_artifact("bench/many", {"items.parquet": items_frame(items)})}
    for role in MEMBERS:
        frame = answers_frame(dict.fromkeys(items, role))
        given[role] = commit_artifact(f"many/{role[-4]}", {"parts/part-00000.parquet": frame})
    rows, metrics = run(make_ctx, given, params("Random", []))
    again, _ = run(make_ctx, given, params("Random", []), stage="select/again--b")
    other, _ = run(make_ctx, given, params("Random", [], seed=1), stage="select/other--b")
    assert rows.equals(again)
    assert not rows.equals(other)
    assert all(250 < count < 350 for count in Counter(rows["member"]).values())
    assert "mean_margin" not in metrics
    drawn, _ = run(make_ctx, inputs, params("Random", []), stage="select/few--b")
    assert drawn.filter(item_id="q3")["member"][0] in {"a", "c"}


def test_two_members_of_one_system_are_told_apart_by_their_roles(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    twin = commit_artifact("select/a", {"parts/part-00000.parquet": answers_frame(MEMBERS["answers/a--b"])})
    given = {**inputs, "selected/a--b": twin}
    _, metrics = run(make_ctx, given, params("Random", [], members=["answers/a--b", "selected/a--b"]))
    assert {name for name in metrics if name.startswith("share_")} == {"share_answers/a--b", "share_selected/a--b"}


def refused(make_ctx: Any, inputs: Any, given: dict[str, Any], kind: type[Exception] = DataError) -> Any:
    with pytest.raises(kind) as error:
        select.run(make_ctx(given, inputs, stage="select/s--b"))
    return error.value


def test_a_perplexity_that_is_missing_names_item_and_member(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    tables = [LOGPS[0], {item: row for item, row in LOGPS[1].items() if item != "q2"}, LOGPS[2]]
    error = refused(make_ctx, with_perplexities(commit_artifact, inputs, tables), params("Perplexity", PERPLEXITY))
    assert error.message == "perplexity/b--b has no perplexity of item_id q2 for the member b (answers/b--b)"
    assert error.code == "InputsDisagree"


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_perplexity_that_is_no_number_is_refused(
    value: float, make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    tables = [LOGPS[0], {**LOGPS[1], "q2": (value, 4, 10)}, LOGPS[2]]
    error = refused(make_ctx, with_perplexities(commit_artifact, inputs, tables), params("Perplexity", PERPLEXITY))
    assert error.message == f"the sum_logp of item_id q2 in perplexity/b--b is {value}, not a finite number"


def test_a_score_that_is_missing_names_item_and_member(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    given = with_grades(commit_artifact, inputs, [SCORES[0], SCORES[1], SCORES[2][:3]])
    error = refused(make_ctx, given, params("Reward", GRADES))
    assert error.message == "grades/c--b--main has no score of item_id q3 for the member c (mixture/c--b)"


def test_two_scores_of_one_answer_are_refused(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    given = with_grades(commit_artifact, inputs, [SCORES[0], [*SCORES[1], ("q2", 1, 5.0)], SCORES[2]])
    error = refused(make_ctx, given, params("Reward", GRADES))
    assert error.message == "grades/b--b--main has two rows of item_id q2, sample_index 0, turn 1"


def test_a_score_that_is_no_number_is_refused(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    given = with_grades(commit_artifact, inputs, [SCORES[0], [("q1", 0, math.nan), *SCORES[1][1:]], SCORES[2]])
    error = refused(make_ctx, given, params("Reward", GRADES))
    assert error.message == "the score of item_id q1 in grades/b--b--main is nan, not a finite number"


def test_a_pair_that_was_not_compared_names_item_and_members(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    logits = {key: value for key, value in RANKS.items() if key != ("q2", 1, 2)}
    given = {**inputs, "rank/s--b": commit_parts(commit_artifact, "rank/s--b", ranks(logits))}
    error = refused(make_ctx, given, params("PairRM", ["rank/s--b"]))
    assert error.message == "rank/s--b has no logit of item_id q2 against mixture/c--b for the member b (answers/b--b)"


@pytest.mark.parametrize(
    ("by", "criteria", "wanted"),
    [("Perplexity", PERPLEXITY[:2], 3), ("Reward", [], 3), ("PairRM", GRADES, 1), ("Random", PERPLEXITY[:1], 0)],
)
def test_another_number_of_criteria_than_the_selection_needs_is_refused(
    by: str, criteria: list[str], wanted: int, make_ctx: Any, inputs: dict[str, ArtifactRef]
) -> None:
    error = refused(make_ctx, inputs, params(by, criteria), ConfigError)
    shown = ", ".join(criteria) or "none"
    assert error.message == f"criteria is {shown!r}: select by {by} with 3 members needs {wanted} roles"
