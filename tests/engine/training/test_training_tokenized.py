"""Triples of token ids as input: what is read, what is refused, and training on unchanged ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_support import FAST_ON_IDS, make_experiment, plain_backend, start_nodes

from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.training import session, stage
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.data.token_cache import read_tokens, write_tokens
from wrpo_engine.training.data.token_ids import read_tokenized_triples
from wrpo_engine.training.data.tokenize import TokenizedRows
from wrpo_engine.training.monitoring.callbacks import Observer

VOCABULARY = 259
COLUMNS = ["prompt_ids", "source_chosen_ids", "target_chosen_ids", "rejected_ids"]


def triples_of_ids(num_rows: int = 7) -> pl.DataFrame:
    """Rows of mixed lengths without any structure; id 2 is the end-of-turn of the tiny tokenizer."""

    def ids(row: int, part: int) -> list[int]:
        length = 2 + (row * 5 + part * 3) % 9
        return [(row * 31 + part * 17 + place * 7) % 250 + 5 for place in range(length)] + ([2] if part else [])

    return pl.DataFrame({name: [ids(row, part) for row in range(num_rows)] for part, name in enumerate(COLUMNS)})


def read(path: Path, *, has_source: bool = True) -> Any:
    return read_tokenized_triples(path, has_source=has_source, vocabulary=VOCABULARY)


def as_rows(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return [tuple(tuple(part) for part in row) for row in frame.select(COLUMNS).rows()]


def _one_file(frame: pl.DataFrame, directory: Path) -> Path:
    frame.write_parquet(directory / "triples.parquet")
    return directory / "triples.parquet"


def _parts(frame: pl.DataFrame, directory: Path) -> Path:
    (directory / "parts").mkdir()
    frame[:3].write_parquet(directory / "parts" / "a.parquet")
    frame[3:].write_parquet(directory / "parts" / "b.parquet")
    return directory / "parts"


def _saved_dataset(frame: pl.DataFrame, directory: Path) -> Path:
    from datasets import Dataset

    # Selected from a longer one, so that the order is an index in addition to the table.
    rows = frame.to_dicts()
    Dataset.from_list([*rows[::-1], *rows]).select(range(len(rows), 2 * len(rows))).save_to_disk(directory / "saved")
    return directory / "saved"


def _saved_splits(frame: pl.DataFrame, directory: Path) -> Path:
    from datasets import Dataset, DatasetDict

    rows = frame.to_dicts()
    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}).save_to_disk(
        directory / "splits"
    )
    return directory / "splits"


@pytest.mark.parametrize("save", [_one_file, _parts, _saved_dataset, _saved_splits])
def test_all_forms_give_the_same_rows_in_order_and_the_same_digest(
    save: Callable[[pl.DataFrame, Path], Path], tmp_path: Path
) -> None:
    frame = triples_of_ids()
    triples = read(save(frame, tmp_path))
    assert [(row.prompt, *row.responses) for row in triples.rows] == as_rows(frame)
    assert triples.sha256 == read(_one_file(frame, tmp_path)).sha256


def test_the_digest_sees_ids_borders_and_the_order_of_rows(tmp_path: Path) -> None:
    frame = triples_of_ids(2)
    moved = frame.with_columns(
        prompt_ids=pl.Series([[*frame["prompt_ids"][0], frame["prompt_ids"][1][0]], frame["prompt_ids"][1][1:]])
    )
    variants = [frame, frame.reverse(), moved, frame.select(reversed(COLUMNS)), triples_of_ids(3)]
    digests = [read(_one_file(variant, tmp_path)).sha256 for variant in variants]
    assert digests[3] == digests[0]
    assert len({digests[0], digests[1], digests[2], digests[4]}) == 4


def test_baselines_need_no_source_column(tmp_path: Path) -> None:
    path = _one_file(triples_of_ids().drop("source_chosen_ids"), tmp_path)
    assert {len(row.responses) for row in read(path, has_source=False).rows} == {2}


def _with(column: str, row: int, value: object, dtype: Any = None) -> pl.DataFrame:
    frame = triples_of_ids()
    values = frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values, dtype=dtype or pl.List(pl.Int64)))


REFUSED = {
    "a missing column": (triples_of_ids().drop("rejected_ids"), "ColumnMissing", "{} lacks the columns rejected_ids;"),
    "text": (
        triples_of_ids().with_columns(prompt_ids=pl.lit("why")),
        "ColumnType",
        "column prompt_ids of {} is String, but must be lists of integers",
    ),
    "lists of floats": (
        triples_of_ids().cast({"rejected_ids": pl.List(pl.Float64)}),
        "ColumnType",
        "column rejected_ids of {} is List(Float64), but must be lists of integers",
    ),
    "an empty list": (
        _with("target_chosen_ids", 4, []),
        "TokenIdsInvalid",
        "target_chosen_ids of row 4 of {} is empty",
    ),
    "a null list": (_with("rejected_ids", 1, None), "TokenIdsInvalid", "rejected_ids of row 1 of {} is null"),
    "a null in a list": (
        _with("rejected_ids", 2, [3, None]),
        "TokenIdsInvalid",
        "rejected_ids of row 2 of {} holds a null",
    ),
    "an id above the vocabulary": (
        _with("source_chosen_ids", 6, [3, VOCABULARY]),
        "TokenIdsInvalid",
        "source_chosen_ids of row 6 of {} holds an id outside the vocabulary of 259 tokens (id 259)",
    ),
    "a negative id": (
        _with("prompt_ids", 0, [-1]),
        "TokenIdsInvalid",
        "prompt_ids of row 0 of {} holds an id outside the vocabulary of 259 tokens (id -1)",
    ),
    "no rows": (triples_of_ids(0).cast(pl.List(pl.Int64)), "NoTrainingRows", "{} holds no rows to train on"),
}


@pytest.mark.parametrize(("frame", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_rows_that_cannot_be_trained_on_are_named(frame: pl.DataFrame, code: str, message: str, tmp_path: Path) -> None:
    path = _one_file(frame, tmp_path)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.code == code
    assert caught.value.field == "training.tokenizedTriples"
    assert str(caught.value).startswith(message.format(path))


def test_a_row_is_also_named_by_its_prompt_id_and_faults_are_counted(tmp_path: Path) -> None:
    frame = _with("rejected_ids", 2, []).with_columns(prompt_id=pl.format("p{}", pl.int_range(7)))
    frame = frame.with_columns(
        rejected_ids=pl.when(pl.col("prompt_id") == "p5")
        .then(pl.lit([], dtype=pl.List(pl.Int64)))
        .otherwise("rejected_ids")
    )
    with pytest.raises(DataError, match=r"rejected_ids of row 2 \(p2\) of .* is empty; 2 rows in all"):
        read(_one_file(frame, tmp_path))


def test_a_path_that_is_not_there_and_a_directory_of_something_else_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file or directory"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds neither \*.parquet files nor a saved data set"):
        read(tmp_path)
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(DataError, match="cannot be read as tokenised triples"):
        read(tmp_path / "text.parquet")


def test_held_out_files_of_a_directory_are_not_trained_on(tmp_path: Path) -> None:
    _with("rejected_ids", 2, [11]).write_parquet(tmp_path / "train-00000-of-00001.parquet")
    _with("rejected_ids", 2, [12]).write_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert [row.responses[-1] for row in read(tmp_path).rows][2] == (11,)
    assert len(read(tmp_path).rows) == 7
    (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / "validation.parquet")
    with pytest.raises(ConfigError, match="has the splits test, validation"):
        read(tmp_path)


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(tuple)
token_rows = st.lists(
    st.tuples(st.text(max_size=3), ids, st.lists(ids, min_size=2, max_size=2).map(tuple)).map(
        lambda row: TokenRow(*row)
    ),
    max_size=5,
)


@given(rows=token_rows, truncated=st.integers(0, 9))
def test_the_token_file_gives_back_what_was_written(
    rows: list[TokenRow], truncated: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tokens") / "rows.parquet"
    written = TokenizedRows(rows, truncated, details={"unusual_rows": {"a": 1}})
    write_tokens(path, written)
    assert read_tokens(path) == written


def test_rows_that_are_read_hold_one_object_of_each_token_id(tmp_path: Path) -> None:
    """An integer object is 28 bytes: one for each token of a data set would be most of what every rank holds."""
    rows = [TokenRow(str(index), (5000, 6000, 5000 + index % 7), ((6000, 7000), (7000,))) for index in range(3000)]
    write_tokens(tmp_path / "rows.parquet", TokenizedRows(rows))
    found = read_tokens(tmp_path / "rows.parquet").rows
    assert found == rows
    ids = [token for row in found for part in (row.prompt, *row.responses) for token in part]
    assert len({id(token) for token in ids}) == len(set(ids)) == 9


@pytest.fixture
def token_context(make_ctx: Any, training_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`token_context(frame, objective=...)`: the train stage without any upstream artifact."""
    monkeypatch.setattr(
        session,
        "make_backend",
        plain_backend,
    )

    def make(frame: pl.DataFrame, *, runtime: dict[str, Any] | None = None, **settings: Any) -> Any:
        (tmp_path / "storage" / "data").mkdir(parents=True, exist_ok=True)
        _one_file(frame, tmp_path / "storage" / "data")
        params = {
            "stage": "train",
            "model": {"name": str(training_model_dir)},
            **FAST_ON_IDS,
            "tokenized_triples": "storage://data/triples.parquet",
            **settings,
        }
        return make_ctx(params, {}, runtime=runtime or {"micro_batch_tokens": 400})

    return make


def test_training_needs_no_upstream_artifact_and_says_what_it_read(token_context: Any) -> None:
    ctx = token_context(triples_of_ids())
    result = stage.run_train(ctx)
    details = ctx.output.committed().manifest.details
    assert (result.rows, result.step) == (7, 4)
    assert details["tokenized_triples"]["path"] == "storage://data/triples.parquet"
    digest = details["tokenized_triples"]["sha256"]
    assert len(digest) == 64
    assert details["unusual_rows"] == {}
    assert f"| sha256 | {digest} |" in (ctx.output.directory / "README.md").read_text()


def test_a_relative_path_is_refused(token_context: Any) -> None:
    with pytest.raises(ConfigError, match="it must be an absolute path or storage://PATH"):
        stage.run_train(token_context(triples_of_ids(), tokenized_triples="data/triples.parquet"))


def test_token_ids_with_an_upstream_artifact_are_refused(
    make_ctx: Any, commit_artifact: Any, training_model_dir: Path
) -> None:
    ref = commit_artifact("curate-triples", {"triples.parquet": triples_of_ids()})
    params = {"stage": "train", "model": {"name": str(training_model_dir)}, "tokenized_triples": "/data/t.parquet"}
    with pytest.raises(ConfigError, match="it has no effect with the input role 'triples'"):
        stage.run_train(make_ctx(params, {"triples": ref}))


def test_a_model_directory_without_a_tokenizer_trains(
    token_context: Any, training_model_dir: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(training_model_dir / name, bare / name)
    ctx = token_context(triples_of_ids(), model={"name": str(bare)}, objective="DPO", beta=0.1)
    stage.run_train(ctx)
    names = ctx.output.committed().files("model/")
    assert names == ["model/README.md", "model/config.json", "model/generation_config.json", "model/model.safetensors"]


def test_rows_with_an_unusual_end_are_counted_and_logged_but_trained_on_as_they_are(
    token_context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    frame = _with("rejected_ids", 3, [7, 8])
    ctx = token_context(frame)
    assert stage.run_train(ctx).rows == 7
    assert ctx.output.committed().manifest.details["unusual_rows"] == {"not exactly one end-of-turn, at the end": 1}
    assert "1 of 7 tokenised rows have not exactly one end-of-turn, at the end" in caplog.text
    assert "are trained on unchanged: row 3" in caplog.text


def test_without_shuffling_every_epoch_takes_the_rows_in_their_order(
    token_context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(session, "make_observers", lambda *_: [_Recorder(seen)])
    stage.run_train(token_context(triples_of_ids(), shuffle=False, runtime={"micro_batch_size": 1}))
    first_step, last_step = [f"row {index}" for index in range(4)], [f"row {index}" for index in range(4, 7)]
    steps = [sorted(chain.from_iterable(seen[start:stop])) for start, stop in ((0, 4), (4, 7), (7, 11), (11, 14))]
    assert steps == [first_step, last_step, first_step, last_step]


class _Recorder(Observer):
    def __init__(self, seen: list[list[str]]) -> None:
        self._seen = seen

    def on_micro_batch(self, step: int, row_ids: Any) -> None:
        self._seen.append(list(row_ids))


@pytest.mark.slow
def test_torchrun_trains_on_token_ids_as_one_process_does(token_context: Any, tmp_path: Path) -> None:
    settings = {"beta": 0.1, "zero_stage": 0, "shuffle": False}
    ctx = token_context(triples_of_ids(11), runtime={"micro_batch_size": 2}, **settings)
    stage.run_train(ctx)
    alone = [json.loads(line) for line in (ctx.output.directory / "metrics.jsonl").read_text().splitlines()]
    experiment = make_experiment(tmp_path / "torchrun")
    path = _one_file(triples_of_ids(11), tmp_path)
    config = experiment.config({"stage": "train", "tokenized_triples": str(path), **settings}, {"micro_batch_size": 2})
    config.write_text(json.dumps({**json.loads(config.read_text()), "inputs": {}}))
    together = start_nodes(experiment, config)
    assert together.wait() == [0, 0], together.text()
    for ours, theirs in zip(experiment.metrics("train"), alone, strict=True):
        for name in ("loss", "alpha", "learning_rate", "grad_norm", "margin", "logps_rejected"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name
