"""Cleaning and splitting of prompts. Pure: the split depends on the prompts and the seed, not on their order."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wrpo_engine.formats.messages import NotTurns, Role, content_of, conversation_in, is_list, role_of, text_of
from wrpo_engine.formats.shown import shown


@dataclass(frozen=True)
class Prompt:
    """A prompt and the sha256 of its text, in hexadecimal."""

    prompt_id: str
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """Unique prompts in order of first appearance, and why others were left out."""

    prompts: list[Prompt]
    dropped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    """Prompts that were part of a conversation, by the part that is left out."""
    num_read: int = 0
    first_unusable: str = ""
    """The first value without a user's message, for messages; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Three parts without a prompt in common."""

    sft: list[Prompt]
    preference: list[Prompt]
    evaluation: list[Prompt]


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompt in a value: its text, None without a user's message; and the omitted parts of the conversation."""

    text: str | None
    left_out: tuple[str, ...] = ()


def asked_in(value: Any) -> Asked:
    """Return the prompt of a column's value: a text, a message, or the first user message of a conversation.

    Conversations may be written as text. A message's content may be a list of parts, as multimodal models take it; then
    its text parts are the prompt. System turns, turns before and questions after it, and other parts are left out.
    """
    if isinstance(value, str):
        try:
            written = conversation_in(value)
        except NotTurns:
            return Asked(None)
        return Asked(value) if written is None else asked_in(written)
    if isinstance(value, Mapping):
        value = [value]
    if not is_list(value):
        return Asked(None)
    roles = [role_of(message) for message in value]
    if Role.USER not in roles:
        return Asked(None)
    first = roles.index(Role.USER)
    try:
        text, others = text_of(content_of(value[first]))
    except NotTurns:
        return Asked(None)
    left_out = {
        "system_turn": any(role is Role.SYSTEM and content_of(value[at]) for at, role in enumerate(roles)),
        "earlier_turns": any(role is not Role.SYSTEM for role in roles[:first]),
        "later_questions": Role.USER in roles[first + 1 :],
        "parts": bool(others),
    }
    return Asked(text, tuple(name for name, is_there in left_out.items() if is_there))


def prompt_text(value: Any) -> str | None:
    """Return the text of `asked_in`."""
    return asked_in(value).text


def is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogate, which JSON can hold but tokenizers and UTF-8 files cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean(values: Iterable[Any]) -> Cleaned:
    """Drop values without a prompt, empty prompts, halves of surrogate pairs and duplicates; count each.

    Counts of `left_out` are of the prompts that are kept.
    """
    prompts: dict[str, Prompt] = {}
    dropped: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    num_read = 0
    first_unusable = ""
    for value in values:
        num_read += 1
        asked = asked_in(value)
        if asked.text is None:
            first_unusable = first_unusable or f"value {num_read} is {shown(value)}"
            dropped["no_user_message"] += 1
            continue
        if not is_unicode(asked.text):
            dropped["invalid_unicode"] += 1
            continue
        # One text in two Unicode forms is one prompt; surrounding blanks carry no meaning.
        text = unicodedata.normalize("NFC", asked.text).strip()
        prompt = Prompt(hashlib.sha256(text.encode()).hexdigest(), text)
        if not text:
            dropped["empty"] += 1
        elif prompt.prompt_id in prompts:
            dropped["duplicate"] += 1
        else:
            prompts[prompt.prompt_id] = prompt
            left_out.update(asked.left_out)
    return Cleaned(
        prompts=list(prompts.values()),
        dropped=dropped,
        left_out=left_out,
        num_read=num_read,
        first_unusable=first_unusable,
    )


def shuffled(prompts: Iterable[Prompt], seed: int) -> list[Prompt]:
    """Return the prompts in an order that depends on their ids and the seed alone."""

    def rank(prompt: Prompt) -> bytes:
        return hashlib.sha256(f"{seed}:{prompt.prompt_id}".encode()).digest()

    return sorted(prompts, key=rank)


def split(prompts: Sequence[Prompt], *, held_out: int, sft_fraction: float, seed: int) -> Split:
    """Take `held_out` prompts for evaluation, then `sft_fraction` of the others for SFT.

    A fraction strictly between 0 and 1 leaves neither part empty when there are two prompts or more.
    """
    order = shuffled(prompts, seed)
    evaluation, training = order[:held_out], order[held_out:]
    count = round(len(training) * sft_fraction)
    if 0 < sft_fraction < 1 and len(training) > 1:
        count = min(max(count, 1), len(training) - 1)
    return Split(sft=training[:count], preference=training[count:], evaluation=evaluation)
