"""Cleans and splits prompts. Pure: the same prompts and seed give the same split in every order of arrival."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


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
    num_read: int = 0


@dataclass(frozen=True, kw_only=True)
class Split:
    """Three parts without a prompt in common."""

    sft: list[Prompt]
    preference: list[Prompt]
    evaluation: list[Prompt]


def prompt_text(value: Any) -> str | None:
    """Return the prompt of a column's value: a text, a message, or the first user message of a conversation.

    A message's content may be a list of parts, as multimodal models take it; then its text parts are the prompt.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _content(value.get("content", value.get("value")))
    if isinstance(value, Iterable):
        for message in value:
            if isinstance(message, dict) and message.get("role", message.get("from")) in {"user", "human"}:
                return prompt_text(message)
    return None


def _content(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, Iterable):
        return None
    parts = [part.get("text") for part in content if isinstance(part, dict)]
    texts = [text for text in parts if isinstance(text, str)]
    return "\n".join(texts) if texts else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean(values: Iterable[Any]) -> Cleaned:
    """Drop values without a prompt, empty prompts, halves of surrogate pairs and duplicates; count each."""
    prompts: dict[str, Prompt] = {}
    dropped: Counter[str] = Counter()
    num_read = 0
    for value in values:
        num_read += 1
        text = prompt_text(value)
        if text is None:
            dropped["no_user_message"] += 1
            continue
        if not _is_unicode(text):
            # JSON can write half a surrogate pair; no tokenizer and no file of ours can.
            dropped["invalid_unicode"] += 1
            continue
        # One text in two Unicode forms is one prompt; surrounding blanks carry no meaning.
        text = unicodedata.normalize("NFC", text).strip()
        prompt = Prompt(hashlib.sha256(text.encode()).hexdigest(), text)
        if not text:
            dropped["empty"] += 1
        elif prompt.prompt_id in prompts:
            dropped["duplicate"] += 1
        else:
            prompts[prompt.prompt_id] = prompt
    return Cleaned(prompts=list(prompts.values()), dropped=dropped, num_read=num_read)


def shuffled(prompts: Iterable[Prompt], seed: int) -> list[Prompt]:
    """Return the prompts in an order that only their ids and the seed decide."""

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
