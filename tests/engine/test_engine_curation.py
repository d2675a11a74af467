"""The two curation stages over committed artifacts: what they write, count and refuse."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from wrpo_engine.artifacts import records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.curation.stage import run_sft, run_triples
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.training.data.inputs import read_triples

Answer = tuple[str, int, str, float, str]


@pytest.fixture
def experiment(commit_artifact: Any) -> Any:
    """Commit prompts and, for each model, answers (prompt, index, text, score, finish reason).

    num_tokens is the text's length.
    """

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
            "target_source": "target",
            "rejected_source": "target",
            "source_truncated": False,
            "target_truncated": False,
            "rejected_truncated": False,
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
    assert error.value.message == "scores/ann has 1 rows for 2 responses of samples/ann"


def split_in(parts: int, frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Deal the rows out to parts, as another number of shards and another part size would."""
    return {f"parts/part-{number:05d}.parquet": frame[number::parts] for number in range(parts)}


def scored_models(prompts: int) -> tuple[dict[str, pl.DataFrame], dict[str, pl.DataFrame]]:
    """Samples and scores of three models with many ties, the scores in another order than the samples."""
    samples, scores = {}, {}
    for number, name in enumerate(["ann", "bob", "target"]):
        rows = [
            (f"p{prompt}", name, index, f"{name} {index % 2} for {prompt}", 3, "stop", 0)
            for prompt in range(prompts)
            for index in range(3)
        ]
        samples[name] = pl.DataFrame(rows, schema=records.SAMPLES, orient="row")
        scores[name] = samples[name].select(
            "prompt_id",
            "source",
            "sample_index",
            ((pl.int_range(pl.len()) * (7 + number)) % 5 / 4).alias("score"),
            pl.lit(value=False).alias("truncated"),
        )[::-1]
    return samples, scores


def test_the_rows_do_not_depend_on_the_number_of_parts(
    make_ctx: Any, commit_artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, scores = scored_models(12)
    ids = [f"p{number}" for number in range(12)]
    prompts = pl.DataFrame({"prompt_id": ids, "prompt": ids}, schema=records.PROMPTS)
    tables = []
    for attempt, (parts, batch_bytes) in enumerate([(1, 1 << 20), (5, 1 << 20), (4, 1)]):
        monkeypatch.setattr("wrpo_engine.formats.columns.BATCH_BYTES", batch_bytes)
        hash_ = f"{attempt:016x}"
        refs = {"prompts": commit_artifact("prepare", {"preference.parquet": prompts}, hash_=hash_)}
        for name, frame in samples.items():
            refs[f"samples/{name}"] = commit_artifact(f"sample/{name}", split_in(parts, frame), hash_=hash_)
            refs[f"scores/{name}"] = commit_artifact(f"score/{name}", split_in(parts, scores[name]), hash_=hash_)
        ctx = make_ctx({"stage": "curate-triples"}, refs, hash_=hash_)
        run_triples(ctx)
        tables.append(ctx.output.committed().file("triples.parquet").read_bytes())
    assert tables[0] == tables[1] == tables[2]


def with_rewards(
    commit_artifact: Any, refs: dict[str, ArtifactRef], rewards: dict[str, dict[str, list[float]]]
) -> dict[str, ArtifactRef]:
    """Replace the scores of `p2` by several rewards: model -> reward -> score of each sample."""
    kept = {role: ref for role, ref in refs.items() if not role.startswith("scores/")}
    for model, each in rewards.items():
        for reward, values in each.items():
            rows = [("p2", model, index, value, False) for index, value in enumerate(values)]
            frame = pl.DataFrame(rows, schema=records.SCORES, orient="row").with_columns(
                (-pl.col("score")).alias("objective/brevity")
            )
            kept[f"scores/{model}/{reward}"] = commit_artifact(
                f"score/{model}-{reward}", {"parts/part-00000.parquet": frame}
            )
    return kept


TWO_REWARDS = {
    "ann": {"help": [0.9], "safe": [0.0]},
    "bob": {"help": [0.5], "safe": [0.8]},
    "target": {"help": [0.2, 0.4], "safe": [0.6, 0.0]},
}
ONE_PROMPT = {name: [row for row in rows if row[0] == "p2"] for name, rows in TRIPLE_MODELS.items()}
WEIGHTINGS = {
    "equal weights": ({"reward_weights": {"help": 1, "safe": 1}}, "bob", 0.65, (0.4, 0.2)),
    "one counts more": ({"reward_weights": {"help": 8, "safe": 2}}, "ann", 0.72, (0.32, 0.28)),
    "one alone counts": ({"reward_weights": {"help": 1, "safe": 0}}, "ann", 0.9, (0.4, 0.2)),
    "without weights all count the same": ({}, "bob", 0.65, (0.4, 0.2)),
    "an objective": ({"reward_weights": {"help": 1, "safe": 0}, "score_column": "brevity"}, "bob", -0.5, (-0.2, -0.4)),
}


@pytest.mark.parametrize(("params", "source", "top", "pair"), WEIGHTINGS.values(), ids=WEIGHTINGS.keys())
def test_several_rewards_are_averaged_by_their_weights(
    make_ctx: Any, experiment: Any, commit_artifact: Any, params: Any, source: str, top: float, pair: Any
) -> None:
    refs = with_rewards(commit_artifact, experiment(ONE_PROMPT), TWO_REWARDS)
    ctx = make_ctx({"stage": "curate-triples", **params}, refs)
    run_triples(ctx)
    row = pl.read_parquet(ctx.output.committed().file("triples.parquet")).row(0, named=True)
    assert row["source"] == source
    assert (row["source_score"], row["target_score"], row["rejected_score"]) == pytest.approx((top, *pair))


REFUSED_SETTINGS = {
    "a weight without scores": (
        {"reward_weights": {"help": 1, "safe": 1, "kind": 1}},
        (
            "inputs is 'scores/ann/help, scores/ann/safe, scores/bob/help, scores/bob/safe, scores/target/help, "
            "scores/target/safe': curation needs the role 'scores/ann/kind'"
        ),
    ),
    "scores without a weight": (
        {"reward_weights": {"help": 1}},
        "reward.weight is 'help': there is no weight for safe, which scored the responses of ann",
    ),
    "no weight at all": (
        {"reward_weights": {"help": 0, "safe": 0}},
        "reward.weight is 'help 0, safe 0': weights must not be negative, and one must be positive",
    ),
    "an unknown objective": (
        {"score_column": "wit"},
        "curation.scoreColumn is 'wit': score/ann-help has no such score; it has score, objective/brevity",
    ),
    "a window that nothing fits": (
        {"score_margin": 0.5, "max_score_gap": 0.1},
        "curation.maxScoreGap is 0.1: it is below curation.scoreMargin, 0.5: no pair can fulfil both",
    ),
    "y_ws asked for where there is none": (
        {"pairing": "BestWorst", "require_source_better": True},
        "curation.requireSourceBetter is True: it has no effect with pairing BestWorst, whose rows hold no y_ws",
    ),
}


@pytest.mark.parametrize(("params", "message"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS.keys())
def test_settings_that_cannot_take_effect_are_refused(
    make_ctx: Any, experiment: Any, commit_artifact: Any, params: Any, message: str
) -> None:
    refs = with_rewards(commit_artifact, experiment(ONE_PROMPT), TWO_REWARDS)
    with pytest.raises(ConfigError) as error:
        run_triples(make_ctx({"stage": "curate-triples", **params}, refs))
    assert error.value.message == message


PAIR_MODELS: dict[str, list[Answer]] = {
    "ann": [("p2", 0, "ann best", 0.9, "stop"), ("p2", 1, "ann worst", 0.5, "length")],
    "bob": [("p2", 0, "bob", 0.2, "stop"), ("p3", 0, "alone", 0.3, "stop")],
    "target": [("p2", 0, "mine", 0.1, "stop")],
}
PAIRS = {
    "within the best source": ("WithinSource", ["ann", "bob", "target"], ("ann best", "ann worst", "ann", "ann")),
    "best against worst of all": ("BestWorst", ["ann", "bob", "target"], ("ann best", "mine", "ann", "target")),
    "without the target": ("BestWorst", ["ann", "bob"], ("ann best", "bob", "ann", "bob")),
}


@pytest.mark.parametrize(("pairing", "models", "expected"), PAIRS.values(), ids=PAIRS.keys())
def test_pairs_stand_in_the_columns_that_pair_objectives_train_on(
    make_ctx: Any, experiment: Any, pairing: str, models: list[str], expected: tuple[str, ...]
) -> None:
    ctx = make_ctx(
        {"stage": "curate-triples", "pairing": pairing}, experiment({name: PAIR_MODELS[name] for name in models})
    )
    result = run_triples(ctx)
    artifact = ctx.output.committed()
    row = pl.read_parquet(artifact.file("triples.parquet")).row(0, named=True)
    assert (row["target_chosen"], row["rejected"], row["target_source"], row["rejected_source"]) == expected
    assert (row["source_chosen"], row["source_score"], row["source_truncated"]) == (None, None, None)
    assert row["rejected_truncated"] == (row["rejected"] == "ann worst")
    assert result.metrics["dropped_identical"] == 1
    assert result.metrics["chosen_ann"] == 1
    assert [text_row.responses for text_row in read_triples(artifact.file("triples.parquet"), has_source=False)] == [
        expected[:2]
    ]


def test_long_responses_are_left_out_when_asked(make_ctx: Any, experiment: Any) -> None:
    ctx = make_ctx(
        {"stage": "curate-triples", "pairing": "BestWorst", "max_response_tokens": 8}, experiment(PAIR_MODELS)
    )
    result = run_triples(ctx)
    row = pl.read_parquet(ctx.output.committed().file("triples.parquet")).row(0, named=True)
    assert (row["target_chosen"], row["rejected"]) == ("ann best", "mine")
    assert result.metrics["responses_too_many_tokens"] == 1


def test_rows_with_the_texts_of_earlier_ones_are_dropped(make_ctx: Any, commit_artifact: Any) -> None:
    prompts = pl.DataFrame({"prompt_id": ["p2", "p3"], "prompt": ["same?", "same?"]}, schema=records.PROMPTS)
    refs = {"prompts": commit_artifact("prepare", {"preference.parquet": prompts})}
    rows = [(prompt, "target", index, text, 1, "stop", 0) for prompt in ("p2", "p3") for index, text in enumerate("ab")]
    scores = [(prompt, "target", index, float(index), False) for prompt in ("p3", "p2") for index in range(2)]
    for role, table, schema in (("sample", rows, records.SAMPLES), ("score", scores, records.SCORES)):
        frame = pl.DataFrame(table, schema=schema, orient="row")
        refs[f"{role}s/target"] = commit_artifact(f"{role}/target", {"parts/part-00000.parquet": frame})
    for keep, expected in ((False, ["p2"]), (True, ["p2", "p3"])):
        params = {"stage": "curate-triples", "needs_source": False, "drop_duplicates": not keep}
        ctx = make_ctx(params, refs, hash_=f"{int(keep):016x}")
        result = run_triples(ctx)
        triples = pl.read_parquet(ctx.output.committed().file("triples.parquet"))
        assert triples["prompt_id"].to_list() == expected
        assert result.metrics.get("dropped_duplicate", 0) == 2 - len(expected)


def test_attribution_says_who_won_by_how_much_for_which_prompts(make_ctx: Any, commit_artifact: Any) -> None:
    ids = [f"p{number}" for number in range(8)]
    texts = ["x" * (number + 1) for number in range(8)]
    prompts = pl.DataFrame({"prompt_id": ids, "prompt": texts}, schema=records.PROMPTS)
    refs = {"prompts": commit_artifact("prepare", {"preference.parquet": prompts})}
    score = {"ann": lambda n: 0.5 if n < 6 else 0.0, "bob": lambda n: 0.25 if n < 6 else 1.0, "zoe": lambda _: -1.0}
    models = {name: [(i, 0, name, of(n), "stop") for n, i in enumerate(ids)] for name, of in score.items()}
    models["target"] = [(i, k, f"t{k}", 0.75 * k, "stop") for i in ids for k in range(2)]
    for name, rows in models.items():
        samples = [(prompt, name, index, text, 1, finish, 0) for prompt, index, text, _, finish in rows]
        scores = [(prompt, name, index, value, False) for prompt, index, _, value, _ in rows]
        for role, table, schema in (("sample", samples, records.SAMPLES), ("score", scores, records.SCORES)):
            frame = pl.DataFrame(table, schema=schema, orient="row")
            refs[f"{role}s/{name}"] = commit_artifact(f"{role}/{name}", {"parts/part-00000.parquet": frame})
    ctx = make_ctx({"stage": "curate-triples"}, refs)
    run_triples(ctx)
    artifact = ctx.output.committed()
    shares = pl.read_parquet(artifact.file("attribution.parquet"))
    assert artifact.manifest.details["attribution"] == shares.to_dicts()
    assert shares.filter(pl.col("cluster") == "all").rows() == [
        ("all", 1, 8, "ann", 6, 0.75, 0, -0.25, -0.25),
        ("all", 1, 8, "bob", 2, 0.25, 2, 0.25, 0.25),
        ("all", 1, 8, "zoe", 0, 0.0, 0, None, None),
    ]
    clusters = shares.filter(pl.col("cluster") != "all", pl.col("chosen") > 0).select(
        "cluster", "min_chars", "max_chars", "source", "chosen"
    )
    assert [row[0] for row in clusters.rows()] == ["1", "2", "3", "4"]
    assert clusters["chosen"].sum() == 8
    assert clusters.row(3)[3] == "bob"


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


BAD_PARTS: dict[str, tuple[bytes, str, str]] = {
    "no Parquet at all": (b"PAR1 torn", "PartDamaged", "cannot be read as Parquet"),
    "a column is missing": (
        parquet_bytes(pl.DataFrame({"prompt_id": ["p2"], "sample_index": [0]})),
        "ColumnMissing",
        "has no column text, num_tokens, finish_reason; its columns: prompt_id, sample_index",
    ),
    "a column of another type": (
        parquet_bytes(
            pl.DataFrame(
                [("p2", "ann", "zero", "text", 1, "stop", 0)],
                schema={**records.SAMPLES, "sample_index": pl.String},
                orient="row",
            )
        ),
        "ColumnType",
        "holds String, but Int64 is needed",
    ),
}


@pytest.mark.parametrize(("content", "code", "message"), BAD_PARTS.values(), ids=BAD_PARTS.keys())
def test_a_bad_part_is_named(
    make_ctx: Any, experiment: Any, commit_artifact: Any, content: bytes, code: str, message: str
) -> None:
    refs = experiment(TRIPLE_MODELS)
    good = pl.DataFrame([("p2", "ann", 0, "fine", 1, "stop", 0)], schema=records.SAMPLES, orient="row")
    parts = {"parts/part-00000.parquet": good, "parts/part-00001.parquet": content}
    refs["samples/ann"] = commit_artifact("sample/ann", parts, hash_="00000000000000aa")
    with pytest.raises(DataError) as error:
        run_triples(make_ctx({"stage": "curate-triples"}, refs))
    assert error.value.code == code
    assert "sample/ann/00000000000000aa/parts/part-00001.parquet" in error.value.message
    assert message in error.value.message


def test_an_answer_that_stands_twice_is_named(make_ctx: Any, experiment: Any) -> None:
    models = {**TRIPLE_MODELS, "ann": [TRIPLE_MODELS["ann"][0], TRIPLE_MODELS["ann"][0]]}
    with pytest.raises(DataError) as error:
        run_triples(make_ctx({"stage": "curate-triples"}, experiment(models)))
    assert error.value.message == "sample/ann has two responses to prompt p2 with sample_index 0"
