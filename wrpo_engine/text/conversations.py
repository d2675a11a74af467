"""Prompts of one or several messages: the one form in which all stages take what comes before a response."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from wrpo_engine.text.templates import Message
from wrpo_engine.text.turns import in_users_turn, messages_of, takes_system

Conversation: TypeAlias = tuple[tuple[str, str], ...]
"""Role and content of each message; the last one is the user's."""
Prompt: TypeAlias = str | Conversation
"""A text is one message of the user."""


def conversation(messages: Iterable[Mapping[str, str]]) -> Prompt:
    """Return messages as a prompt: the text alone if they are one message of the user."""
    found = tuple((message["role"], message["content"]) for message in messages)
    return found[0][1] if len(found) == 1 and found[0][0] == "user" else found


def prompt_of(text: str, history: Sequence[Mapping[str, str]] | None = None) -> Prompt:
    """Return the prompt of a row: the user's turn, after the messages of its history if it has any."""
    return conversation([*(history or ()), *messages_of(text)])


def normal(text: str) -> str:
    """Return a text in Unicode's normal form C without surrounding blanks, which carry no meaning in a prompt."""
    return unicodedata.normalize("NFC", text).strip()


def id_of(prompt: Prompt) -> str:
    """Return the id of a prompt: the sha256 of its text, of a conversation that of its messages as JSON.

    A data set that holds the conversation as this JSON text has the same prompt, so the two have one id.
    """
    messages = [{"role": each["role"], "content": normal(each["content"])} for each in prompt_messages(prompt)]
    text = messages[0]["content"] if isinstance(prompt, str) else json.dumps(messages, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def prompt_messages(prompt: Prompt) -> list[Message]:
    """Return the messages of a prompt."""
    if isinstance(prompt, str):
        return messages_of(prompt)
    return [{"role": role, "content": content} for role, content in prompt]


def messages_for(tokenizer: Any, template: str, prompt: Prompt) -> list[Message]:
    """Return a prompt's messages as a template takes them.

    A system message for which the template has no place is put before the first message of the user.
    """
    messages = prompt_messages(prompt)
    if messages[0]["role"] != "system" or takes_system(tokenizer, template):
        return messages
    system, *rest = messages
    return in_users_turn(system["content"], rest)


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as one text, for rewards that read no messages: each message with its role in front."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in prompt)
