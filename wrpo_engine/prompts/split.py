"""Cleaning and splitting of prompts. Pure: the split depends on the prompts and the seed, not on their order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wrpo_engine.prompts.asked import Asked, asked_in, text_fault
from wrpo_engine.text.conversations import Conversation, id_of, normal


@dataclass(frozen=True)
class Prompt:
    """A prompt: its id, the user's last turn, and the conversation before it."""

    prompt_id: str
    prompt: str
    history: Conversation = ()


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """Unique prompts in order of first appearance, and why others were left out."""

    prompts: list[Prompt]
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, str] = field(default_factory=dict)
    """The first value that holds no usable prompt, by reason: its number and its fault."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Prompts that were part of a conversation, by the part that is left out."""
    num_read: int = 0


@dataclass(frozen=True, kw_only=True)
class Split:
    """Three parts without a prompt in common."""

    sft: list[Prompt]
    preference: list[Prompt]
    evaluation: list[Prompt]


def clean(values: Iterable[Any]) -> Cleaned:
    """Drop values without a usable prompt, empty prompts, halves of surrogate pairs and duplicates; count each.

    Prompts are equal if their whole conversations are. Counts of `left_out` are of the prompts that are kept.
    """
    prompts: dict[str, Prompt] = {}
    found = Cleaned(prompts=[])
    num_read = 0
    for value in values:
        num_read += 1
        asked = asked_in(value)
        if (fault := asked.fault or text_fault(asked)) is not None:
            found.dropped[fault.reason] += 1
            found.first_dropped.setdefault(fault.reason, f"value {num_read} {fault.what}")
            continue
        prompt = _prompt(asked)
        if prompt.prompt_id in prompts:
            found.dropped["duplicate"] += 1
        else:
            prompts[prompt.prompt_id] = prompt
            found.left_out.update(asked.left_out)
    return replace(found, prompts=list(prompts.values()), num_read=num_read)


def _prompt(asked: Asked) -> Prompt:
    """Return the prompt in its normal form: one text in two Unicode forms is one prompt."""
    history = tuple((role, normal(text)) for role, text in asked.history)
    text = normal(asked.text)
    return Prompt(id_of((*history, ("user", text)) if history else text), text, history)


def is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogate, which JSON can hold but tokenizers and UTF-8 files cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
