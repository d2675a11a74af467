"""Whatever is in a file, a reader returns rows or one of the engine's errors, which names the file and the row."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrpo_engine.artifacts import records
from wrpo_engine.errors import WrpoError
from wrpo_engine.formats.columns import read_columns
from wrpo_engine.formats.reading import read_tables, triples_of
from wrpo_engine.formats.rows import Reading
from wrpo_engine.formats.writing import Format, write_file
from wrpo_engine.linting.command import main as lint
from wrpo_engine.prompts.reader import PromptColumn, read_values
from wrpo_engine.prompts.split import clean
from wrpo_engine.training.data.token_ids import read_tokenized_triples

TURN = {"role": "user", "content": "Name a river."}
ROWS: list[dict[str, Any]] = [
    {"prompt_id": "1", "prompt": "Why?", "chosen": "So.", "rejected": "No.", "target_score": 0.5},
    {
        "prompt": [TURN],
        "chosen": [{"role": "assistant", "content": "The Loire."}],
        "rejected": [{"from": "gpt", "value": "Paris."}],
    },
    {"prompt": json.dumps([TURN]), "target_chosen": "a", "source_chosen": "b", "rejected": "c", "source": "ann"},
    {"instruction": "Add.", "input": "1 1", "output": ["2", "3"], "prompt": None, "history": []},
    {"chosen": "\n\nHuman: hi\n\nAssistant: yo", "rejected": "\n\nHuman: hi\n\nAssistant: no", "prompt": "hi"},
    {"prompt": "Tokens", "prompt_ids": [1, 2], "target_chosen_ids": [3], "rejected_ids": [4]},
    {"prompt": "SFT", "response": "text"},
]


def as_prompts(path: Path) -> None:
    cleaned = clean(read_values(PromptColumn(dataset="d", path=str(path), config=None, split="train", column="prompt")))
    rows = {"prompt_id": [row.prompt_id for row in cleaned.prompts], "prompt": [row.prompt for row in cleaned.prompts]}
    pl.DataFrame(rows, schema=records.PROMPTS).write_parquet(io.BytesIO())


def as_triples(path: Path) -> None:
    table = triples_of(read_tables(str(path)), Reading()).table
    for kind in (Format.PUBLISHED, Format.JSONL, Format.PARQUET):
        out = path.parent / f"out-{kind}"
        write_file(table, out, kind)
        out.unlink()


def as_what_can_be_taken(path: Path) -> None:
    triples_of(read_tables(str(path)), Reading(skip_bad=True, prepend_system=True))


def as_token_ids(path: Path) -> None:
    read_tokenized_triples(path, has_source=False, vocabulary=100)


def as_samples(path: Path) -> None:
    read_columns([path], {"prompt_id": pl.String, "prompt": pl.String, "target_score": pl.Float64})


def as_lint(path: Path) -> None:
    """Run the command: an error of ours is its exit code; any other would come through."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = lint([str(path), "--json"])
    assert code in {0, 1} or (64 <= code <= 78 and code != 75), code
    assert code in {0, 1} or str(path) in said.getvalue()


READERS: list[Callable[[Path], None]] = [as_prompts, as_triples, as_what_can_be_taken, as_lint]


def check(path: Path, *readers: Callable[[Path], None]) -> str:
    """Read in every way; return the last message."""
    said = ""
    for read in readers:
        try:
            read(path)
        except WrpoError as error:
            said = error.message
            final = 64 <= error.exit_code <= 78 and error.exit_code != 75
            if not final or str(path) not in said or not error.hint:
                raise
            said.encode()
    return said


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(buffer)
    return buffer.getvalue()


FLAT = [
    {"prompt_id": f"p{number}", "prompt": f"Wh\u00fdy {number}, 'so'?", "chosen": "a", "rejected": "b"}
    for number in range(5)
]
FILES: dict[str, bytes] = {
    "rows.jsonl": jsonl(ROWS[:5]),
    "rows.json": json.dumps(ROWS[:5]).encode(),
    "tokens.jsonl": jsonl(ROWS[5:6] * 3),
    "responses.jsonl": jsonl(ROWS[6:] * 3),
    "rows.parquet": parquet(FLAT),
    "messages.parquet": parquet(ROWS[1:2] * 3),
    "tokens.parquet": parquet(ROWS[5:6] * 3),
    "rows.csv": pl.DataFrame(FLAT).write_csv().encode(),
    "rows.tsv": pl.DataFrame(FLAT).write_csv(separator="\t").encode(),
    "prompts.txt": "Why?\r\nWh\u00fdy not?\n".encode(),
}
INSERTED = [
    b"\x00",
    b"\xff",
    b'"',
    b"\n",
    b",",
    b"\\ud800",
    b"[[[[",
    b"}}",
    b"\xef\xbb\xbf",
    b"NaN",
    b"-1e999",
    b"null",
]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return the content with some bytes changed, left out, repeated or inserted, or cut off."""
    mutated = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 6])):
        at = rng.randrange(len(mutated) + 1)
        match rng.randrange(5):
            case 0:
                mutated[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del mutated[at : at + rng.randrange(1, 12)]
            case 2:
                mutated[at:at] = rng.choice(INSERTED)
            case 3:
                mutated[at:at] = mutated[rng.randrange(len(mutated) + 1) :][:20]
            case _:
                del mutated[at : len(mutated) if rng.random() < 0.2 else at + 1]
    return bytes(mutated)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    rng = random.Random(f"damage {name}")
    path = tmp_path / name
    readers = [*READERS, as_token_ids, as_samples] if name.endswith(".parquet") else READERS
    for _ in range(120):
        content = damaged(FILES[name], rng)
        path.write_bytes(content)
        check(path, *readers)


def test_a_damaged_saved_data_set_is_an_error_that_names_it(tmp_path: Path) -> None:
    import datasets

    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(FLAT)}).save_to_disk(str(saved))
    rng = random.Random("saved")
    for _ in range(60):
        copied = tmp_path / "copy"
        shutil.copytree(saved, copied)
        path = rng.choice(sorted(file for file in copied.rglob("*") if file.is_file()))
        path.write_bytes(damaged(path.read_bytes(), rng))
        check(copied, as_prompts, as_triples, as_token_ids)
        shutil.rmtree(copied)


def test_a_damaged_dataset_card_is_an_error_that_names_it(tmp_path: Path) -> None:
    card = b"---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: ['t/*', x.jsonl]\n---\n# Set\n"
    (tmp_path / "x.jsonl").write_bytes(jsonl(FLAT))
    rng = random.Random("card")
    for _ in range(300):
        (tmp_path / "README.md").write_bytes(damaged(card, rng))
        check(tmp_path, as_prompts)


ODD: list[Any] = [
    None,
    True,
    0,
    -7,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\ud800",
    "\x00",
    "x" * 300,
    '[{"role": "user"',
    '{"role": "user", "content": 3}',
    "Human: a\n\nAssistant:",
    [],
    {},
    [None],
    [[]],
    [""],
    [{}],
    {"role": None},
    {"role": ["user"], "content": "x"},
    {"role": "tool", "content": "x"},
    {"role": "system", "content": "x"},
    {"role": "assistant", "content": [{"type": "image"}]},
    {"from": "human", "value": {"a": 1}},
    {"role": "user", "content": [{"type": [1], "text": "x"}]},
    {"role": "assistant", "content": None},
    {"content": "no role"},
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) in a row, the row's own columns first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places(inner)


@st.composite
def odd_rows(draw: st.DrawFn) -> dict[str, Any]:
    """A valid row in which up to three values, at any depth, are replaced, left out, wrapped or renamed."""
    row = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(row))
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        match draw(st.sampled_from(["replace", "replace", "drop", "wrap", "rename"])):
            case "replace":
                container[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "wrap":
                container[key] = [container[key]]
            case "drop":
                del container[key]
            case _ if isinstance(container, dict):
                container[draw(st.sampled_from(NAMES))] = container.pop(key)
    return row


@settings(max_examples=250, deadline=None)
@given(row=odd_rows(), before=st.sampled_from(ROWS))
def test_a_row_of_odd_values_is_an_error_that_names_the_row(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any], before: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "odd.jsonl"
    try:
        path.write_text(json.dumps(before) + "\n" + json.dumps(row) + "\n")
    except ValueError:
        # Python writes no number of more than 4,300 digits.
        return
    said = check(path, *READERS)
    whole_file = ("holds no", "holds neither", "prompts.column", "holds token ids", "lacks ")
    assert not said or re.search(r"row [12] of ", said) or any(word in said for word in whole_file)
    with contextlib.suppress(TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        # What Parquet can hold of it, with the types that it has there.
        path = path.with_suffix(".parquet")
        path.write_bytes(parquet([row]))
        check(path, *READERS, as_token_ids, as_samples)


NAMES = ["prompt", "chosen", "rejected", "system", "role", "value", "\ud800"]
DEEP = {
    "lists": ("[", "]"),
    "objects": ('{"a":', "}"),
}


@pytest.mark.parametrize("depth", [99, 101, 900, 100_000])
@pytest.mark.parametrize(("opening", "closing"), DEEP.values(), ids=DEEP.keys())
@pytest.mark.parametrize("as_list", [False, True])
def test_values_nested_deep_are_an_error_in_every_reader(
    tmp_path: Path, opening: str, closing: str, depth: int, as_list: bool
) -> None:
    row = f'{{"prompt": {opening * depth}1{closing * depth}, "chosen": "a", "rejected": "b"}}'
    path = tmp_path / "rows.json"
    path.write_text(f"[{row}]" if as_list else row)
    assert check(path, *READERS)
    as_text = f'[{{"role": "user", "content": {opening * depth}1{closing * depth}}}]'
    path.write_text(json.dumps({"prompt": as_text, "chosen": "a", "rejected": "b"}))
    assert check(path, *READERS)


@pytest.mark.parametrize("text", ["\n", " ", "[", "{", "\n\nHuman:", "\n\nAssistant:", "Human:\n", '[{"role":'])
def test_a_text_of_a_million_repetitions_takes_no_time_of_note(tmp_path: Path, text: str) -> None:
    """Patterns that try every pair of positions would take hours here: the suite's own timeout ends this test."""
    row = {
        "prompt": f"Human:{text * (1_000_000 // len(text))}",
        "chosen": f"a{text * 100_000}",
        "rejected": text * 100_000,
    }
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl([row, {**row, "prompt": row["rejected"]}]))
    check(path, as_prompts, as_what_can_be_taken)


ENCODED = {
    "UTF-16": "utf-16",
    "UTF-32": "utf-32",
    "Latin-1": "latin-1",
    "EBCDIC": "cp500",
}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "prompts.txt"])
@pytest.mark.parametrize("encoding", ENCODED.values(), ids=ENCODED.keys())
def test_another_encoding_is_an_error_that_names_the_file(tmp_path: Path, name: str, encoding: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name].decode().replace("Wh\u00fdy", "W\u00e9").encode(encoding, errors="replace"))
    check(path, *READERS)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_and_another_format_under_its_name_are_errors(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    assert check(path, as_triples)
    for other, content in FILES.items():
        path.write_bytes(content)
        if other.rpartition(".")[2] != name.rpartition(".")[2]:
            check(path, *READERS)
