"""From text to token ids through a chat template: exactly one BOS at the start, exactly one end-of-turn at the end.

Token ids, never strings, go to the backends, so that no special token is added a second time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError

from wrpo_engine.errors import ConfigError, DataError

log = logging.getLogger("wrpo_engine")

_SENTINEL = "wrpo7sentinel7response"
_TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""What templates that write the day's date are told, Llama 3.2's among them, whose own default it is: else a stage that
goes on after midnight, or training on what was sampled another day, would see other prompts."""

Message = dict[str, str]


def messages_of(prompt: str, system: str | None = None) -> list[Message]:
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": prompt}]


def prompt_token_ids(tokenizer: Any, prompt: str, system: str | None = None, template: str | None = None) -> list[int]:
    """Return the ids a model answers to: the prompt as a user turn, then the opening of the assistant's turn.

    They begin with exactly one BOS if the tokenizer puts one before text or the template writes one. A system prompt
    that the template refuses or leaves out stands before the prompt, in the user's turn.
    """
    text = _render(tokenizer, _messages(tokenizer, prompt, system, template), template, generation=True)
    return text_token_ids(tokenizer, text)


def response_token_ids(
    tokenizer: Any, prompt: str, response: str, system: str | None = None, template: str | None = None
) -> tuple[list[int], list[int]]:
    """Return (prompt ids, response ids); the response ends with exactly one end-of-turn token.

    White space with which the template opens an answer is there once, also if the response begins with it: a model that
    wrote the response from the prompt's ids wrote it too.
    """
    messages = _messages(tokenizer, prompt, system, template)
    opening = _opening(tokenizer, template, tokenizer.chat_template)
    if opening.isspace():
        response = response.removeprefix(opening)
    prompt_text = _render(tokenizer, messages, template, generation=True)
    raw_prompt_ids = _encode(tokenizer, prompt_text)
    full_text = _render(tokenizer, [*messages, {"role": "assistant", "content": response}], template, generation=False)
    end_of_turn = end_of_turn_id(tokenizer, template)
    if full_text.startswith(prompt_text):
        full_ids = _encode(tokenizer, full_text)
        if full_ids[: len(raw_prompt_ids)] == raw_prompt_ids:
            tail = full_ids[len(raw_prompt_ids) :]
        else:
            # The tokenizer merges across the border; sampling saw the prompt alone, so training does too.
            tail = _encode(tokenizer, full_text[len(prompt_text) :])
    else:
        # Templates that open the answer differently for generation, for example with an empty thinking block.
        tail = _encode(tokenizer, response)
    if end_of_turn in tail:
        tail = tail[: tail.index(end_of_turn)]
    return _with_one_bos(tokenizer, raw_prompt_ids), [*tail, end_of_turn]


def _messages(tokenizer: Any, prompt: str, system: str | None, template: str | None) -> list[Message]:
    if system and not _takes_system(tokenizer, template, tokenizer.chat_template):
        return messages_of(f"{system}\n\n{prompt}")
    return messages_of(prompt, system)


@lru_cache(maxsize=32)
def _takes_system(tokenizer: Any, template: str | None, _own_template: str | None) -> bool:
    try:
        text = _apply(tokenizer, messages_of("a", _SENTINEL), template, generation=True)
    except TemplateError:
        text = ""
    if _SENTINEL not in text:
        log.info(
            "the chat template of %s has no place for a system prompt: it is put before the prompt in the user's turn",
            tokenizer.name_or_path,
        )
    return _SENTINEL in text


@lru_cache(maxsize=32)
def _opening(tokenizer: Any, template: str | None, _own_template: str | None) -> str:
    """Return what the template writes between the opening of the assistant's turn and the answer."""
    messages = messages_of("a")
    prompt_text = _render(tokenizer, messages, template, generation=True)
    answered = [*messages, {"role": "assistant", "content": _SENTINEL}]
    before = _render(tokenizer, answered, template, generation=False).partition(_SENTINEL)[0]
    return before.removeprefix(prompt_text) if before.startswith(prompt_text) else ""


def end_of_turn_id(tokenizer: Any, template: str | None = None) -> int:
    """Return the token that ends the assistant's turn: the first special one the template writes after an answer."""
    return _end_of_turn(tokenizer, template, tokenizer.chat_template)


@lru_cache(maxsize=32)
def _end_of_turn(tokenizer: Any, template: str | None, _own_template: str | None) -> int:
    messages = [*messages_of("a"), {"role": "assistant", "content": _SENTINEL}]
    text = _render(tokenizer, messages, template, generation=False)
    _, found, suffix = text.rpartition(_SENTINEL)
    suffix = suffix if found else ""
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    for token in _encode(tokenizer, suffix):
        if token in special:
            return int(token)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "chatTemplate",
            "<the model's>",
            "neither the template nor the tokenizer has a token that ends a turn",
            "Set a chatTemplate that writes the model's end-of-turn token after each message.",
            code="MissingEndOfTurn",
        )
    return int(tokenizer.eos_token_id)


def check_sequence(
    tokenizer: Any, prompt_ids: list[int], response_ids: list[int], *, row: str, template: str | None = None
) -> None:
    """Refuse a sequence with a doubled BOS or another count of end-of-turn tokens than one; `row` names it."""
    bos, end_of_turn = tokenizer.bos_token_id, end_of_turn_id(tokenizer, template)
    if bos is not None and prompt_ids[:2] == [bos, bos]:
        raise DataError(f"{row} begins with two BOS tokens (id {bos})", code="DoubleBos")
    count = response_ids.count(end_of_turn)
    if count != 1 or response_ids[-1] != end_of_turn:
        raise DataError(
            f"{row} has {count} end-of-turn tokens (id {end_of_turn}) where one must stand, at the end",
            code="EndOfTurnCount",
        )


def sequence_fault(tokenizer: Any, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> str | None:
    """Return what breaks the rule of one BOS and one end-of-turn in a sequence of any origin, or None.

    A BOS is asked for only if the tokenizer puts one before text; one that is also the end-of-turn is not counted.
    Without a chat template the end-of-turn is the tokenizer's EOS.
    """
    bos = tokenizer.bos_token_id
    end_of_turn = end_of_turn_id(tokenizer) if tokenizer.chat_template else tokenizer.eos_token_id
    if bos is not None and bos != end_of_turn:
        count = prompt_ids.count(bos) + response_ids.count(bos)
        if count > 1:
            return "more than one BOS"
        if prompt_ids[0] != bos and (count or _adds_bos(tokenizer)):
            return "no BOS at the beginning"
    if end_of_turn is not None and (response_ids[-1] != end_of_turn or response_ids.count(end_of_turn) != 1):
        return "not exactly one end-of-turn, at the end"
    return None


def _render(tokenizer: Any, messages: list[Message], template: str | None, *, generation: bool) -> str:
    if template is None and not tokenizer.chat_template:
        raise ConfigError(
            "chatTemplate",
            "<unset>",
            f"the tokenizer of {tokenizer.name_or_path} has no chat template",
            "Set chatTemplate of this model in the experiment, or use an instruction-tuned model.",
            code="MissingChatTemplate",
        )
    try:
        return _apply(tokenizer, messages, template, generation=generation)
    except TemplateError as error:
        raise ConfigError(
            "chatTemplate",
            "<the model's>" if template is None else "<set>",
            f"the chat template of {tokenizer.name_or_path} refuses the messages: {error}",
            "Set a chatTemplate that takes a user's message and an assistant's.",
            code="ChatTemplateFailed",
        ) from error


def template_date(pattern: str) -> str:
    """Return the one date that chat templates see as today's; `strftime_now` of their environment."""
    return _TODAY.strftime(pattern)


def _apply(tokenizer: Any, messages: list[Message], template: str | None, *, generation: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=generation,
            strftime_now=template_date,
        )
    )


def _encode(tokenizer: Any, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def text_token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text that a template wrote, with exactly one BOS if the tokenizer puts one before text."""
    return _with_one_bos(tokenizer, _encode(tokenizer, text))


def _with_one_bos(tokenizer: Any, ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    start = 0
    while start < len(ids) and ids[start] == bos:
        start += 1
    return [bos, *ids[start:]] if start or _adds_bos(tokenizer) else ids


@lru_cache(maxsize=32)
def _adds_bos(tokenizer: Any) -> bool:
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
