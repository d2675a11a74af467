"""Prompts are read from everything people have, cleaned with every drop counted, and split by the seed alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.errors import WrpoError
from wrpo_engine.prompts.asked import asked_in
from wrpo_engine.prompts.reader import PromptColumn, read_values
from wrpo_engine.prompts.split import clean, shuffled, split
from wrpo_engine.prompts.stage import run

TEXTS = ["Why is the sky blue?", 'Say "hello, world".', "Grüße aus Köln!"]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"q": text}) + "\n" for text in TEXTS))


def write_csv(path: Path) -> None:
    pl.DataFrame({"q": TEXTS}).with_columns(other=pl.lit(1)).write_csv(path)


WRITERS = {
    "p.jsonl": write_jsonl,
    "p.json": lambda path: path.write_text(json.dumps([{"q": text} for text in TEXTS])),
    "lines.json": write_jsonl,
    "p.csv": write_csv,
    "p.parquet": lambda path: pl.DataFrame({"q": TEXTS}).write_parquet(path),
    "p.txt": lambda path: path.write_text("\n".join(TEXTS) + "\n"),
}


def values(path: Path | str, **fields: Any) -> Iterator[Any]:
    default: dict[str, Any] = {"dataset": "d", "config": None, "split": "train", "column": "q"}
    return read_values(PromptColumn(path=str(path), **default | fields))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("whole_directory", [False, True])
def test_every_file_format_gives_the_same_prompts(tmp_path: Path, name: str, whole_directory: bool) -> None:
    WRITERS[name](tmp_path / name)
    path = str(tmp_path if whole_directory else tmp_path / name)
    assert list(values(path)) == TEXTS


def test_conversations_in_parquet_give_their_last_user_turn(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "be nice"}, {"role": "user", "content": "hi"}]
    pl.DataFrame({"q": [messages, messages[:1]]}).write_parquet(tmp_path / "p.parquet")
    cleaned = clean(values(tmp_path))
    assert [prompt.prompt for prompt in cleaned.prompts] == ["hi"]
    assert dict(cleaned.dropped) == {"no_user_message": 1}


def test_hub_data_sets_are_read_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> datasets.Dataset:
        asked.append((arguments, options))
        return datasets.Dataset.from_list([{"q": text} for text in TEXTS])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(values("org/set", dataset="org/set", config="c", split="test")) == TEXTS
    assert asked == [(("org/set", "c"), {"split": "test", "revision": None})]
    with pytest.raises(WrpoError) as error:
        list(values("org/set", dataset="org/set", split="test", column="text"))
    assert error.value.message == "prompts.column is 'text': org/set has no such column; its columns: q"


def test_data_sets_of_the_hub_are_read_at_their_revisions(
    tmp_path: Path, make_ctx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: dict[str, str | None] = {}

    def load_dataset(name: str, *_arguments: Any, revision: str | None, **_options: Any) -> datasets.Dataset:
        asked[name] = revision
        return datasets.Dataset.from_list([{"prompt": f"{name} {index}"} for index in range(4)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pinned = {"dataset": "org/set", "revision": "a" * 40, "sft_fraction": 0.5}
    held_out = {"evaluation_dataset": "org/held-out", "evaluation_revision": "v2", "evaluation_prompts": 1}
    run(make_ctx({"stage": "prepare", **pinned, **held_out}))
    assert asked == {"org/set": "a" * 40, "org/held-out": "v2"}

    def no_such_revision(*_arguments: Any, **_options: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("Revision 'b' doesn't exist for dataset 'org/set' on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", no_such_revision)
    with pytest.raises(WrpoError, match="there is no such data set on the hub at revision 'b', or it is private"):
        list(values("org/set", dataset="org/set", revision="b"))


def test_a_hub_data_set_that_is_not_there_offline_is_named() -> None:
    with pytest.raises(WrpoError) as error:
        list(values("nobody/none", dataset="nobody/none"))
    assert error.value.code == "DatasetNotFound"
    assert error.value.message == (
        "prompts.dataset is 'nobody/none': it is not in the local cache, and HF_HUB_OFFLINE forbids downloading"
    )


VALUES: dict[str, tuple[Any, str | None]] = {
    "a text": ("hi", "hi"),
    "a published row's prompt": ({"role": "user", "content": "hi"}, "hi"),
    "a conversation": ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], "hi"),
    "a conversation with a system message": (
        [{"role": "system", "content": "be nice"}, {"role": "user", "content": "hi"}],
        "hi",
    ),
    "a message of the assistant": ({"role": "assistant", "content": "yo"}, None),
    "a message of the system": ({"role": "system", "content": "be nice"}, None),
    "a message without a role": ({"content": "hi"}, None),
    "other letters": ([{"role": "Human", "content": "hi"}, {"role": "Assistant", "content": "yo"}], "hi"),
    "a conversation as JSON text": ('[{"role": "user", "content": "hi"}]', "hi"),
    "a conversation in an object as JSON text": ('{"messages": [{"role": "user", "content": "hi"}]}', "hi"),
    "a conversation in Python's notation": ("[{'from': 'human', 'value': 'hi'}]", "hi"),
    "JSON that is no conversation": ('[{"role": 3}, 4]', None),
    "a conversation as text that breaks off": ('[{"role": "user", "content": "h', None),
    "other JSON": ('{"a": 1}', '{"a": 1}'),
    "a dialogue": ("\n\nHuman: hi\n\nAssistant: yo", "hi"),
    "a text with a name in front": ("Human: hi", "Human: hi"),
    "a number as content": ({"role": "user", "content": 3}, None),
    "a message of parts": ({"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image"}]}, "hi"),
    "a message of images": ({"role": "user", "content": [{"type": "image"}]}, None),
    "ShareGPT's names": ([{"from": "human", "value": "hi"}], "hi"),
    "a conversation without a user": ([{"role": "assistant", "content": "yo"}], None),
    "a number": (3, None),
    "nothing": (None, None),
}


@pytest.mark.parametrize(("value", "expected"), VALUES.values(), ids=VALUES.keys())
def test_a_value_becomes_its_last_user_turn(value: Any, expected: str | None) -> None:
    asked = asked_in(value)
    assert (asked.text if asked.fault is None else None) == expected


def test_empty_and_duplicate_prompts_are_dropped_and_counted() -> None:
    cleaned = clean(["a", " a ", "", "  ", None, "Caf\u00e9", "Cafe\u0301"])
    assert [prompt.prompt for prompt in cleaned.prompts] == ["a", "Caf\u00e9"]
    assert dict(cleaned.dropped) == {"duplicate": 2, "empty": 2, "no_user_message": 1}
    assert cleaned.prompts[0].prompt_id == hashlib.sha256(b"a").hexdigest()


@given(
    texts=st.lists(st.text(min_size=1, max_size=5), max_size=40),
    held_out=st.integers(0, 10),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_a_split_is_a_partition_that_arrival_order_does_not_change(
    texts: list[str], held_out: int, fraction: float, seed: int, data: st.DataObject
) -> None:
    prompts = clean(texts).prompts
    parts = split(prompts, held_out=held_out, sft_fraction=fraction, seed=seed)
    ids = [prompt.prompt_id for prompt in [*parts.sft, *parts.preference, *parts.evaluation]]
    assert sorted(ids) == sorted(prompt.prompt_id for prompt in prompts)
    assert len(parts.evaluation) == min(held_out, len(prompts))
    again = split(data.draw(st.permutations(prompts)), held_out=held_out, sft_fraction=fraction, seed=seed)
    assert again == parts


FRACTIONS = {
    "a third of nine": (1 / 3, 9, 3),
    "nothing": (0.0, 9, 0),
    "everything": (1.0, 9, 9),
    "a small fraction keeps one": (0.01, 9, 1),
    "a large fraction leaves one": (0.99, 9, 8),
}


@pytest.mark.parametrize(("fraction", "total", "expected"), FRACTIONS.values(), ids=FRACTIONS.keys())
def test_the_sft_part_has_its_share(fraction: float, total: int, expected: int) -> None:
    prompts = clean(str(number) for number in range(total)).prompts
    assert len(split(prompts, held_out=0, sft_fraction=fraction, seed=1).sft) == expected


def test_the_seed_decides_the_order() -> None:
    prompts = clean(str(number) for number in range(50)).prompts
    assert shuffled(prompts, 1) != shuffled(prompts, 2)


def test_what_is_left_out_of_conversations_is_counted_and_said(
    tmp_path: Path, make_ctx: Any, caplog: pytest.LogCaptureFixture
) -> None:
    user, system = {"role": "user", "content": "hi"}, {"role": "system", "content": "be nice"}
    answer = {"role": "assistant", "content": "yo"}
    image = {"role": "user", "content": [{"type": "text", "text": "what is it?"}, {"type": "image"}]}
    values: list[Any] = [
        [system, user, answer, {"role": "user", "content": "more"}],
        [answer, {"role": "user", "content": "thanks"}],
        image,
        [{**system, "content": ""}, {"role": "user", "content": "alone"}, answer],
        "text",
    ]
    ctx = make_ctx(prepare(tmp_path, values))
    metrics = run(ctx).metrics
    assert {name: value for name, value in metrics.items() if name.startswith("left_out")} == {
        "left_out_earlier_turns": 1,
        "left_out_later_turns": 1,
        "left_out_parts": 1,
    }
    assert caplog.messages == [
        (
            f"{tmp_path}/p.jsonl: a prompt is a conversation up to its last user turn. Left out: earlier turns in 1, "
            "later turns in 1, parts in 1 of 5 prompts"
        )
    ]


def test_held_out_prompts_come_from_the_only_split_of_their_directory(tmp_path: Path, make_ctx: Any) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "test.jsonl").write_text('{"prompt": "held out"}\n')
    params = prepare(tmp_path, ["a", "b", "held out"])
    ctx = make_ctx({**params, "evaluation_dataset": str(tmp_path / "held"), "evaluation_prompts": 1})
    assert run(ctx).metrics["dropped_in_evaluation"] == 1


def test_a_file_of_held_out_prompts_goes_with_any_split_of_the_training_data(tmp_path: Path, make_ctx: Any) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    for name in ("train_prefs", "test_prefs"):
        (tmp_path / "set" / "data" / f"{name}-00000-of-00001.jsonl").write_text(
            "".join(json.dumps({"prompt": f"{name} {number}"}) + "\n" for number in range(3))
        )
    (tmp_path / "held.txt").write_text("held out\n")
    params = {"stage": "prepare", "dataset": str(tmp_path / "set"), "split": "train_prefs"}
    ctx = make_ctx({**params, "evaluation_dataset": str(tmp_path / "held.txt"), "evaluation_prompts": 1})
    assert run(ctx).metrics["prompts_read"] == 3


def prepare(tmp_path: Path, texts: list[Any], **params: Any) -> dict[str, Any]:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return {"stage": "prepare", "dataset": str(tmp_path / "p.jsonl"), **params}


def test_the_stage_writes_three_disjoint_parts_with_metrics(tmp_path: Path, make_ctx: Any) -> None:
    texts = [f"question {number}" for number in range(20)] + ["question 1", ""]
    ctx = make_ctx(prepare(tmp_path, texts, limit=14, evaluation_prompts=2))
    result = run(ctx)
    artifact = ctx.output.committed()
    assert artifact is not None
    sizes = {name: pl.read_parquet(artifact.file(name)).height for name in artifact.files()}
    assert sizes == {"evaluation.parquet": 2, "preference.parquet": 8, "sft.parquet": 4}
    assert result.rows == 14
    assert result.metrics == {
        "prompts_sft": 4,
        "prompts_preference": 8,
        "prompts_evaluation": 2,
        "prompts_read": 22,
        "dropped_duplicate": 1,
        "dropped_empty": 1,
        "dropped_over_limit": 6,
    }


def test_held_out_prompts_of_another_data_set_are_never_trained_on(tmp_path: Path, make_ctx: Any) -> None:
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("question 1\nquestion 2\n")
    params = prepare(tmp_path, [f"question {number}" for number in range(10)])
    ctx = make_ctx({**params, "evaluation_dataset": str(held_out), "evaluation_prompts": 2})
    result = run(ctx)
    assert result.metrics["dropped_in_evaluation"] == 2
    artifact = ctx.output.committed()
    assert artifact is not None
    trained = pl.concat([pl.read_parquet(artifact.file(f"{part}.parquet")) for part in ("sft", "preference")])
    assert trained.height == 8
    assert not {"question 1", "question 2"} & set(trained["prompt"])


def bad_column(tmp_path: Path) -> dict[str, Any]:
    return {**prepare(tmp_path, ["a"]), "column": "question"}


def empty(tmp_path: Path) -> dict[str, Any]:
    return prepare(tmp_path, ["", "  "])


def too_few(tmp_path: Path) -> dict[str, Any]:
    return {**prepare(tmp_path, ["a", "b"]), "evaluation_prompts": 2}


def missing(tmp_path: Path) -> dict[str, Any]:
    return {"stage": "prepare", "dataset": str(tmp_path / "none.jsonl")}


def not_json(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    return {"stage": "prepare", "dataset": str(tmp_path / "p.jsonl")}


def wrong_format(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "p.xlsx").write_text("")
    return {"stage": "prepare", "dataset": str(tmp_path / "p.xlsx")}


def outside(tmp_path: Path) -> dict[str, Any]:
    return {"stage": "prepare", "dataset": "storage://../secret"}


def latin1(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "p.jsonl").write_bytes('{"prompt": "a"}\n{"prompt": "Grüße"}\n'.encode("latin-1"))
    return {"stage": "prepare", "dataset": str(tmp_path / "p.jsonl")}


def torn_parquet(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "p.parquet"
    pl.DataFrame({"prompt": TEXTS * 100}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    return {"stage": "prepare", "dataset": str(path)}


def no_rows(tmp_path: Path) -> dict[str, Any]:
    pl.DataFrame({"prompt": []}, schema={"prompt": pl.String}).write_parquet(tmp_path / "p.parquet")
    return {"stage": "prepare", "dataset": str(tmp_path / "p.parquet")}


def not_objects(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "p.json").write_text('["a", "b"]')
    return {"stage": "prepare", "dataset": str(tmp_path / "p.json")}


def all_dropped(tmp_path: Path) -> dict[str, Any]:
    rows: list[Any] = [[{"role": "assistant", "content": "yo"}], "\ud800"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    return {"stage": "prepare", "dataset": str(tmp_path / "p.jsonl")}


def no_split(tmp_path: Path) -> dict[str, Any]:
    import datasets

    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"prompt": TEXTS})}).save_to_disk(str(tmp_path / "saved"))
    return {"stage": "prepare", "dataset": str(tmp_path / "saved")}


def later_row(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n\n{"question": "b"}\n')
    return {"stage": "prepare", "dataset": str(tmp_path / "p.jsonl")}


def renamed_jsonl(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "p.txt").write_text('{"prompt": "a"}\n')
    return {"stage": "prepare", "dataset": str(tmp_path / "p.txt")}


def more_cells(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "p.csv").write_text("prompt\nWell, why?\n")
    return {"stage": "prepare", "dataset": str(tmp_path / "p.csv")}


BAD_INPUTS = {
    "a column that a later row lacks": (
        later_row,
        78,
        "prompts.column is 'prompt': row 3 of {dir}/p.jsonl has no such column; its columns: question",
    ),
    "JSON lines called .txt": (
        renamed_jsonl,
        65,
        "line 1 of {dir}/p.txt is a JSON object, but of a .txt file each line is a prompt, verbatim",
    ),
    "a comma that is not quoted": (
        more_cells,
        65,
        "line 2 of {dir}/p.csv cannot be read: it has 2 values for 1 columns (prompt)",
    ),
    "a file in Latin-1": (
        latin1,
        65,
        "line 2 of {dir}/p.jsonl is not UTF-8: byte 0xfc at offset 30 of the file",
    ),
    "a Parquet file that breaks off": (
        torn_parquet,
        65,
        "{dir}/p.parquet cannot be read: parquet: File out of specification: The file must end with PAR1 or PARE",
    ),
    "a file without rows": (
        no_rows,
        65,
        "prompts.dataset '{dir}/p.parquet' holds no prompt: 0 rows read, dropped: none",
    ),
    "rows that are no objects": (not_objects, 65, "row 1 of {dir}/p.json is 'a', but rows are objects"),
    "nothing that is a prompt": (
        all_dropped,
        65,
        (
            "prompts.dataset '{dir}/p.jsonl' holds no prompt: 2 rows read, dropped: 1 invalid_unicode, "
            "1 no_user_message; in column prompt value 1 is a list of 1 value"
        ),
    ),
    "a saved data set without the split": (
        no_split,
        78,
        "prompts.split is 'train': {dir}/saved has the splits test",
    ),
    "a data set without the named column": (
        bad_column,
        78,
        "prompts.column is 'question': {dir}/p.jsonl has no such column; its columns: prompt",
    ),
    "an empty data set": (
        empty,
        65,
        "prompts.dataset '{dir}/p.jsonl' holds no prompt: 2 rows read, dropped: 2 empty",
    ),
    "too few prompts to hold out": (
        too_few,
        65,
        "prompts.evaluation.prompts is 2, but '{dir}/p.jsonl' can spare only 1",
    ),
    "a data set that does not exist": (
        missing,
        78,
        "prompts.dataset is '{dir}/none.jsonl': there is no file or directory {dir}/none.jsonl",
    ),
    "a line that is not JSON": (
        not_json,
        65,
        "line 2 of {dir}/p.jsonl cannot be read: Expecting value: line 2 column 1 (char 12)",
    ),
    "a file of an unknown type": (
        wrong_format,
        78,
        "prompts.dataset is '{dir}/p.xlsx': files of type .xlsx are not read",
    ),
    "a path outside the storage": (
        outside,
        78,
        "storage reference is 'storage://../secret': the path must stay below the storage root",
    ),
}


@pytest.mark.parametrize(("make_params", "exit_code", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_named_and_nothing_is_committed(
    tmp_path: Path, make_ctx: Any, make_params: Any, exit_code: int, message: str
) -> None:
    ctx = make_ctx(make_params(tmp_path))
    with pytest.raises(WrpoError) as error:
        run(ctx)
    assert error.value.message == message.format(dir=tmp_path)
    assert error.value.exit_code == exit_code
    assert error.value.hint
    assert ctx.output.committed() is None


LARGE = "Zeile mit \u2028 und Umlaut ü, " * 40_000


@pytest.mark.parametrize("name", WRITERS)
def test_a_prompt_of_a_megabyte_is_read_whole(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(LARGE.encode()) > 1_000_000
    monkeypatch.setattr(f"{__name__}.TEXTS", [LARGE, "small"])
    WRITERS[name](tmp_path / name)
    assert list(values(tmp_path)) == [LARGE, "small"]


def test_line_ends_and_byte_order_marks_of_other_systems_are_no_part_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    (tmp_path / "q.csv").write_bytes(b'\xef\xbb\xbfq\r\n"three\r\nlines"\r\n')
    read = [list(values(tmp_path / name)) for name in ("p.txt", "q.csv")]
    assert read == [["one", "two"], ["three\r\nlines"]]


@pytest.mark.parametrize("with_splits", [False, True])
def test_saved_data_sets_are_read(tmp_path: Path, with_splits: bool) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"q": [[{"role": "user", "content": text}] for text in TEXTS]})
    saved = datasets.DatasetDict({"train": rows}) if with_splits else rows
    saved.save_to_disk(str(tmp_path / "saved"))
    cleaned = clean(values(tmp_path / "saved"))
    assert [prompt.prompt for prompt in cleaned.prompts] == TEXTS


TURN = {"role": "user", "content": "2 + 2?"}
HISTORIES: list[Any] = [[TURN, {"role": "assistant", "content": "4."}], None, []]


def save_to_disk(path: Path, rows: list[dict[str, Any]]) -> None:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(path))


WITH_HISTORY = {
    "p.jsonl": lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows)),
    "p.parquet": lambda path, rows: pl.DataFrame(rows).write_parquet(path),
    "saved": save_to_disk,
}


@pytest.mark.parametrize("name", WITH_HISTORY)
def test_the_history_of_a_row_comes_before_its_prompt(tmp_path: Path, name: str) -> None:
    rows = [{"q": text, "history": history} for text, history in zip(TEXTS, HISTORIES, strict=True)]
    WITH_HISTORY[name](tmp_path / name, rows)
    cleaned = clean(values(tmp_path / name))
    assert [prompt.prompt for prompt in cleaned.prompts] == TEXTS
    assert [prompt.history for prompt in cleaned.prompts] == [(("user", "2 + 2?"), ("assistant", "4.")), (), ()]
    conversation = [*(HISTORIES[0] or ()), {"role": "user", "content": TEXTS[0]}]
    assert cleaned.prompts[0] == clean([conversation]).prompts[0]


def test_a_history_that_is_no_list_of_messages_is_another_column(tmp_path: Path) -> None:
    rows = [{"q": text, "history": other} for text, other in zip(TEXTS, ["a book", [["hi", "yo"]], 3], strict=True)]
    WITH_HISTORY["p.jsonl"](tmp_path / "p.jsonl", rows)
    assert list(values(tmp_path)) == TEXTS
