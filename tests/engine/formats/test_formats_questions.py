"""One conversation with two answers gives one result, whichever tool wrote it; nothing before the answer is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wrpo_engine.errors import DataError
from wrpo_engine.formats.command import main
from wrpo_engine.formats.rows import Reading, id_of, read_rows
from wrpo_engine.linting.command import main as lint

Turns = Sequence[tuple[str, str]]
"""(role, text) of user, assistant and system."""
Form = Callable[[Turns, str, str], dict[str, Any] | None]
"""The conversation before the answers, the chosen and the rejected one -> a row; None if the form cannot say it."""


def messages(turns: Turns, *, role: str = "role", content: str = "content", **names: str) -> list[dict[str, str]]:
    return [{role: names.get(who, who), content: text} for who, text in turns]


def share_gpt(turns: Turns) -> list[dict[str, str]]:
    return messages(turns, role="from", content="value", user="human", assistant="gpt")


def dialogue(turns: Turns) -> str | None:
    if any(who == "system" for who, _ in turns):
        return None
    return "".join(f"\n\n{'Human' if who == 'user' else 'Assistant'}: {text}" for who, text in turns)


def whole_dialogues(turns: Turns, chosen: str, rejected: str) -> dict[str, Any] | None:
    both = [dialogue([*turns, ("assistant", answer)]) for answer in (chosen, rejected)]
    return None if None in both else {"chosen": both[0], "rejected": both[1]}


def head_as_dialogue(turns: Turns, chosen: str, rejected: str) -> dict[str, Any] | None:
    head = dialogue([*turns, ("assistant", "")])
    return None if head is None else {"prompt": head, "chosen": f" {chosen}", "rejected": f" {rejected}"}


def single(column: str) -> Form:
    """Forms whose question is a text in a column of its own, with a column for the system turn."""

    def write(turns: Turns, chosen: str, rejected: str) -> dict[str, Any] | None:
        asked = [text for who, text in turns if who != "system"]
        system = next((text for who, text in turns if who == "system"), "")
        row = {"system": system, column: asked[0], "chosen": chosen, "rejected": rejected}
        return row if len(asked) == 1 else None

    return write


def alpaca(turns: Turns, chosen: str, rejected: str) -> dict[str, Any] | None:
    """Old rankings of Alpaca: all answers in `output`, earlier turns as pairs in `history`."""
    asked = [text for who, text in turns if who != "system"]
    system = next((text for who, text in turns if who == "system"), "")
    history = [list(pair) for pair in zip(asked[:-1:2], asked[1::2], strict=False)]
    row = {"instruction": asked[-1], "input": "", "output": [chosen, rejected], "system": system, "history": history}
    return row if turns[-1][0] == "user" else None


def answered(turns: Turns, answer: str) -> Turns:
    return [*turns, ("assistant", answer)]


FORMS: dict[str, Form] = {
    "prompt as messages, answers as texts": lambda t, c, r: {"prompt": messages(t), "chosen": c, "rejected": r},
    "prompt as messages, answers as messages": lambda t, c, r: {
        "prompt": messages(t),
        "chosen": messages([("assistant", c)]),
        "rejected": messages([("assistant", r)]),
    },
    "conversations without a prompt": lambda t, c, r: {
        "chosen": messages(answered(t, c)),
        "rejected": messages(answered(t, r)),
    },
    "other letters": lambda t, c, r: {
        "chosen": messages(answered(t, c), user="Human", assistant="Assistant", system="System"),
        "rejected": messages(answered(t, r), user="USER", assistant="Bot", system="developer"),
    },
    "ShareGPT": lambda t, c, r: {
        "conversations": share_gpt(t),
        "chosen": share_gpt([("assistant", c)])[0],
        "rejected": share_gpt([("assistant", r)])[0],
    },
    "OpenAI's names": lambda t, c, r: {
        "messages": messages(t),
        "chosen": messages([("assistant", c)])[0],
        "rejected": messages([("assistant", r)])[0],
    },
    "UltraFeedback, binarised": lambda t, c, r: {
        "prompt": next(text for who, text in reversed(t) if who == "user"),
        "messages": messages(answered(t, c)),
        "chosen": messages(answered(t, c)),
        "rejected": messages(answered(t, r)),
        "score_chosen": 8.0,
    },
    "text parts": lambda t, c, r: {
        "prompt": [{"role": who, "content": [{"type": "text", "text": text}]} for who, text in t],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": c}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": r}]}],
    },
    "JSON as text": lambda t, c, r: {
        "prompt": json.dumps(messages(t)),
        "chosen": json.dumps(messages([("assistant", c)])),
        "rejected": json.dumps(messages([("assistant", r)])),
    },
    "Python's notation": lambda t, c, r: {"prompt": str(messages(t)), "chosen": c, "rejected": r},
    "Orca pairs": single("question"),
    "a column prompt": single("prompt"),
    "a column input": single("input"),
    "Alpaca": alpaca,
    "HH-RLHF": whole_dialogues,
    "HH-RLHF with a prompt": head_as_dialogue,
}
SAID = st.text("abcdé ,.?\u2028\U0001f600", min_size=1, max_size=9).map(str.strip).filter(bool)
ASKED = [("user", "Name a river.")]
CONTEXTS: dict[str, Turns] = {
    "a system turn": [("system", "Be terse."), *ASKED],
    "an earlier turn": [("user", "Hi."), ("assistant", "Hello."), *ASKED],
    "another question": [("user", "Hi."), *ASKED],
    "an answer that has begun": [*ASKED, ("assistant", "The")],
    "all of them": [("system", "Be terse."), ("user", "Hi."), ("assistant", "Hello."), *ASKED, ("assistant", "The")],
}


@given(prompt=SAID, chosen=SAID, rejected=SAID)
@example(prompt="two\nlines", chosen="a\n\nb", rejected="[INST]")
def test_a_question_with_two_answers_is_the_same_row_in_every_form(prompt: str, chosen: str, rejected: str) -> None:
    for name, form in FORMS.items():
        row = form([("user", prompt)], chosen, rejected)
        table = read_rows([(1, row)], "rows").table.select("prompt", "source_chosen", "target_chosen", "rejected")
        spoken = [text and text.strip() for text in table.row(0)]
        assert spoken == [prompt, None, chosen, rejected], name


@pytest.mark.parametrize("turns", CONTEXTS.values(), ids=CONTEXTS.keys())
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_what_stands_before_the_answer_is_an_error_in_every_form(tmp_path: Path, form: Form, turns: Turns) -> None:
    row = form(turns, "The Loire.", "Paris.")
    if row is None:
        return
    good = {"prompt": "hi", "chosen": "yo", "rejected": "no"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError) as error:
        read_rows([(1, good), (2, row)], "FILE")
    assert error.value.message.startswith("row 2 of FILE: column `")
    assert "--bad-rows skip" in str(error.value.hint)
    # lint reads on, and counts them.
    assert lint([str(path), "--json"]) == 1


def run_lint(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    code = lint([str(path), "--json"])
    found = {each["rule"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    return {"exit": code, **found}


DIFFERING: dict[str, tuple[dict[str, Any], str]] = {
    "chosen and rejected": (
        {"chosen": messages(answered(ASKED, "a")), "rejected": messages(answered([("user", "And a lake?")], "b"))},
        "column `rejected` asks 'And a lake?', but `chosen` asks 'Name a river.'",
    ),
    "prompt and both": (
        {
            "prompt": "And a lake?",
            "chosen": messages(answered(ASKED, "a")),
            "rejected": messages(answered(ASKED, "b")),
        },
        "column `chosen` asks 'Name a river.', but `prompt` asks 'And a lake?'",
    ),
    "dialogues as text": (
        {"chosen": dialogue(answered(ASKED, "a")), "rejected": dialogue(answered([("user", "And a lake?")], "b"))},
        "column `rejected` asks 'And a lake?', but `chosen` asks 'Name a river.'",
    ),
    "another role": (
        {
            "prompt": messages([("system", "Name a river.")]),
            "chosen": messages(answered(ASKED, "a")),
            "rejected": "b",
        },
        "column `prompt` asks 'Name a river.', but `chosen` asks 'Name a river.'",
    ),
    "messages beside the prompt": (
        {"prompt": "And a lake?", "messages": messages(ASKED), "chosen": "a", "rejected": "b"},
        "column `messages` asks 'Name a river.', but `prompt` asks 'And a lake?'",
    ),
}


@pytest.mark.parametrize("as_parquet", [False, True])
@pytest.mark.parametrize(("row", "what"), DIFFERING.values(), ids=DIFFERING.keys())
def test_columns_that_ask_different_things_are_refused_and_found_by_lint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], what: str, as_parquet: bool
) -> None:
    path = tmp_path / ("rows.parquet" if as_parquet else "rows.jsonl")
    if as_parquet:
        pl.DataFrame([row]).write_parquet(path)
    else:
        path.write_text(json.dumps(row) + "\n")
    assert main([str(path), str(tmp_path / "out.jsonl"), "--to", "jsonl"]) == 65
    assert f"row 1 of {path}: {what}" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
    found = run_lint(path, capsys)
    assert (found["exit"], found["prompts-differ"]["severity"], found["prompts-differ"]["count"]) == (1, "error", 1)
    assert found["prompts-differ"]["examples"][0]["row"] == 1


def test_a_second_column_that_is_part_of_the_prompt_is_no_contradiction() -> None:
    row = {
        "prompt": "Translate: good morning",
        "input": "good\nmorning",
        "question": None,
        "chosen": "a",
        "rejected": "b",
    }
    assert read_rows([(1, row)], "rows").table["prompt"].to_list() == ["Translate: good morning"]
    with pytest.raises(DataError, match="column `input` says 'good night', which is not in the prompt"):
        read_rows([(1, {**row, "input": "good night"})], "rows")


def test_instruction_and_input_are_one_prompt() -> None:
    row = {"instruction": "Translate.", "input": "good morning", "chosen": "bonjour", "rejected": "hola"}
    assert read_rows([(1, row)], "rows").table["prompt"].to_list() == ["Translate.\ngood morning"]


def test_a_conversation_may_end_with_the_chosen_answer_and_with_no_other() -> None:
    row = {"conversations": share_gpt(answered(ASKED, "The Loire.")), "chosen": "The Loire.", "rejected": "Paris."}
    assert read_rows([(1, row)], "rows").table["prompt"].to_list() == ["Name a river."]
    with pytest.raises(DataError, match=r"ends with the beginning of the response, 'The Loire\.'"):
        read_rows([(1, {**row, "chosen": "The Seine."})], "rows")


IDS: dict[str, tuple[Any, str | None]] = {
    "text": ("a", "a"),
    "an integer": (7, "7"),
    "a negative one": (-(2**63), "-9223372036854775808"),
    "null": (None, None),
    "empty": ("", None),
}


@pytest.mark.parametrize(("prompt_id", "expected"), IDS.values(), ids=IDS.keys())
def test_a_prompt_id_is_taken_as_text(prompt_id: Any, expected: str | None) -> None:
    row = {"prompt_id": prompt_id, "prompt": "q", "chosen": "a", "rejected": "b"}
    assert read_rows([(1, row)], "rows").table["prompt_id"].to_list() == [expected or id_of("q")]


def test_a_system_turn_can_become_the_beginning_of_the_prompt() -> None:
    reading = Reading(prepend_system=True)
    for name, form in FORMS.items():
        if (row := form(CONTEXTS["a system turn"], "a", "b")) is not None:
            table = read_rows([(1, row)], "rows", reading).table
            assert table["prompt"].to_list() == ["Be terse.\n\nName a river."], name
    with pytest.raises(DataError, match="several turns, 3 before the response"):
        read_rows(
            [(1, {"prompt": messages(CONTEXTS["an earlier turn"]), "chosen": "a", "rejected": "b"})], "r", reading
        )


def test_rows_that_cannot_be_taken_are_left_out_and_counted_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "hi", "chosen": "yo", "rejected": "no"},
        {"prompt": messages(CONTEXTS["an earlier turn"]), "chosen": "yo", "rejected": "no"},
        {"prompt": "hi", "chosen": 5, "rejected": "no"},
        {**DIFFERING["prompt and both"][0]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(path), str(tmp_path / "out.jsonl"), "--to", "jsonl", "--bad-rows", "skip"]) == 0
    assert capsys.readouterr().err == (
        "1 rows\nleft out: 1 rows context-left-out, 1 rows prompts-differ, 1 rows unreadable\n"
    )
    path.write_text(json.dumps(rows[1]) + "\n")
    assert main([str(path), str(tmp_path / "none.jsonl"), "--to", "jsonl", "--bad-rows", "skip"]) == 65
    assert "no row can be used; 1 rows context-left-out" in capsys.readouterr().err


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_an_answer_that_is_the_prompt_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: Form) -> None:
    row = form(ASKED, "Name a river.", "Paris.")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    found = run_lint(path, capsys)["prompt-equals-answer"]
    assert (found["severity"], found["count"], found["message"]) == ("error", 1, "target_chosen is the prompt itself")
    assert main([str(path), str(tmp_path / "out.jsonl"), "--to", "jsonl"]) == 0
    assert "warning: in 1 rows a preferred response is the prompt" in capsys.readouterr().err


ANSWERS_ONLY: list[dict[str, Any]] = [
    {"chosen": "The Loire.", "rejected": "Paris."},
    {"chosen": messages([("assistant", "The Loire.")]), "rejected": messages([("assistant", "Paris.")])},
    {"chosen": ["The Loire.", "The Seine."], "rejected": ["Paris."]},
    {"title": "rivers", "chosen": dialogue(ASKED), "rejected": "Paris."},
    {"text": "Name a river.", "chosen": "The Loire.", "rejected": "Paris.", "prompt": None},
]


@pytest.mark.parametrize("row", ANSWERS_ONLY)
def test_an_answer_never_becomes_the_prompt(row: dict[str, Any]) -> None:
    with pytest.raises(DataError) as error:
        read_rows([(7, row)], "FILE")
    assert error.value.message.startswith(f"row 7 of FILE: it has no prompt of a user; its columns: {', '.join(row)}; ")


def test_an_answer_may_quote_a_dialogue_or_be_json() -> None:
    quoted = "Human: hi\n\nAssistant: yo"
    as_json = json.dumps(messages(ASKED))
    for text in (quoted, as_json):
        row = {"prompt": "Write a dialogue.", "chosen": text, "rejected": "no"}
        assert read_rows([(1, row)], "rows").table["target_chosen"].to_list() == [text]


def test_a_system_turn_beside_the_engines_columns_is_an_error_too(tmp_path: Path) -> None:
    pl.DataFrame([{"prompt": "q", "target_chosen": "a", "rejected": "b", "system": "Be terse."}]).write_parquet(
        tmp_path / "rows.parquet"
    )
    assert main([str(tmp_path / "rows.parquet"), str(tmp_path / "out.jsonl"), "--to", "jsonl"]) == 65


def test_faults_of_a_later_file_have_the_row_of_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        rows = [{"prompt": f"{name}?", "chosen": "yo", "rejected": "no"}, DIFFERING["prompt and both"][0]]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = run_lint(tmp_path, capsys)["prompts-differ"]["examples"]
    assert [example["row"] for example in examples] == [2, 4]


SPELLINGS = {
    "capitals": {"Prompt": "q", "Chosen": "g", "Rejected": "b"},
    "all capitals": {"QUESTION": "q", "CHOSEN": "g", "REJECTED": "b"},
    "ours in camel case": {"prompt": "q", "targetChosen": "g", "Rejected": "b"},
}


@pytest.mark.parametrize("row", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_columns_are_read_in_any_spelling(row: dict[str, Any]) -> None:
    read = read_rows([(1, row)], "x.jsonl").table.row(0, named=True)
    assert (read["prompt"], read["target_chosen"], read["rejected"]) == ("q", "g", "b")


SPELLED_CONTEXT = {
    "System": ("be brief", "column `system` has a system turn, 'be brief'"),
    "systemPrompt": ("be brief", "column `system_prompt` has a system turn, 'be brief'"),
    "system_message": ("be brief", "column `system_message` has a system turn, 'be brief'"),
    "History": ([["a", "b"]], "column `history` says a list of 1 value, which is not in the prompt 'q'"),
    "Question": ("another", "column `question` says 'another', which is not in the prompt 'q'"),
    "Prompt": ("another", "column `prompt` and column `Prompt` are one column in two spellings"),
}


@pytest.mark.parametrize("name", SPELLED_CONTEXT)
def test_context_in_another_spelling_is_not_left_out(name: str) -> None:
    value, what = SPELLED_CONTEXT[name]
    with pytest.raises(DataError) as caught:
        read_rows([(1, {"prompt": "q", name: value, "chosen": "g", "rejected": "b"})], "x.jsonl")
    assert caught.value.message == f"row 1 of x.jsonl: {what}"


def test_messages_as_numpy_prints_them_are_no_answers() -> None:
    printed = "[{'content': 'q', 'role': 'user'}\n {'content': 'a', 'role': 'assistant'}]"
    with pytest.raises(DataError, match=r"row 1 of x.jsonl: column `chosen` holds a text that begins like messages"):
        read_rows([(1, {"prompt": "q", "chosen": printed, "rejected": printed})], "x.jsonl")
