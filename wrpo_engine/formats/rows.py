"""Conversion of one row of other tools' preference data to the engine's format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.errors import DataError
from wrpo_engine.formats.messages import NotTurns, Role, Turn, conversation_in, is_list_of_messages
from wrpo_engine.formats.questions import (
    CONTEXT_COLUMNS,
    PROMPT_COLUMNS,
    Fault,
    FaultOf,
    Head,
    heads_of,
    own_head,
    question_of,
    read_column,
)
from wrpo_engine.formats.shown import names, shown
from wrpo_engine.text.conversations import Prompt, id_of, prompt_of

TRIPLES = {**records.TRIPLES, **records.TRIPLE_ORIGINS}
_SCHEMA = {**TRIPLES, **records.HISTORY}
TOKENS = ("prompt_ids", "source_chosen_ids", "target_chosen_ids", "rejected_ids")
"""Columns of triples as token ids; source_chosen_ids is optional."""
TEXTS = ("prompt", "source_chosen", "target_chosen", "rejected")
_COLUMNS = {
    name.replace("_", ""): name for name in (*TEXTS, *PROMPT_COLUMNS, *CONTEXT_COLUMNS, "chosen", "rejected", "output")
}
"""The columns of the question and its responses, by their letters."""
_KNOWN = frozenset(_COLUMNS.values())
_OPTIONAL = [name for name in TRIPLES if name not in {"prompt_id", "prompt", "target_chosen", "rejected"}]
NEEDED = (
    "a prompt (`prompt`, `question`, `instruction`, `messages`, `conversations`, or turns before the response in "
    "`chosen` and `rejected`) and the responses `chosen` and `rejected`"
)
_HINT = "`wrpo-engine convert --help` shows the row formats that are read."


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How rows are read."""

    prepend_system: bool = False
    """Whether a system turn becomes the beginning of the prompt."""
    keep_history: bool = False
    """Whether the turns before the last user turn become the row's history; otherwise they are a fault."""
    skip_bad: bool = False
    """Whether rows that cannot be read and rows with a fault are left out and counted; otherwise they are errors."""


@dataclass(kw_only=True)
class Triples:
    """The rows that were read, and the faulty ones."""

    table: pl.DataFrame
    faults: list[tuple[int, FaultOf]] = field(default_factory=list)
    """(position in the table, fault), if faults were to be kept."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Rows that were left out, by reason."""


class _BadRow(Exception):  # noqa: N818 (becomes a DataError with the row's number)
    """A row of an unknown format."""

    def __init__(self, what: str, *, column: str | None = None) -> None:
        super().__init__(f"{f'column `{column}` ' if column else ''}{what}")


def triples_frame(rows: Iterable[tuple[int, Any]], where: str) -> pl.DataFrame:
    """Return TRIPLES from numbered rows; DataError names the first row that has another form or a fault."""
    return read_rows(rows, where).table


def read_rows(
    rows: Iterable[tuple[int, Any]], where: str, reading: Reading | None = None, *, keep_faults: bool = False
) -> Triples:
    """Return TRIPLES from numbered rows of any of the forms below; DataError names the first row of another form.

    - ours: prompt, target_chosen, rejected, perhaps source_chosen and the other columns
    - published: prompt (a text, a message, a conversation), chosen [y_ws, y_wt] or [y_wt], rejected [y_l]
    - pairs of other tools: chosen and rejected as texts, messages or conversations, or `output` with both; the prompt
      in a separate column, or before the responses, in messages or in a dialogue as text

    The prompt is a single user turn, in our rows perhaps with a `history`. A row of others that has more before its
    response has a fault, unless `reading` keeps it as the history; so has a row whose columns disagree. A fault is a
    DataError too, unless `keep_faults`. The table has the column `history` if a row has one.
    """
    reading = reading or Reading()
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA}
    found = Triples(table=pl.DataFrame(schema=TRIPLES))
    for number, row in rows:
        try:
            triple, faults = _triple(row, reading)
        except _BadRow as error:
            if not reading.skip_bad:
                raise bad_row(number, where, str(error)) from error
            found.skipped["unreadable"] += 1
            continue
        if faults and reading.skip_bad:
            found.skipped[faults[0].fault.value] += 1
            continue
        if faults and not keep_faults:
            first = faults[0]
            raise bad_row(number, where, f"column `{first.column}` {first.what}", hint=_FAULT_HINTS[first.fault])
        found.faults += [(len(columns["prompt"]), fault) for fault in faults]
        for name, value in triple.items():
            columns[name].append(value)
    table = pl.DataFrame(columns, schema=_SCHEMA)
    found.table = table if any(columns["history"]) else table.select(list(TRIPLES))
    return found


_FAULT_HINTS = {
    Fault.PROMPTS_DIFFER: "All responses of a row must belong to one prompt. Correct the row, remove the column that "
    "differs, or leave such rows out (--bad-rows skip).",
    Fault.CONTEXT: "A row holds one user turn and its responses. Keep the turns before it as its history (--history "
    "keep), or put a system turn before the prompt (--system prepend). Otherwise leave such rows out (--bad-rows "
    "skip), or remove the column that has more.",
}


def is_echo(column: str) -> pl.Expr:
    """Return whether the response in a column is the prompt itself; null where there is no response."""
    prompt = pl.col("prompt").str.strip_chars()
    return (pl.col(column).str.strip_chars() == prompt) & (prompt != "")


def bad_row(number: int, where: str, what: str, *, hint: str = _HINT) -> DataError:
    """Return the error for a row, 1 the first."""
    return DataError(f"row {number} of {where}: {what}", code="RowFormat", hint=hint)


def text_in(row: Mapping[str, Any], name: str, number: int, where: str) -> str:
    """Return the text of a row's column; DataError names both if there is none, or if it is not valid Unicode."""
    value = row.get(name)
    if value is None:
        raise bad_row(number, where, f"it lacks `{name}`; its columns: {names(row)}")
    try:
        return str(_checked(value, name, pl.String))
    except _BadRow as error:
        raise bad_row(number, where, str(error)) from error


def _triple(row: Any, reading: Reading) -> tuple[dict[str, Any], list[FaultOf]]:
    if not isinstance(row, Mapping):
        raise _BadRow(f"it is {shown(row)}, but rows are objects")
    row = _named(row)
    try:
        chosen, rejected, inner = _answers(row)
        heads = [*_heads(row, chosen[-1]), *inner]
        question = question_of(row, heads, prepend_system=reading.prepend_system, keep_history=reading.keep_history)
    except NotTurns as error:
        raise _BadRow(error.args[0], column=error.args[1] if len(error.args) > 1 else None) from error
    if question is None:
        other = next((f": `{head.column}` is of the {head.turns[0].role.value}" for head in heads), "")
        raise _BadRow(f"it has no prompt of a user{other}; its columns: {names(row)}; needed: {NEEDED}")
    history = [{"role": turn.role.value, "content": turn.text} for turn in question.history]
    for message in history:
        _checked(message["content"], question.column, pl.String)
    triple = {
        **{name: row.get(name) for name in _OPTIONAL},
        "prompt_id": prompt_id_of(row.get("prompt_id"), prompt_of(question.text, history)),
        "prompt": question.text,
        "source_chosen": chosen[0] if len(chosen) == 2 else None,
        "target_chosen": chosen[-1],
        "rejected": rejected,
    }
    columns = {"prompt": question.column}
    if row.get("target_chosen") is None:
        columns |= dict.fromkeys(("source_chosen", "target_chosen"), "chosen")
    for name, kind in TRIPLES.items():
        triple[name] = _checked(triple[name], columns.get(name, name), kind)
    return {**triple, "history": history or None}, question.faults


def _named(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row with the names of our columns, which others write as `Chosen` or `systemPrompt`.

    A column that is read under one spelling only would be context that is ignored silently.
    """
    named = {_COLUMNS.get(re.sub(r"[\W_]", "", str(name)).lower(), name): name for name in row if name not in _KNOWN}
    if not any(ours in _KNOWN for ours in named):
        return row
    if twice := next(
        (ours for ours in named if ours in _KNOWN and row.get(ours) not in (None, row[named[ours]])), None
    ):
        raise _BadRow(f"and column `{named[twice]}` are one column in two spellings", column=twice)
    return {**row, **{ours: row[theirs] for ours, theirs in named.items()}}


def _heads(row: Mapping[str, Any], answer: str) -> list[Head]:
    # The engine's own prompts are always texts, even if they look like conversations.
    if row.get("target_chosen") is not None and isinstance(row.get("prompt"), str):
        return [own_head(row)]
    return heads_of(row, answer)


def prompt_id_of(value: Any, prompt: Prompt) -> Any:
    """Return a row's own id, integers as text; without one, the prompt's."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 128:
        return str(value)
    return id_of(prompt) if value is None or value == "" else value


def _checked(value: Any, name: str, kind: Any) -> Any:
    """Return the value as the column holds it; a value of another type raises _BadRow."""
    if value is None or (kind is not pl.Float64 and value != value):  # noqa: PLR0124 (NaN of pandas)
        return None
    if kind is pl.String:
        if not isinstance(value, str):
            raise _BadRow(f"holds {shown(value)}, where a text is needed", column=name)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            at = f"U+{ord(value[error.start]):04X} at character {error.start + 1}"
            raise _BadRow(f"holds half of a surrogate pair, {at}: it is not valid Unicode", column=name) from error
    elif kind is pl.Boolean and not isinstance(value, bool):
        raise _BadRow(f"holds {shown(value)}, where true or false is needed", column=name)
    elif kind is pl.Float64:
        return _number(value, name)
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise _BadRow(f"holds {shown(value)}, where a number is needed", column=name)


def _answers(row: Mapping[str, Any]) -> tuple[list[str], str, list[Head]]:
    """Return the chosen responses (y_ws, y_wt or y_wt alone), the rejected one, and the turns before them."""
    if row.get("target_chosen") is not None:
        texts = [row[name] for name in ("source_chosen", "target_chosen") if row.get(name) is not None]
        for name in ("source_chosen", "target_chosen", "rejected"):
            _checked(row.get(name), name, pl.String)
        if row.get("rejected") is None:
            raise _BadRow(f"it lacks `rejected`; its columns: {names(row)}")
        return texts, row["rejected"], []
    sides = {name: _side(name, turns) for name, turns in _sides(row).items()}
    (chosen, before_chosen), (rejected, before_rejected) = sides.values()
    for name, (texts, _) in sides.items():
        most = 2 if name == "chosen" else 1
        if not 1 <= len(texts) <= most:
            wanted = "the responses [y_ws, y_wt] or [y_wt]" if name == "chosen" else "one response"
            raise _BadRow(f"has {len(texts)} responses; expected {wanted}", column=name)
    return chosen, rejected[0], [*before_chosen, *before_rejected]


def _sides(row: Mapping[str, Any]) -> dict[str, Sequence[Turn]]:
    """Return the turns of both responses by the columns that give them."""
    pair = row.get("output")
    if row.get("chosen") is None and row.get("rejected") is None and isinstance(pair, list) and len(pair) == 2:
        turns = read_column(row, "output", speaker=Role.ASSISTANT)
        return {"chosen": turns[:1], "rejected": turns[1:]}
    absent = [name for name in ("chosen", "rejected") if row.get(name) is None]
    if absent:
        lacking = " and ".join(f"`{name}`" for name in absent)
        raise _BadRow(f"it lacks {lacking}; its columns: {names(row)}; needed: {NEEDED}")
    return {name: _spoken(row, name) for name in ("chosen", "rejected")}


def _spoken(row: Mapping[str, Any], name: str) -> Sequence[Turn]:
    """Return a column's turns. Texts are conversations only if both are: a response may quote one."""
    texts = [row["chosen"], row["rejected"]]
    if all(isinstance(text, str) for text in texts) and {_is_conversation(text) for text in texts} not in _ALIKE:
        return [Turn(Role.ASSISTANT, row[name])]
    return read_column(row, name, speaker=Role.ASSISTANT)


_ALIKE: tuple[set[bool | None], ...] = ({True}, {None})


def _is_conversation(text: str) -> bool | None:
    """Return None for a list of messages that cannot be read, as numpy prints them: its source is not a response."""
    try:
        return conversation_in(text) is not None
    except NotTurns:
        return None if is_list_of_messages(text) else False


def _side(name: str, turns: Sequence[Turn]) -> tuple[list[str], list[Head]]:
    """Return a column's responses, and its turns before the response if it has any."""
    if all(turn.role is Role.ASSISTANT for turn in turns):
        return [turn.text for turn in turns], []
    if turns[-1].role is not Role.ASSISTANT:
        raise _BadRow(f"ends with a turn of the {turns[-1].role.value}, not with a response", column=name)
    return [turns[-1].text], [Head(name, turns[:-1])]
