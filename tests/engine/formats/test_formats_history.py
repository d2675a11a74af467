"""Rows with a history: conversations survive every format, and are kept from other tools' rows on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wrpo_engine.errors import DataError
from wrpo_engine.formats.command import main
from wrpo_engine.formats.reading import read_tables, triples_of
from wrpo_engine.formats.rows import Reading, read_rows
from wrpo_engine.linting.command import main as lint
from wrpo_engine.text.conversations import id_of, prompt_of

SYSTEM = {"role": "system", "content": "be brief"}
EARLIER = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
ASKED = {"role": "user", "content": "c?"}
HISTORY = [SYSTEM, *EARLIER]
KEEP = Reading(keep_history=True)


def pair(**columns: Any) -> dict[str, Any]:
    return {"chosen": "yes", "rejected": "no", **columns}


FORMS: dict[str, dict[str, Any]] = {
    "a conversation": pair(prompt=[*HISTORY, ASKED]),
    "messages": pair(messages=[*HISTORY, ASKED]),
    "a system column": pair(system="be brief", prompt=[*EARLIER, ASKED]),
    "turns before both responses": {
        side: [*HISTORY, ASKED, {"role": "assistant", "content": text}]
        for side, text in (("chosen", "yes"), ("rejected", "no"))
    },
    "the engine's": {"prompt": "c?", "history": HISTORY, "target_chosen": "yes", "rejected": "no"},
}


@pytest.mark.parametrize("form", FORMS)
def test_turns_before_the_last_one_become_the_history(form: str) -> None:
    table = read_rows([(1, FORMS[form])], "f", KEEP).table
    (row,) = table.to_dicts()
    found = (row["prompt"], row["history"], row["target_chosen"], row["rejected"])
    assert found == ("c?", HISTORY, "yes", "no")
    assert row["prompt_id"] == id_of(prompt_of("c?", HISTORY))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "the engine's"])
def test_turns_of_other_tools_are_refused_unless_they_are_to_be_kept(form: str) -> None:
    with pytest.raises(DataError, match=r"has a (conversation of several turns|system turn)") as error:
        read_rows([(1, FORMS[form])], "f")
    assert "--history keep" in str(error.value.hint)


def test_the_engines_own_history_needs_no_option() -> None:
    assert read_rows([(1, FORMS["the engine's"])], "f").table["history"].to_list() == [HISTORY]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no alternation": (pair(prompt=[ASKED, ASKED]), "column `prompt` has message 2 of 2 of the user"),
    "a late system turn": (pair(prompt=[*EARLIER, SYSTEM, ASKED]), "column `prompt` has message 3 of 4 of the system"),
    "two system turns": (pair(system="be long", prompt=[SYSTEM, ASKED]), "column `prompt` has a system turn"),
    "a response that has begun": (pair(prompt=[*HISTORY, ASKED, EARLIER[1]]), "ends with the beginning of the resp"),
    "a tool's turn": (
        {"prompt": "c?", "history": [EARLIER[0], {"role": "tool"}], "target_chosen": "y", "rejected": "n"},
        "column `history` holds a message of the role 'tool'",
    ),
}


@pytest.mark.parametrize(("row", "what"), BAD.values(), ids=BAD.keys())
def test_a_history_that_no_template_takes_is_named(row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as error:
        read_rows([(4, row)], "f", KEEP)
    assert error.value.message.startswith("row 4 of f: ")
    assert what in error.value.message


def test_a_system_turn_put_before_the_prompt_goes_to_the_users_first_turn() -> None:
    reading = Reading(keep_history=True, prepend_system=True)
    (row,) = read_rows([(1, FORMS["a conversation"])], "f", reading).table.to_dicts()
    assert row["prompt"] == "c?"
    assert row["history"] == [{"role": "user", "content": "be brief\n\na?"}, EARLIER[1]]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "datasets", "published"])
def test_every_format_gives_the_history_back(tmp_path: Path, kind: str) -> None:
    plain = {"prompt": "plain?", "target_chosen": "yes", "rejected": "no"}
    source = write(tmp_path / "in.jsonl", FORMS["the engine's"], plain)
    suffix = {"parquet": ".parquet", "datasets": ""}.get(kind, ".jsonl")
    out = tmp_path / f"out{suffix}"
    assert main([source, str(out), "--to", kind]) == 0
    columns = ["prompt_id", "prompt", "history", "target_chosen", "rejected"]
    again = triples_of(read_tables(str(out)), KEEP).table
    assert again.select(columns).equals(triples_of(read_tables(source)).table.select(columns))


def test_prompts_with_other_histories_are_no_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = FORMS["the engine's"]
    other = {**engine, "history": EARLIER}
    lint([write(tmp_path / "in.jsonl", engine, other)])
    assert "duplicate" not in capsys.readouterr().out
    lint([write(tmp_path / "twice.jsonl", engine, other, engine)])
    assert "duplicate-row" in capsys.readouterr().out
