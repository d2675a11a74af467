"""Openings and ends of turns in a tokenizer's chat template, found by rendering messages with unique texts."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from wrpo_engine.text.plaintext import PlainEncoder, control_tokens
from wrpo_engine.text.templates import Message, TemplateFault, render, require_template

log = logging.getLogger("wrpo_engine")

_NONCE = secrets.token_hex(8)
PROMPT_MARK, RESPONSE_MARK = f"mark{_NONCE}prompt", f"mark{_NONCE}response"
"""Texts that no data holds: they are different in every process, and no token id depends on them."""


def messages_of(prompt: str, system: str | None = None) -> list[Message]:
    """Return the messages of a prompt, after a system message if there is one."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": prompt}]


def in_users_turn(system: str, messages: Sequence[Mapping[str, str]]) -> list[Message]:
    """Return a conversation with a system text in front of the first message of the user, in the same turn."""
    first = next(place for place, message in enumerate(messages) if message["role"] == "user")
    found = [dict(message) for message in messages]
    found[first] = {"role": "user", "content": f"{system}\n\n{messages[first]['content']}"}
    return found


def answered(messages: list[Message], response: str) -> list[Message]:
    """Return the messages with the assistant's response at the end."""
    return [*messages, {"role": "assistant", "content": response}]


@dataclass(frozen=True, eq=False)
class Turns:
    """A template's form of the assistant's turn."""

    template: str
    opening: str
    """White space that the template writes between the opening of the turn and the response."""
    closing: str
    """White space that it writes between the response and the end of the turn."""
    end_of_turn: int
    encoder: PlainEncoder


def turns_of(tokenizer: Any, template: str | None = None) -> Turns:
    """Return the form of a tokenizer's template, or of a given one; TemplateFault if it cannot be used."""
    return _turns(tokenizer, require_template(tokenizer, template))


@lru_cache(maxsize=32)
def _turns(tokenizer: Any, template: str) -> Turns:
    messages = messages_of(PROMPT_MARK)
    prompt = render(tokenizer, messages, template, generation=True)
    if PROMPT_MARK not in prompt:
        raise TemplateFault(
            f"the chat template of {tokenizer.name_or_path} leaves the user's message out",
            "Set {field} to a template that writes each message's content, which is a text.",
        )
    whole = render(tokenizer, answered(messages, RESPONSE_MARK), template, generation=False)
    before, _, _ = whole.partition(RESPONSE_MARK)
    _, found, after = whole.rpartition(RESPONSE_MARK)
    opening = before.removeprefix(prompt) if found and before.startswith(prompt) else ""
    if opening.strip():
        if prompt == render(tokenizer, messages, template, generation=False):
            raise TemplateFault(
                f"the chat template of {tokenizer.name_or_path} ignores add_generation_prompt: it opens a response "
                f"with {opening!r}, which the model would not read before it responds",
                "Set {field} to a template that opens the assistant's turn if add_generation_prompt is true.",
            )
        log.info(
            "the chat template of %s writes %r in front of a response, which the prompt does not hold: it is left out, "
            "because no model wrote it",
            tokenizer.name_or_path,
            opening,
        )
    end_of_turn, closing = _end_of_turn(tokenizer, after if found else "")
    encoder = encoder_of(tokenizer, template)
    return Turns(template, opening if opening.isspace() else "", closing, end_of_turn, encoder)


@lru_cache(maxsize=32)
def encoder_of(tokenizer: Any, template: str | None) -> PlainEncoder:
    """Return the encoder that keeps the control tokens of a tokenizer and of its template out of texts."""
    separators = set() if template is None else _separators(tokenizer, template)
    return PlainEncoder(tokenizer, control_tokens(tokenizer, separators))


def _end_of_turn(tokenizer: Any, suffix: str) -> tuple[int, str]:
    """Return the token that ends a turn, the first special one in `suffix`, and the white space in front of it."""
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    ids = tokenizer(suffix, add_special_tokens=False)["input_ids"] if suffix else []
    token = next((int(token) for token in ids if token in special), tokenizer.eos_token_id)
    if token is None:
        raise TemplateFault(
            "neither the template nor the tokenizer has a token that ends a turn",
            "Set {field} to a template that writes the model's end-of-turn token after each message.",
            code="MissingEndOfTurn",
        )
    closing = suffix.partition(str(tokenizer.convert_ids_to_tokens(int(token))))[0]
    return int(token), closing if closing.isspace() else ""


def _separators(tokenizer: Any, template: str) -> set[str]:
    """Return the added tokens with which the template separates turns, also those that are not marked as special.

    Added tokens that a model writes into its responses, <think> for example, are not among them.
    """
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}

    def written(messages: list[Message], *, generation: bool = False) -> str:
        try:
            return render(tokenizer, messages, template, generation=generation)
        except TemplateFault:
            # A template may refuse a second question or a system message; then it separates no such turns.
            return ""

    question = messages_of("a")
    answer = written(answered(question, RESPONSE_MARK))
    again = written([*answered(question, RESPONSE_MARK), *messages_of(PROMPT_MARK)])
    opening = written(question, generation=True).removeprefix(written(question))
    after = again.partition(RESPONSE_MARK)[2]
    return (
        {text for text in added if text in after}
        | _first(added, answer.rpartition(RESPONSE_MARK)[2])
        | _first(added, opening)
        | _first(added, written(question))
        | _first(added, written(messages_of("a", PROMPT_MARK)))
    )


def _first(added: set[str], text: str) -> set[str]:
    """Return the added token that comes first in a text, if there is one."""
    places = {place: token for token in sorted(added, key=len) if (place := text.find(token)) >= 0}
    return {places[min(places)]} if places else set()


@lru_cache(maxsize=32)
def takes_system(tokenizer: Any, template: str) -> bool:
    """Return whether a template has a place for a system prompt; log once if it has none."""
    try:
        found = RESPONSE_MARK in render(tokenizer, messages_of("a", RESPONSE_MARK), template, generation=True)
    except TemplateFault:
        found = False
    if not found:
        log.info(
            "the chat template of %s has no place for a system prompt: it is put before the prompt in the user's turn",
            tokenizer.name_or_path,
        )
    return found
