"""The prompt in a value of the prompts' column: the last user turn of a conversation, after the turns before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wrpo_engine.formats.messages import (
    BESIDE_TEXT,
    NotTurns,
    Role,
    Turn,
    content_of,
    conversation_in,
    has_messages,
    is_list,
    order_fault,
    role_of,
    text_of,
)
from wrpo_engine.formats.prompt_columns import HISTORY
from wrpo_engine.formats.shown import shown
from wrpo_engine.text.conversations import Conversation


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a value gives no prompt: the reason it is counted by, and a sentence about the value."""

    reason: str
    what: str


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompt in a value, or why it has none."""

    text: str = ""
    """The last user turn."""
    history: Conversation = ()
    """The messages before it; empty for a single turn."""
    left_out: tuple[str, ...] = ()
    """Parts of the conversation that the prompt does not hold."""
    fault: Fault | None = None


class _NoPrompt(Exception):  # noqa: N818 (becomes the fault of a value)
    """A value without a usable prompt."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.fault = Fault(reason, what)


def asked_in(value: Any) -> Asked:
    """Return the prompt of a column's value: a text, a message, or the last user turn of a conversation.

    Conversations may be written as text. The turns before the last user turn are the history: a system turn or none,
    then turns of user and assistant in alternation; empty system turns are no turns. What the assistant says before the
    user is left out. So is what follows the last user turn, because responses are sampled to it. A message's content
    may be a list of parts, as multimodal models take it; then its text parts count.
    """
    try:
        return _asked(value)
    except _NoPrompt as error:
        return Asked(fault=error.fault)


def _asked(value: Any) -> Asked:
    messages = _messages(value)
    if isinstance(messages, str):
        return Asked(messages)
    roles = [role_of(message) for message in messages]
    if Role.USER not in roles:
        raise _no_user_message(value)
    last = len(roles) - 1 - roles[::-1].index(Role.USER)
    turns: list[Turn] = []
    has_parts = False
    for place, message in enumerate(messages[: last + 1]):
        name = f"has message {place + 1} of {len(messages)}"
        turn, beside = _turn(message, name, value, is_last=place == last)
        has_parts |= beside
        if turn.role is Role.SYSTEM and not turn.text.strip():
            continue
        turns.append(turn)
    kept = _without_greeting(turns)
    if (fault := order_fault(kept)) is not None:
        raise _NoPrompt("turn_order", f"has {fault}")
    left_out = {
        "earlier_turns": len(kept) < len(turns),
        "later_turns": last + 1 < len(messages),
        "parts": has_parts,
    }
    *history, asked = [(turn.role.value, turn.text) for turn in kept]
    return Asked(asked[1], tuple(history), tuple(name for name, is_there in left_out.items() if is_there))


def _without_greeting(turns: Sequence[Turn]) -> list[Turn]:
    """Leave out what the assistant says before the user's first turn: many chat templates refuse it."""
    first = next(place for place, turn in enumerate(turns) if turn.role is Role.USER)
    return [turn for place, turn in enumerate(turns) if place >= first or turn.role is Role.SYSTEM]


def _messages(value: Any) -> str | Sequence[Any]:
    """Return a text that is no conversation, or the messages of a value."""
    if isinstance(value, str):
        try:
            written = conversation_in(value)
        except NotTurns as error:
            raise _no_user_message(value) from error
        return value if written is None else list(written)
    if isinstance(value, Mapping):
        return [value]
    if not is_list(value):
        raise _no_user_message(value)
    return list(value)


def _no_user_message(value: Any) -> _NoPrompt:
    return _NoPrompt("no_user_message", f"is {shown(value)}")


def _turn(message: Any, name: str, value: Any, *, is_last: bool) -> tuple[Turn, bool]:
    """Return a message as a turn, and whether it has parts that are not text."""
    role = role_of(message)
    if role is None:
        raise _NoPrompt("unreadable_turn", f"{name} of no role that is read: {shown(message)}")
    beside = any(message.get(key) for key in BESIDE_TEXT)
    try:
        text, others = text_of(content_of(message))
    except NotTurns as error:
        raise _unreadable(message, name, value, is_last=is_last) from error
    if text is None and role is Role.SYSTEM and not others:
        return Turn(role, ""), beside
    if text is None:
        raise _unreadable(message, name, value, is_last=is_last)
    return Turn(role, text), beside or bool(others)


def _unreadable(message: Any, name: str, value: Any, *, is_last: bool) -> _NoPrompt:
    if is_last:
        return _no_user_message(value)
    return _NoPrompt("unreadable_turn", f"{name} without a text: {shown(message)}")


def text_fault(asked: Asked) -> Fault | None:
    """Return the first text of a prompt that is empty or not valid Unicode, or None.

    JSON can hold half of a surrogate pair, but tokenizers and UTF-8 files cannot.
    """
    for role, text in (*asked.history, (Role.USER.value, asked.text)):
        name = f"has a turn of the {role} that is"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return Fault("invalid_unicode", f"{name} not valid Unicode at character {error.start + 1}")
        if not text.strip():
            return Fault("empty", f"{name} empty")
    return None


def asked_in_row(row: Mapping[str, Any], column: str = "prompt") -> Asked:
    """Return the prompt of a row: of a text together with the row's `history`, if that holds messages."""
    return asked_in(with_history(row.get(column), row.get(HISTORY)))


def with_history(value: Any, history: Any) -> Any:
    """Return the conversation of a text and the messages before it; the value alone if it is none or has none."""
    if isinstance(value, str) and has_messages(history):
        return [*history, {"role": "user", "content": value}]
    return value
