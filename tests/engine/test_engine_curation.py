"""What is chosen equals a brute-force reading of the rules, and every prompt is a row or a counted drop."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine import records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.curation.candidates import best
from wrpo_engine.curation.stage import run_sft, run_triples
from wrpo_engine.curation.triples import Candidate, Dropped, Rules, Triple, choose_triple, curate
from wrpo_engine.errors import DataError

SCORES = st.sampled_from([0.0, 0.25, 0.5, 1.0])
TEXTS = st.sampled_from(["a", "b", "c"])


@st.composite
def answers(draw: st.DrawFn, source: str = "target") -> list[Candidate]:
    drawn = draw(st.lists(st.tuples(TEXTS, SCORES), max_size=5))
    return [Candidate(source, index, text, score) for index, (text, score) in enumerate(drawn)]


RULES = st.builds(
    Rules,
    score_margin=st.sampled_from([0.0, 0.25, 0.6]),
    require_source_better=st.booleans(),
    on_tie=st.sampled_from(["Drop", "KeepFirst"]),
    needs_source=st.booleans(),
)


def brute_force(source: Candidate | None, target: list[Candidate], rules: Rules) -> Triple | None:
    """Look at every pair, keep those the rules allow, take the best by the documented order."""
    if not target or (rules.needs_source and source is None):
        return None
    top = max(answer.score for answer in target)
    first_top = next(answer for answer in target if answer.score == top)
    pairs = [
        (chosen, rejected)
        for chosen, rejected in itertools.permutations(target, 2)
        if chosen == first_top and rejected.text != chosen.text
    ]
    if not pairs:
        return None
    lowest = min(rejected.score for _, rejected in pairs)
    chosen, rejected = next(pair for pair in pairs if pair[1].score == lowest)
    if rules.on_tie == "Drop" and chosen.score == rejected.score:
        return None
    if chosen.score - rejected.score < rules.score_margin:
        return None
    if rules.needs_source and rules.require_source_better and source is not None and source.score <= chosen.score:
        return None
    kept = source if rules.needs_source else None
    return Triple(prompt_id="p", source_chosen=kept, target_chosen=chosen, rejected=rejected)


@given(source=st.none() | st.builds(Candidate, st.just("s"), st.just(0), TEXTS, SCORES), target=answers(), rules=RULES)
def test_a_triple_is_what_the_rules_say(source: Candidate | None, target: list[Candidate], rules: Rules) -> None:
    outcome = choose_triple("p", source, target, rules)
    expected = brute_force(source, target, rules)
    assert (None if isinstance(outcome, Dropped) else outcome) == expected


@given(targets=st.lists(answers(), max_size=8), rules=RULES)
def test_every_prompt_is_a_triple_or_a_counted_drop(targets: list[list[Candidate]], rules: Rules) -> None:
    ids = [str(number) for number in range(len(targets))]
    source = {number: Candidate("s", 0, "a", 0.5) for number in ids[::2]}
    curated = curate(ids, source, dict(zip(ids, targets, strict=True)), rules)
    assert len(curated.triples) + sum(curated.dropped.values()) == len(ids)
    kept = [triple.prompt_id for triple in curated.triples]
    assert kept == [number for number in ids if number in set(kept)]


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["p", "q"]), st.sampled_from(["x", "y"]), st.integers(0, 3), SCORES),
        max_size=12,
        unique_by=lambda row: row[:3],
    )
)
def test_the_best_answer_has_the_highest_score_then_the_first_name_and_index(
    rows: list[tuple[str, str, int, float]],
) -> None:
    schema = {"prompt_id": pl.String, "source": pl.String, "sample_index": pl.Int64, "score": pl.Float64}
    chosen = best(pl.DataFrame(rows, schema=schema, orient="row"))
    for prompt in {row[0] for row in rows}:
        expected = min((row for row in rows if row[0] == prompt), key=lambda row: (-row[3], row[1], row[2]))
        assert chosen.filter(pl.col("prompt_id") == prompt).rows() == [expected]


TIES = {
    "all tie, dropped": (["a", "b"], [1.0, 1.0], "Drop", Dropped.TARGET_TIE),
    "all tie, the first two differing texts are kept": (["a", "a", "b"], [1.0, 1.0, 1.0], "KeepFirst", (0, 2)),
    "identical texts teach nothing": (["a", "a"], [1.0, 1.0], "KeepFirst", Dropped.TARGET_IDENTICAL),
    "one answer alone": (["a"], [1.0], "KeepFirst", Dropped.TARGET_IDENTICAL),
    "two best, the first counts": (["a", "b", "c"], [1.0, 1.0, 0.0], "Drop", (0, 2)),
    "two worst, the first counts": (["a", "b", "c"], [1.0, 0.0, 0.0], "Drop", (0, 1)),
}


@pytest.mark.parametrize(("texts", "scores", "on_tie", "expected"), TIES.values(), ids=TIES.keys())
def test_ties_follow_the_sample_index(texts: list[str], scores: list[float], on_tie: Any, expected: Any) -> None:
    target = [Candidate("target", index, *pair) for index, pair in enumerate(zip(texts, scores, strict=True))]
    outcome = choose_triple("p", None, target, Rules(on_tie=on_tie, needs_source=False))
    if isinstance(outcome, Triple):
        assert (outcome.target_chosen.sample_index, outcome.rejected.sample_index) == expected
    else:
        assert outcome == expected


Answer = tuple[str, int, str, float, str]


@pytest.fixture
def experiment(commit_artifact: Any) -> Any:
    """Commit prompts and, for each model, answers (prompt, index, text, score, finish reason)."""

    def make(models: dict[str, list[Answer]], *, sft: int = 2, preference: int = 2) -> dict[str, ArtifactRef]:
        ids = [f"p{number}" for number in range(sft + preference)]
        table = pl.DataFrame({"prompt_id": ids, "prompt": [f"{name}?" for name in ids]}, schema=records.PROMPTS)
        refs = {"prompts": commit_artifact("prepare", {"sft.parquet": table[:sft], "preference.parquet": table[sft:]})}
        for name, rows in models.items():
            samples = pl.DataFrame(
                [(prompt, name, index, text, len(text), finish, 0) for prompt, index, text, _, finish in rows],
                schema=records.SAMPLES,
                orient="row",
            )
            scores = pl.DataFrame(
                [(prompt, name, index, score, False) for prompt, index, _, score, finish in rows if finish[0] != "p"],
                schema=records.SCORES,
                orient="row",
            )
            refs[f"samples/{name}"] = commit_artifact(f"sample/{name}", {"parts/part-00000.parquet": samples})
            refs[f"scores/{name}"] = commit_artifact(f"score/{name}", {"parts/part-00000.parquet": scores})
        return refs

    return make


SFT_MODELS: dict[str, list[Answer]] = {
    "ann": [("p0", 0, "ann 0", 0.5, "stop"), ("p0", 1, "ann 1", 0.9, "length"), ("p1", 0, "", 9.0, "stop")],
    "bob": [("p0", 0, "bob 0", 0.5, "stop"), ("p1", 0, "", 0.0, "prompt_too_long"), ("p2", 0, "later", 1.0, "stop")],
}


def test_sft_rows_hold_the_best_source_answer_and_say_whose(make_ctx: Any, experiment: Any) -> None:
    ctx = make_ctx({"stage": "curate-sft"}, experiment(SFT_MODELS))
    result = run_sft(ctx)
    rows = pl.read_parquet(ctx.output.committed().file("rows.parquet")).to_dicts()
    assert rows == [{"prompt_id": "p0", "prompt": "p0?", "response": "ann 1", "source": "ann", "score": 0.9}]
    assert result.metrics == {
        "prompts": 2,
        "rows": 1,
        "dropped_no_source_response": 1,
        "responses_empty": 1,
        "responses_prompt_too_long": 1,
        "chosen_ann": 1,
        "chosen_bob": 0,
        "share_ann": 1,
        "share_bob": 0,
        "mean_score": 0.9,
    }


def test_truncated_answers_are_left_out_when_asked_and_a_tie_goes_to_the_first_name(
    make_ctx: Any, experiment: Any
) -> None:
    ctx = make_ctx({"stage": "curate-sft", "drop_truncated": True}, experiment(SFT_MODELS))
    result = run_sft(ctx)
    rows = pl.read_parquet(ctx.output.committed().file("rows.parquet"))
    assert rows["response"].to_list() == ["ann 0"]
    assert result.metrics["responses_truncated"] == 1


TRIPLE_MODELS: dict[str, list[Answer]] = {
    "ann": [("p2", 0, "ann", 0.4, "stop"), ("p3", 0, "ann too", 0.1, "stop")],
    "bob": [("p2", 0, "bob", 0.8, "stop"), ("p3", 0, "bob too", 0.3, "stop")],
    "target": [
        ("p2", 0, "bad", 0.1, "stop"),
        ("p2", 1, "good", 0.6, "stop"),
        ("p3", 0, "same", 0.5, "stop"),
        ("p3", 1, "same", 0.5, "stop"),
    ],
}


def test_triples_are_written_as_table_and_in_the_published_format(make_ctx: Any, experiment: Any) -> None:
    ctx = make_ctx({"stage": "curate-triples"}, experiment(TRIPLE_MODELS))
    result = run_triples(ctx)
    artifact = ctx.output.committed()
    assert pl.read_parquet(artifact.file("triples.parquet")).to_dicts() == [
        {
            "prompt_id": "p2",
            "prompt": "p2?",
            "source_chosen": "bob",
            "target_chosen": "good",
            "rejected": "bad",
            "source": "bob",
            "source_score": 0.8,
            "target_score": 0.6,
            "rejected_score": 0.1,
        }
    ]
    assert json.loads(artifact.file("triples.jsonl").read_text()) == {
        "prompt_id": "p2",
        "prompt": {"role": "user", "content": "p2?"},
        "chosen": [{"role": "assistant", "content": "bob"}, {"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
    assert result.metrics["dropped_target_identical"] == 1
    assert result.metrics["source_not_better"] == 1
    assert (result.metrics["chosen_bob"], result.metrics["share_ann"]) == (1, 0)


def test_objectives_without_a_source_get_pairs(make_ctx: Any, experiment: Any) -> None:
    refs = experiment({"target": TRIPLE_MODELS["target"]})
    ctx = make_ctx({"stage": "curate-triples", "needs_source": False}, refs)
    run_triples(ctx)
    artifact = ctx.output.committed()
    row = pl.read_parquet(artifact.file("triples.parquet")).to_dicts()[0]
    assert (row["source_chosen"], row["source"], row["source_score"]) == (None, None, None)
    assert json.loads(artifact.file("triples.jsonl").read_text())["chosen"] == [
        {"role": "assistant", "content": "good"}
    ]


def test_plain_datasets_loads_the_triples(make_ctx: Any, experiment: Any, tmp_path: Path) -> None:
    import datasets

    ctx = make_ctx({"stage": "curate-triples"}, experiment(TRIPLE_MODELS))
    run_triples(ctx)
    path = str(ctx.output.committed().file("triples.jsonl"))
    rows = datasets.Dataset.from_json(path, cache_dir=str(tmp_path / "cache"))
    assert rows[0]["chosen"][0] == {"role": "assistant", "content": "bob"}
    assert rows[0]["prompt"] == {"role": "user", "content": "p2?"}


def test_no_triple_left_is_an_error_with_the_reasons(make_ctx: Any, experiment: Any) -> None:
    ctx = make_ctx({"stage": "curate-triples", "score_margin": 5}, experiment(TRIPLE_MODELS))
    with pytest.raises(DataError) as error:
        run_triples(ctx)
    assert error.value.message == ("no triple is left of 2 prompts; dropped: score_margin 1, target_identical 1")
    assert ctx.output.committed() is None


EMPTY_PARTS = {
    "sftFraction 0 and a curation of SFT rows": ({"stage": "curate-sft"}, run_sft, {"sft": 0}, "SFT row"),
    "sftFraction 1 and a curation of triples": ({"stage": "curate-triples"}, run_triples, {"preference": 0}, "triple"),
}


@pytest.mark.parametrize(("params", "run", "sizes", "what"), EMPTY_PARTS.values(), ids=EMPTY_PARTS.keys())
def test_a_part_without_prompts_points_to_the_fraction(
    make_ctx: Any, experiment: Any, params: Any, run: Any, sizes: dict[str, int], what: str
) -> None:
    ctx = make_ctx(params, experiment(TRIPLE_MODELS, **sizes))
    with pytest.raises(DataError) as error:
        run(ctx)
    assert error.value.message == f"no {what} can be made: there are no prompts in this part"
    assert error.value.field == "prompts.sftFraction"


def test_scores_of_other_samples_are_refused(make_ctx: Any, experiment: Any, commit_artifact: Any) -> None:
    refs = experiment(TRIPLE_MODELS)
    fewer = pl.DataFrame([("p2", "ann", 0, 0.4, False)], schema=records.SCORES, orient="row")
    refs["scores/ann"] = commit_artifact("score/ann", {"parts/part-00000.parquet": fewer}, hash_="00000000000000ff")
    with pytest.raises(DataError) as error:
        run_triples(make_ctx({"stage": "curate-triples"}, refs))
    assert error.value.message == "scores/ann has 1 rows for 2 answers of samples/ann"
