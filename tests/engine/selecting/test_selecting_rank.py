"""The rank stage compares all ordered pairs of members' answers, with the same bytes whatever shards and kills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cells import answers_frame, commit_cells, rows_of
from pairrm_models import make_tokenizer, oracle_ids, oracle_logit, save_pairrm

from wrpo_engine.artifacts import records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError, DataError, Interrupted
from wrpo_engine.selecting import rank
from wrpo_engine.stage import StopRequest

TURNS = {"q1": ["hi"], "q2": ["one?", "and two?"], "q3": ["long"], "q4": ["last"]}
MEMBERS: dict[str, dict[str, Any]] = {
    "answers/a--b": {"q1": "yo", "q2": ["won", "too"], "q3": "x" * 80, "q4": "z"},
    "answers/c--b": {"q1": "hello", "q2": ["1", "2"], "q3": None, "q4": "z"},
    "mixture/d-l1-a--b": {"q1": "", "q2": ["uno", "dos"], "q3": "y", "q4": None},
}
SIZES = {"q1": 6, "q2": 6, "q3": 2, "q4": 2}


@pytest.fixture(scope="module")
def pairrm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("pairrm")
    return path, save_pairrm(path)


@pytest.fixture
def inputs(commit_artifact: Any) -> Any:
    return commit_cells(commit_artifact, TURNS, MEMBERS)


def params(path: Path, **changes: Any) -> dict[str, Any]:
    base = {"stage": "rank", "ranker": {"name": str(path)}, "members": list(MEMBERS), "prompts_per_part": 1}
    return {**base, "max_source_tokens": 28, "max_length": 100, **changes}


def test_every_ordered_pair_of_members_that_answered_has_its_logit(
    make_ctx: Any, inputs: dict[str, ArtifactRef], pairrm: tuple[Path, Any]
) -> None:
    path, oracle = pairrm
    ctx = make_ctx(params(path), inputs, stage="rank/blender--b")
    result = rank.run(ctx)
    rows = rows_of(ctx)
    assert {item: rows.filter(item_id=item).height for item in TURNS} == SIZES
    assert dict(rows.select(*records.RANKS).schema) == records.RANKS
    tokenizer = make_tokenizer()
    prompts = {item: turns[0] for item, turns in TURNS.items()} | {"q2": "User: one?\n\nUser: and two?"}
    for row in rows.iter_rows(named=True):
        texts = [MEMBERS[row[side]][row["item_id"]] for side in ("left", "right")]
        left, right = (text if isinstance(text, str) else "\n\n".join(text) for text in texts)
        ids = oracle_ids(tokenizer, prompts[row["item_id"]], left, right, source=28, total=100)
        assert row["logit"] == pytest.approx(oracle_logit(oracle, ids), abs=2e-6)
        assert row["tokens"] == len(ids)
        assert (row["cut_left"], row["cut_right"]) == (len(left) > 44, len(right) > 44)
    assert (result.rows, result.metrics["pairs"], result.metrics["items"]) == (16, 16, 4)
    assert result.metrics["cut_answers"] == pytest.approx(2 / 32)
    assert result.metrics["cut_prompts"] == pytest.approx(1 / 4)
    assert 0 <= result.metrics["consistent"] <= 1
    assert ctx.output.committed().manifest.details["ranker"]["name"] == str(path)


def test_consistent_is_the_share_of_pairs_that_both_orders_decide_alike() -> None:
    def row(left: str, right: str, logit: float) -> dict[str, Any]:
        pair = {"item_id": "q", "left": left, "right": right, "logit": logit}
        return {**pair, "cut_left": False, "cut_right": False, "cut_prompt": False, "tokens": 3, "padding": 1}

    pairs = [
        row("a", "b", 1),
        row("b", "a", -2),
        row("a", "c", 1),
        row("c", "a", 1),
        row("b", "c", 0),
        row("c", "b", 0),
    ]
    metrics = rank.measure([pl.DataFrame(pairs[:4]), pl.DataFrame(pairs[4:])])
    assert metrics["consistent"] == pytest.approx(2 / 6)
    assert metrics["padding_share"] == pytest.approx(1 / 4)


def content(ctx: Any) -> dict[str, bytes]:
    artifact = ctx.output.committed()
    return {name: artifact.file(name).read_bytes() for name in artifact.files()}


def test_shards_and_interruptions_change_no_byte(
    make_ctx: Any, inputs: dict[str, ArtifactRef], pairrm: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = pairrm
    whole = make_ctx(params(path), inputs, stage="rank/whole")
    rank.run(whole)
    for limit in (1, 7, 13, 16):
        stop = StopRequest()
        stopped = make_ctx(params(path), inputs, stage=f"rank/stopped-{limit}", stop=stop)

        def update(done: int, _: int, stop: StopRequest = stop, limit: int = limit, **_shown: Any) -> None:
            if done >= limit:
                stop.request()

        monkeypatch.setattr(stopped.progress, "update", update)
        if limit < 16:
            with pytest.raises(Interrupted):
                rank.run(stopped)
        resumed = make_ctx(params(path), inputs, stage=f"rank/stopped-{limit}")
        published = len(resumed.output.published("parts/"))
        assert rank.run(resumed).rows == 16 - sum(list(SIZES.values())[:published])
        assert content(resumed) == content(whole)
    contexts = [
        make_ctx(params(path), inputs, stage="rank/sharded", runtime={"shards": 3}, shard=shard) for shard in (2, 0, 1)
    ]
    assert [bool(rank.run(ctx).metrics) for ctx in contexts] == [False, False, True]
    assert content(contexts[0]) == content(whole)


def test_a_logit_that_is_no_number_names_item_and_members(
    make_ctx: Any, inputs: dict[str, ArtifactRef], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    save_pairrm(tmp_path / "nan")
    file = tmp_path / "nan" / "model.safetensors"
    tensors = load_file(file)
    tensors["head_layer.4.weight"].fill_(float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})
    section = "evaluation.systems[blender].select.ranker"
    runtime = {"model_sections": {"ranker": section}}
    with pytest.raises(DataError) as error:
        rank.run(make_ctx(params(tmp_path / "nan"), inputs, stage="rank/blender--b", runtime=runtime))
    assert error.value.message == (
        f"ranker {tmp_path / 'nan'} gives nan for item_id q1, answers/a--b against answers/c--b (18 tokens)"
    )
    assert (error.value.code, error.value.field) == ("RankNotFinite", f"{section}.model")


def test_a_member_without_an_answer_is_named_with_the_item_before_the_ranker_is_loaded(
    make_ctx: Any, commit_artifact: Any, inputs: dict[str, ArtifactRef]
) -> None:
    part = answers_frame({"q1": "yo", "q2": ["1", "2"], "q4": "z"})
    wrong = commit_artifact("answer/wrong", {"parts/part-00000.parquet": part})
    ctx = make_ctx(params(Path("/nowhere")), {**inputs, "answers/c--b": wrong}, stage="rank/blender--b")
    with pytest.raises(DataError) as error:
        rank.run(ctx)
    assert error.value.message == "the answer item_id q3, sample_index 0, turn 0 of answers/c--b is missing"


def test_a_member_that_is_named_twice_is_refused(make_ctx: Any, inputs: dict[str, ArtifactRef]) -> None:
    members = ["answers/a--b", "answers/c--b", "answers/a--b"]
    with pytest.raises(ConfigError) as error:
        rank.run(make_ctx(params(Path("/nowhere"), members=members), inputs, stage="rank/blender--b"))
    assert error.value.message == "members is 'answers/a--b': it is named twice"


def test_a_directory_that_does_not_exist_names_the_field_of_the_ranker(
    make_ctx: Any, inputs: dict[str, ArtifactRef]
) -> None:
    section = "evaluation.systems[blender].select.ranker"
    for runtime, field in (({}, "select.ranker"), ({"model_sections": {"ranker": section}}, f"{section}.model")):
        with pytest.raises(ConfigError) as error:
            rank.run(make_ctx(params(Path("/nowhere")), inputs, stage="rank/blender--b", runtime=runtime))
        assert error.value.message == f"{field} is '/nowhere': there is no directory /nowhere"
