"""Triples survive every format, and what cannot be read is one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.artifacts import VolumeStore
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import DataError
from wrpo_engine.formats.command import main
from wrpo_engine.formats.reading import read_triples
from wrpo_engine.formats.rows import TRIPLES, triples_frame
from wrpo_engine.text.conversations import id_of
from wrpo_engine.training.data.inputs import read_triples as read_for_training

KINDS = {"published": "t.jsonl", "jsonl": "t.jsonl", "parquet": "t.parquet", "datasets": "saved"}
HARD = 'two\nlines, "quotes", Grüße \u2028 \U0001f600 <|im_end|>'


def triples(*, pairs: bool = False) -> pl.DataFrame:
    rows = [
        {
            "prompt_id": f"{number:064x}",
            "prompt": f"{HARD} {number}?",
            "source_chosen": None if pairs else f"best {HARD}",
            "target_chosen": "good",
            "rejected": f"bad {number}",
            "source": None if pairs else "ann",
            "source_score": None if pairs else 0.1 + number,
            "target_score": 1 / 3,
            "rejected_score": -0.5,
            "target_source": "target",
            "rejected_source": "target",
            "source_truncated": None if pairs else False,
            "target_truncated": False,
            "rejected_truncated": True,
        }
        for number in range(3)
    ]
    return pl.DataFrame(rows, schema=TRIPLES)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_through_every_format_loses_nothing_that_it_can_hold(
    tmp_path: Path, kind: str, pairs: bool
) -> None:
    table = triples(pairs=pairs)
    table.write_parquet(tmp_path / "in.parquet")
    written = tmp_path / KINDS[kind]
    assert main([str(tmp_path / "in.parquet"), str(written), "--to", kind]) == 0
    again = read_triples(str(written))
    held = ["prompt_id", "prompt", "source_chosen", "target_chosen", "rejected"] if kind == "published" else [*TRIPLES]
    assert again.select(held).equals(table.select(held))


def test_the_published_format_is_the_published_one(tmp_path: Path) -> None:
    triples().write_parquet(tmp_path / "in.parquet")
    main([str(tmp_path / "in.parquet"), str(tmp_path / "out.jsonl"), "--to", "published"])
    first = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert first == {
        "prompt_id": "0" * 64,
        "prompt": {"role": "user", "content": f"{HARD} 0?"},
        "chosen": [{"role": "assistant", "content": f"best {HARD}"}, {"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad 0"}],
    }


def test_an_artifact_is_what_the_train_stage_reads_and_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(write_rows(tmp_path, [PUBLISHED])), str(tmp_path / "storage"), "--to", "artifact"])
    address = capsys.readouterr().out.strip()
    stage, _, hash_ = address.partition("/")
    artifact = VolumeStore(tmp_path / "storage", lambda: pytest.fail("nothing is written")).open(
        ArtifactRef(stage=stage, hash=hash_)
    )
    assert artifact is not None
    rows = read_for_training(artifact.file("triples.parquet"), has_source=True)
    assert [(row.prompt, row.responses) for row in rows] == [("hi?", ("best", "good", "bad"))]
    for place, options in (
        (str(tmp_path / "storage" / address), []),
        (address, ["--storage", str(tmp_path / "storage")]),
        (f"storage://{address}/triples.jsonl", ["--storage", str(tmp_path / "storage")]),
    ):
        out = tmp_path / f"{len(place)}-{len(options)}.jsonl"
        assert main([place, str(out), "--to", "published", *options]) == 0
        assert json.loads(out.read_text()) == PUBLISHED
    capsys.readouterr()
    main([str(tmp_path / "rows.jsonl"), str(tmp_path / "storage"), "--to", "artifact"])
    assert capsys.readouterr().out.strip() == address


PUBLISHED: dict[str, Any] = {
    "prompt_id": "ab" * 32,
    "prompt": {"role": "user", "content": "hi?"},
    "chosen": [{"role": "assistant", "content": "best"}, {"role": "assistant", "content": "good"}],
    "rejected": [{"role": "assistant", "content": "bad"}],
}


def write_rows(tmp_path: Path, rows: list[Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TURN = {"role": "user", "content": "hi?"}
FORMS: dict[str, tuple[dict[str, Any], tuple[str | None, str, str]]] = {
    "published": (PUBLISHED, ("best", "good", "bad")),
    "published, a pair": ({**PUBLISHED, "chosen": PUBLISHED["chosen"][1:]}, (None, "good", "bad")),
    "texts": ({"prompt": "hi?", "chosen": "good", "rejected": "bad"}, (None, "good", "bad")),
    "a conversation as prompt": (
        {**PUBLISHED, "prompt": [{"role": "system", "content": " "}, TURN, {"role": "assistant", "content": ""}]},
        ("best", "good", "bad"),
    ),
    "conversations that hold the prompt": (
        {"chosen": [TURN, PUBLISHED["chosen"][1]], "rejected": [TURN, *PUBLISHED["rejected"]]},
        (None, "good", "bad"),
    ),
    "ours": (
        {"prompt": "hi?", "target_chosen": "good", "rejected": "bad", "source_chosen": "best"},
        ("best", "good", "bad"),
    ),
}


@pytest.mark.parametrize("as_parquet", [False, True])
@pytest.mark.parametrize(("row", "expected"), FORMS.values(), ids=FORMS.keys())
def test_every_row_format_becomes_a_triple(
    tmp_path: Path, row: dict[str, Any], expected: tuple[str | None, str, str], as_parquet: bool
) -> None:
    path = write_rows(tmp_path, [row])
    if as_parquet:
        path = tmp_path / "rows.parquet"
        pl.DataFrame([row]).write_parquet(path)
    table = read_triples(str(path))
    assert table.select("source_chosen", "target_chosen", "rejected").rows() == [expected]
    assert table["prompt"].to_list() == ["hi?"]
    assert table["prompt_id"].to_list() == [row.get("prompt_id", id_of("hi?"))]


def bad_file(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(directory: Path) -> Path:
        path = directory / name
        path.write_bytes(content)
        return path

    return write


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "not UTF-8": (
        bad_file("r.jsonl", lines(PUBLISHED) + b'{"prompt": "Gr\xfc\xdfe"}\n'),
        f"line 2 of FILE is not UTF-8: byte 0xfc at offset {len(lines(PUBLISHED)) + 14} of the file",
    ),
    "not JSON": (bad_file("r.jsonl", b"{oops\n"), "line 1 of FILE cannot be read: Expecting property name"),
    "corrupt Parquet": (bad_file("r.parquet", b"PAR1 torn"), "FILE cannot be read: "),
    "another table": (
        bad_file("r.jsonl", lines({"question": "hi", "rating": 3})),
        "FILE holds no triples; its columns: question, rating; needed: a prompt (`prompt`, `question`, `instruction`, ",
    ),
    "a row of another form": (
        bad_file("r.jsonl", lines(PUBLISHED, ["hi"])),
        "row 2 of FILE is a list of 1 value, but rows are",
    ),
    "three chosen ones": (
        bad_file("r.jsonl", lines({**PUBLISHED, "chosen": ["a", "b", "c"]})),
        "row 1 of FILE: column `chosen` has 3 responses; expected the responses [y_ws, y_wt] or [y_wt]",
    ),
    "several turns": (
        bad_file("r.jsonl", lines({**PUBLISHED, "chosen": [TURN, PUBLISHED["chosen"][0]] * 2})),
        "row 1 of FILE: column `chosen` has a conversation of several turns, 3 before the response",
    ),
    "no prompt": (
        bad_file("r.jsonl", lines({**PUBLISHED, "prompt": None})),
        "row 1 of FILE: it has no prompt of a user; its columns: prompt_id, prompt, chosen, rejected; needed: ",
    ),
    "half a surrogate pair": (
        bad_file("r.jsonl", lines({**PUBLISHED, "prompt": "\ud800"})),
        "row 1 of FILE: column `prompt` holds half of a surrogate pair, U+D800 at character 1: it is not valid Unicode",
    ),
    "a column only in some rows": (
        bad_file("r.jsonl", lines(PUBLISHED, {"prompt": "hi?", "chosen": "good"})),
        "row 2 of FILE: it lacks `rejected`; its columns: prompt, chosen; needed: ",
    ),
    "a number as an answer": (
        bad_file("r.jsonl", lines(PUBLISHED, {**PUBLISHED, "rejected": 5})),
        "row 2 of FILE: column `rejected` holds 5 (int), where a text, a message or a list of messages is needed",
    ),
    "a number as a message's content": (
        bad_file("r.jsonl", lines({**PUBLISHED, "rejected": [{"role": "assistant", "content": 5}]})),
        "row 1 of FILE: column `rejected` holds a message with the content 5 (int), where a text is needed",
    ),
    "an image": (
        bad_file(
            "r.jsonl", lines({**PUBLISHED, "prompt": {"role": "user", "content": [{"type": "image", "url": "x"}]}})
        ),
        (
            "row 1 of FILE: column `prompt` holds a message with a part that is not text ('image'), which rows of "
            "texts cannot hold"
        ),
    ),
    "an unknown role": (
        bad_file("r.jsonl", lines({**PUBLISHED, "prompt": {"role": "tool", "content": "42"}})),
        (
            "row 1 of FILE: column `prompt` holds a message of the role 'tool'; the roles that are read are user, "
            "human, prompter, assistant, gpt, model, bot, chatbot, chatgpt, ai, system, developer"
        ),
    ),
    "a message without a role": (
        bad_file("r.jsonl", lines({**PUBLISHED, "prompt": {"content": "hi?"}})),
        "row 1 of FILE: column `prompt` holds a message without a role; its keys: content",
    ),
    "a tool call": (
        bad_file("r.jsonl", lines({**PUBLISHED, "chosen": [{"role": "assistant", "tool_calls": [{"id": 1}]}]})),
        "row 1 of FILE: column `chosen` holds a message with `tool_calls`, which rows of texts cannot hold",
    ),
    "an answer of the user": (
        bad_file("r.jsonl", lines({**PUBLISHED, "chosen": [PUBLISHED["chosen"][0], TURN]})),
        "row 1 of FILE: column `chosen` ends with a turn of the user, not with a response",
    ),
    "a prompt of the assistant": (
        bad_file("r.jsonl", lines({**PUBLISHED, "prompt": {"role": "assistant", "content": "yo"}})),
        "row 1 of FILE: it has no prompt of a user: `prompt` is of the assistant; its columns: ",
    ),
    "an id that is no text": (
        bad_file("r.jsonl", lines(PUBLISHED, {**PUBLISHED, "prompt_id": 1.5})),
        "row 2 of FILE: column `prompt_id` holds 1.5 (float), where a text is needed",
    ),
    "a score that is no number": (
        bad_file("r.jsonl", lines(PUBLISHED, {**PUBLISHED, "target_score": "0.5"})),
        "row 2 of FILE: column `target_score` holds '0.5', where a number is needed",
    ),
    "messages as text that breaks off": (
        bad_file("r.jsonl", lines({**PUBLISHED, "prompt": '[{"role": "user", "content": "hi'})),
        "row 1 of FILE: column `prompt` holds a text that begins like messages written as JSON and cannot be read: ",
    ),
    "nested too deep for JSON": (
        bad_file("r.jsonl", lines(PUBLISHED) + b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"),
        "line 2 of FILE cannot be read: its lists or objects are nested too deep",
    ),
    "nested too deep for messages": (
        bad_file("r.jsonl", b'{"prompt": ' + b"[" * 150 + b"]" * 150 + b"}\n"),
        "row 1 of FILE: column 'prompt' is nested deeper than 100 levels",
    ),
    "a key twice": (
        bad_file("r.jsonl", b'{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}\n'),
        "line 1 of FILE cannot be read: an object has the key 'prompt' twice",
    ),
    "gzip under another name": (
        bad_file("r.jsonl", b"\x1f\x8b\x08 rest"),
        "FILE is a gzip file, but its name ends with .jsonl",
    ),
    "a Git LFS pointer": (
        bad_file("r.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "FILE is a Git LFS pointer, not the file itself (`git lfs pull` fetches it), but its name ends with .csv",
    ),
    "a CSV row with too many values": (
        bad_file("r.csv", b"prompt,chosen,rejected\nhi,good,bad\nhi, you,good,bad\n"),
        "line 3 of FILE cannot be read: it has 4 values for 3 columns (prompt, chosen, rejected)",
    ),
    "a CSV quote that is never closed": (
        bad_file("r.csv", b'prompt,chosen,rejected\n"hi,good,bad\nhi,good,bad\n'),
        "line 3 of FILE cannot be read: unexpected end of data",
    ),
    "a CSV column twice": (
        bad_file("r.csv", b"prompt,chosen,chosen\nhi,good,bad\n"),
        "line 1 of FILE cannot be read: its header has 'chosen' twice",
    ),
    "nothing": (bad_file("r.jsonl", b"\n"), "FILE holds no row"),
    "another file type": (bad_file("r.xlsx", b""), "FILE: files of type .xlsx are not read"),
}


@pytest.mark.parametrize(("write", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_error_that_names_file_and_row(
    tmp_path: Path, write: Callable[[Path], Path], message: str
) -> None:
    path = write(tmp_path)
    with pytest.raises(DataError) as error:
        read_triples(str(path))
    assert error.value.message.replace(str(path), "FILE").startswith(message)


def test_a_missing_file_and_an_existing_output_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.jsonl"), str(tmp_path / "out"), "--to", "parquet"]) == 65
    assert capsys.readouterr().err.startswith(f"error: there is no file or directory {tmp_path}/none.jsonl\n")
    path = write_rows(tmp_path, [PUBLISHED])
    assert main([str(path), str(path), "--to", "jsonl"]) == 65
    assert "already exists" in capsys.readouterr().err
    assert main(["curate-triples/0123456789abcdef", "out", "--to", "jsonl", "--storage", str(tmp_path)]) == 66
    assert "there is no artifact curate-triples/0123456789abcdef" in capsys.readouterr().err


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(rows=st.lists(st.tuples(TEXT, st.none() | TEXT, TEXT, TEXT), min_size=1, max_size=4))
def test_every_text_survives_the_published_format(rows: list[tuple[str, str | None, str, str]]) -> None:
    from wrpo_engine.formats.published import published_row

    columns = ["prompt", "source_chosen", "target_chosen", "rejected"]
    flat = [{"prompt_id": "p", **dict(zip(columns, row, strict=True))} for row in rows]
    published = [json.loads(json.dumps(published_row(row), ensure_ascii=False)) for row in flat]
    assert triples_frame(enumerate(published), "here").select(columns).rows() == rows


def test_a_hub_data_set_that_cannot_be_had_offline_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["nobody/none", str(tmp_path / "out.jsonl"), "--to", "jsonl"]) == 78
    assert (
        "IN is 'nobody/none': it is not in the local cache, and HF_HUB_OFFLINE forbids downloading"
        in capsys.readouterr().err
    )
