"""Messages and conversations as other tools write them, as turns of user, assistant and system.

Messages have `role`/`content` or `from`/`value`, alone or in a list; a content may consist of text parts. Conversations
may also be text: JSON, Python's own notation, or dialogues as HH-RLHF writes them. What a turn cannot hold
(another role, an image, a tool call) is never left out silently: reading raises NotTurns.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeGuard

from wrpo_engine.formats.shown import names, shown


class Role(StrEnum):
    """The speaker of a message."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"


_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), Role.USER),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot", "chatgpt", "ai"), Role.ASSISTANT),
    **dict.fromkeys(("system", "developer"), Role.SYSTEM),
}
_ROLE_KEYS = ("role", "from")
_WRAPPERS = ("messages", "conversations", "conversation")
_TEXT_PARTS = {None, "text", "input_text", "output_text"}
BESIDE_TEXT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "images", "audio")
"""Keys of a message that belong to its content, but not to its text."""
_AS_TEXT = re.compile(r"""\[?\s*\{\s*["'](role|from|content|value|messages|conversations?)["']\s*:""")
_ROLE_AS_TEXT = re.compile(rf"""["'](?:{"|".join(_ROLE_KEYS)})["']:\s?["'](?:{"|".join(_ROLES)})["']""", re.IGNORECASE)
_USER_FIRST = re.compile(r"\s*(Human|User):")
# Nothing here repeats before another repetition: a text of a million line breaks must take no time.
_ANSWER = re.compile(r"\n\n(Assistant|Bot|AI):")


class NotTurns(Exception):  # noqa: N818 (callers turn it into an error that names the row)
    """A value that is not a text, message or conversation; `str()` names the fault."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of one side."""

    role: Role
    text: str


def turns_of(value: Any, *, speaker: Role) -> list[Turn]:
    """Return the turns of a text, a message, or a list of either; none of null. Bare texts are the speaker's.

    Raises NotTurns.
    """
    if value is None or value != value:  # noqa: PLR0124 (NaN is what pandas writes for nothing)
        return []
    if isinstance(value, str):
        written = conversation_in(value)
        return [Turn(speaker, value)] if written is None else turns_of(written, speaker=speaker)
    if isinstance(value, Mapping):
        return [_turn(value)]
    if is_list(value):
        return [Turn(speaker, each) if isinstance(each, str) else _turn(each) for each in value]
    raise NotTurns(f"holds {shown(value)}, where a text, a message or a list of messages is needed")


def order_fault(turns: Sequence[Turn]) -> str | None:
    """Return what is wrong with the order of turns before a response, or None.

    Chat templates take a system turn, or none, then turns of user and assistant in alternation.
    """
    for place, turn in enumerate(turns):
        said = f"message {place + 1} of {len(turns)} of the {turn.role.value}"
        if turn.role is Role.SYSTEM and place:
            return f"{said}, which only the first one may be"
        spoken = sum(each.role is not Role.SYSTEM for each in turns[:place])
        expected = Role.ASSISTANT if spoken % 2 else Role.USER
        if turn.role not in (Role.SYSTEM, expected):
            return f"{said}, where one of the {expected.value} must be"
    return None


def is_list(value: Any) -> bool:
    """Return whether a value is a list, not a text or bytes."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _turn(message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise NotTurns(f"holds {shown(message)}, where a message with a role and a content is needed")
    known = role_of(message)
    if known is None:
        said = _first(message, *_ROLE_KEYS)
        if said is None:
            raise NotTurns(f"holds a message without a role; its keys: {names(message) or 'none'}")
        raise NotTurns(f"holds a message of the role {shown(said)}; the roles that are read are {names(_ROLES)}")
    for name in BESIDE_TEXT:
        if message.get(name):
            raise NotTurns(f"holds a message with `{name}`, which rows of texts cannot hold")
    text, others = text_of(content_of(message))
    if others:
        raise NotTurns(f"holds a message with {', '.join(others)}, which rows of texts cannot hold")
    if text is None:
        raise NotTurns(f"holds a message of the {known.value} without a text")
    return Turn(known, text)


def has_messages(value: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether a value is a list with a message of a known role."""
    return is_list(value) and any(role_of(each) is not None for each in value)


def role_of(message: Any) -> Role | None:
    """Return the role of a message, case ignored; None if it is not a message of a known role."""
    said = _first(message, *_ROLE_KEYS) if isinstance(message, Mapping) else None
    return _ROLES.get(said.strip().lower()) if isinstance(said, str) else None


def content_of(message: Mapping[str, Any]) -> Any:
    """Return the text of a message, unchanged."""
    return _first(message, "content", "value")


def _first(message: Mapping[str, Any], *keys: str) -> Any:
    return next((message[key] for key in keys if message.get(key) is not None), None)


def text_of(content: Any) -> tuple[str | None, list[str]]:
    """Return a content's text, text parts joined by line breaks, and the kinds of its other parts.

    Raises NotTurns for a content that is neither a text nor parts.
    """
    if content is None:
        return None, []
    if isinstance(content, str):
        return content, []
    if not is_list(content):
        raise NotTurns(f"holds a message with the content {shown(content)}, where a text is needed")
    texts: list[str] = []
    others: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and _is_text_type(part.get("type")) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, Mapping) else part
            others.append(f"a part that is not text ({shown(kind)})")
    return ("\n".join(texts) if texts else None), others


def _is_text_type(kind: Any) -> bool:
    return kind is None or (isinstance(kind, str) and kind in _TEXT_PARTS)


def conversation_in(text: str) -> Any:
    """Return the messages that a text holds as JSON or in Python's notation, or those of a dialogue; None of others.

    Raises NotTurns if the text begins like messages and cannot be read as such: its source must not be treated as a
    text.
    """
    if (dialogue := dialogue_turns(text)) is not None:
        return [{"role": turn.role.value, "content": turn.text} for turn in dialogue]
    if not _AS_TEXT.match(text.lstrip()):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(value, dict):
            value = _first(value, *_WRAPPERS) or [value]
        if is_list(value) and all(isinstance(each, dict) and _first(each, *_ROLE_KEYS) for each in value):
            return value
    raise NotTurns(f"holds a text that begins like messages written as JSON and cannot be read: {shown(text)}")


def is_list_of_messages(text: str) -> bool:
    """Return whether a text is the source of a list of messages, readable or not."""
    return text.lstrip().startswith("[") and _ROLE_AS_TEXT.search(text) is not None


def dialogue_turns(text: str) -> list[Turn] | None:
    """Return the turns, without their blanks, of a dialogue as HH-RLHF writes it; None of another text.

    Each turn begins with `Human:` or `Assistant:` after an empty line, the first one with the user's.
    """
    first = _USER_FIRST.match(text)
    answer = _ANSWER.search(text) if first else None
    if first is None or answer is None:
        return None
    roles = {first[1]: Role.USER, answer[1]: Role.ASSISTANT}
    _, *pieces = re.split(rf"(?:\A\s*|\n\n)({'|'.join(roles)}):", text)
    return [Turn(roles[name], said.strip()) for name, said in zip(pieces[::2], pieces[1::2], strict=True)]
