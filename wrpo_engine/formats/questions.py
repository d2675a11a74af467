"""The question of a row: the columns that give it, their agreement, and what the row cannot hold."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import Any

from wrpo_engine.formats.messages import NotTurns, Role, Turn, has_messages, order_fault, turns_of
from wrpo_engine.formats.shown import shown

PROMPT_COLUMNS = ("prompt", "messages", "conversations", "conversation", "instruction", "question", "query", "input")
"""Columns that give the question, in the order in which they are read."""
_SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
CONTEXT_COLUMNS = (*_SYSTEM_COLUMNS, "history", "context", "tools", "images", "image")
"""Columns with content other than the question and the responses."""
_CONVERSATIONS = frozenset({"messages", "conversations", "conversation"})


class Fault(StrEnum):
    """Faults of a readable row whose prompt is not its responses' prompt. The values are the names of lint's rules."""

    PROMPTS_DIFFER = "prompts-differ"
    CONTEXT = "context-left-out"


@dataclass(frozen=True, slots=True)
class FaultOf:
    """A fault, the column where it is, and a sentence about it."""

    fault: Fault
    column: str
    what: str


@dataclass(frozen=True, slots=True)
class Head:
    """The turns before the response, and the column that gives them."""

    column: str
    turns: Sequence[Turn]
    has_history: bool = False
    """Whether the turns before the last one are the engine's own column `history`."""


@dataclass(frozen=True, slots=True)
class Question:
    """The user's turn that the responses belong to, and the turns before it if they are kept."""

    column: str
    text: str
    faults: list[FaultOf]
    history: Sequence[Turn] = ()


def heads_of(row: Mapping[str, Any], answer: str) -> list[Head]:
    """Return the turns of the row's prompt columns: the first one with content, and all other conversations.

    A conversation may end with the response, which is then not part of the question. Raises NotTurns, with the column
    in `args[1]`.
    """
    heads: list[Head] = []
    for column in PROMPT_COLUMNS:
        if heads and column not in _CONVERSATIONS:
            continue
        turns = read_column(row, column, speaker=Role.USER)
        if column == "instruction" and any(turn.text.strip() for turn in turns):
            said = [*turns, *read_column(row, "input", speaker=Role.USER)]
            turns = [Turn(Role.USER, "\n".join(turn.text for turn in said if turn.text.strip()))]
        is_answered = column in _CONVERSATIONS and bool(turns) and turns[-1].role is Role.ASSISTANT
        if is_answered and (heads or same_text(turns[-1].text, answer)):
            turns = turns[:-1]
        if any(column == "prompt" or turn.text.strip() for turn in turns):
            heads.append(Head(column, turns))
    return heads


def read_column(row: Mapping[str, Any], column: str, *, speaker: Role) -> list[Turn]:
    """Return the turns of a column; NotTurns carries the column's name in addition to the fault."""
    try:
        return turns_of(row.get(column), speaker=speaker)
    except NotTurns as error:
        raise NotTurns(str(error), column) from error


def own_head(row: Mapping[str, Any], column: str = "prompt") -> Head:
    """Return the turns of a row of the engine: its prompt, always a text, after the messages of its `history`.

    Raises NotTurns, with the column in `args[1]`.
    """
    prompt, history = Turn(Role.USER, row[column]), row.get("history")
    if not has_messages(history):
        return Head(column, [prompt])
    return Head(column, [*read_column(row, "history", speaker=Role.USER), prompt], has_history=True)


def question_of(
    row: Mapping[str, Any], heads: Sequence[Head], *, prepend_system: bool, keep_history: bool = False
) -> Question | None:
    """Return the question that all heads give, or None if no head has a user's turn.

    The longest head counts: one of a single user turn that ends a longer one leaves out what comes before it. With
    `keep_history`, and in rows of the engine, the turns before the last one are the question's history.
    """
    asked = [head for head in heads if any(turn.role is Role.USER for turn in head.turns)]
    if not asked:
        return None
    whole = max(asked, key=lambda head: len(_significant(head.turns)))
    differing = [fault for head in heads if (fault := _difference(head, whole)) is not None]
    turns = _significant(whole.turns)
    systems = {turn.text: whole.column for turn in turns if turn.role is Role.SYSTEM}
    beside = _system_columns(row)
    said = _said(turns) if beside else ""
    systems |= {text: column for text, column in beside.items() if _words(text) not in said}
    asked_text = next(turn.text for turn in reversed(turns) if turn.role is Role.USER)
    keeps = keep_history or whole.has_history
    left_out = _turns_not_kept(whole.column, turns) if keeps else _turns_left_out(whole.column, turns)
    faults = [*differing, *left_out, *_columns_left_out(row, whole, asked_text)]
    if systems and not prepend_system and not (keeps and len(systems) == 1):
        first, column = next(iter(systems.items()))
        faults.append(FaultOf(Fault.CONTEXT, column, f"has a system turn, {shown(first)}"))
    *history, asked_turn = _with_systems(turns, list(systems), asked_text, keeps=keeps, prepend=prepend_system)
    return Question(whole.column, asked_turn.text, faults, history)


def _with_systems(
    turns: Sequence[Turn], systems: Sequence[str], asked: str, *, keeps: bool, prepend: bool
) -> list[Turn]:
    """Return the turns of the question, the user's last turn at the end, with the system turns where they belong."""
    spoken = [turn for turn in turns if turn.role is not Role.SYSTEM] if keeps else [Turn(Role.USER, asked)]
    last = len(spoken) - next(back for back, turn in enumerate(reversed(spoken)) if turn.role is Role.USER)
    spoken = spoken[:last]
    if systems and prepend:
        first = next(place for place, turn in enumerate(spoken) if turn.role is Role.USER)
        spoken[first] = Turn(Role.USER, "\n\n".join([*systems, spoken[first].text]))
    elif systems and keeps:
        spoken.insert(0, Turn(Role.SYSTEM, systems[0]))
    return spoken


def _significant(turns: Sequence[Turn]) -> list[Turn]:
    """Leave out empty system turns, and the empty response with which a prompt for generation ends."""
    said = [turn for turn in turns if turn.role is not Role.SYSTEM or turn.text.strip()]
    return said[:-1] if said and said[-1].role is Role.ASSISTANT and not said[-1].text.strip() else said


def _difference(head: Head, whole: Head) -> FaultOf | None:
    """Return where a head is neither the whole one nor the end of it, or None."""
    for mine, theirs in zip_longest(reversed(_significant(head.turns)), reversed(_significant(whole.turns))):
        if mine is None:
            return None
        if theirs is None or mine.role is not theirs.role or not same_text(mine.text, theirs.text):
            other = f"`{whole.column}` {f'asks {shown(theirs.text)}' if theirs else 'does not'}"
            return FaultOf(Fault.PROMPTS_DIFFER, head.column, f"asks {shown(mine.text)}, but {other}")
    return None


def same_text(one: str, other: str) -> bool:
    """Return whether two texts are equal except for blanks and Unicode normal form."""
    return one == other or _words(one) == _words(other)


def _words(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _said(turns: Sequence[Turn]) -> str:
    return _words(" ".join(turn.text for turn in turns))


def _turns_left_out(column: str, turns: Sequence[Turn]) -> list[FaultOf]:
    spoken = [turn for turn in turns if turn.role is not Role.SYSTEM]
    if spoken[-1].role is Role.ASSISTANT:
        what = f"ends with the beginning of the response, {shown(spoken[-1].text)}"
        return [FaultOf(Fault.CONTEXT, column, what)]
    if len(spoken) > 1:
        what = f"has a conversation of several turns, {len(spoken)} before the response"
        return [FaultOf(Fault.CONTEXT, column, what)]
    return []


def _turns_not_kept(column: str, turns: Sequence[Turn]) -> list[FaultOf]:
    """Return the faults of a conversation that a history cannot hold."""
    if turns[-1].role is Role.ASSISTANT:
        return _turns_left_out(column, turns)
    fault = order_fault(turns)
    return [] if fault is None else [FaultOf(Fault.CONTEXT, column, f"has {fault}")]


def _system_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the system turns in separate columns, with their columns."""
    values = ((row.get(name), name) for name in _SYSTEM_COLUMNS)
    return {value: name for value, name in values if isinstance(value, str) and value.strip()}


def _columns_left_out(row: Mapping[str, Any], whole: Head, text: str) -> list[FaultOf]:
    """Return the columns that say something which is not in the question."""
    used = {whole.column, "input"} if whole.column == "instruction" else {whole.column}
    texts = [name for name in PROMPT_COLUMNS if name not in _CONVERSATIONS and name not in used]
    others = [name for name in CONTEXT_COLUMNS if name not in _SYSTEM_COLUMNS or not isinstance(row.get(name), str)]
    if whole.has_history:
        others.remove("history")
    # A number in another column is not part of the question; NaN is what pandas writes for nothing.
    said = {name: row[name] for name in [*texts, *others] if isinstance(row.get(name), str | dict | list) and row[name]}
    asked = _said(whole.turns) if said else ""
    left_out = {name: value for name, value in said.items() if not (isinstance(value, str) and _words(value) in asked)}
    return [
        FaultOf(Fault.CONTEXT, name, f"says {shown(value)}, which is not in the prompt {shown(text)}")
        for name, value in left_out.items()
    ]
