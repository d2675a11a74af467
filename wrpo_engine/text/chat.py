"""Rendering of text as token ids by a chat template: one BOS at the start, one end-of-turn at the end.

One rule applies in all stages: the template writes the control tokens, and texts are encoded as texts (`plaintext`). It
writes whole prompts. A response never passes through it, because templates trim, and strip or add thoughts. The
response's own text follows the prompt's ids, and one end-of-turn follows it. Token ids, never strings, go to the
backends, so that no special token is added a second time.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar

from wrpo_engine.errors import DataError
from wrpo_engine.text.conversations import Prompt, prompt_messages
from wrpo_engine.text.templates import TemplateFault, render
from wrpo_engine.text.turns import Turns, in_users_turn, takes_system, turns_of

FIELD = "chatTemplate"
_ROLES = ("system", "user", "assistant")
_T = TypeVar("_T")


class Change(StrEnum):
    """How token ids differ from the text they come from."""

    SPELLING = "letter case, accents, white space or compatibility characters"
    """The tokenizer normalises texts; the words are the same."""
    CONTENT = "characters that the tokenizer does not know"


@dataclass(frozen=True, slots=True)
class Response:
    """A response's token ids, with one end-of-turn, last."""

    ids: list[int]
    change: Change | None
    """What the ids do not give back of the response's text; None if they give back all of it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt's ids, and those of each response to it."""

    prompt_ids: list[int]
    responses: tuple[Response, ...]
    has_control_text: bool
    """Whether a text spells a control token; it is encoded as text."""


def check_template(tokenizer: Any, *, field: str, is_set: bool = False) -> None:
    """Raise ConfigError naming `field` if the tokenizer's chat template cannot be used for prompts and responses."""
    or_error(lambda: turns_of(tokenizer), field=field, is_set=is_set)


def prompt_token_ids(
    tokenizer: Any, prompt: Prompt, system: str | None = None, template: str | None = None
) -> list[int]:
    """Return the ids a model continues: the prompt, a text as a user turn, then the opening of the assistant's turn.

    They begin with exactly one BOS if the tokenizer puts one before text or the template writes one. A system prompt
    that the template refuses or leaves out is put before the prompt, in the user's turn.
    """
    return conversation_prompt_ids(tokenizer, prompt_messages(prompt), system, template)


def conversation_prompt_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], system: str | None = None, template: str | None = None
) -> list[int]:
    """Return the ids a model continues: a conversation, then the opening of the assistant's turn.

    `messages` are an optional system message, then turns of `user` and `assistant`, the last one of the user; DataError
    otherwise. `system` applies only to a conversation without its own system message. A system message that the
    template refuses or leaves out is put before the user's first turn, as for a single prompt. Control tokens come from
    the template only: text that spells one is encoded as text in every message.
    """
    check_conversation(messages)
    turns, text = or_error(lambda: written(tokenizer, messages, system, template), is_set=template is not None)
    return with_one_bos(tokenizer, turns.encoder.encode([text])[0])


def text_token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text by itself: no template, no BOS, and no control token even where it spells one."""
    encoder = or_error(lambda: turns_of(tokenizer)).encoder
    return encoder.encode([encoder.hide(text)])[0]


def check_conversation(messages: Sequence[Mapping[str, str]]) -> None:
    """Raise DataError naming the first message that a prompt cannot have at its place."""
    for place, message in enumerate(messages):
        if (fault := _fault_of(message, place, len(messages))) is not None:
            raise DataError(
                f"message {place + 1} of {len(messages)} {fault}",
                code="ConversationInvalid",
                hint="A conversation is an optional system message, then messages of user and assistant, the last one "
                "of the user. Each has the texts role and content.",
            )
    if not messages or messages[-1]["role"] != "user":
        raise DataError(
            "a conversation has no message of the user",
            code="ConversationInvalid",
            hint="Add the message to respond to.",
        )


def _fault_of(message: Mapping[str, str], place: int, count: int) -> str | None:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        return f"has the role {role!r}, which is none of {', '.join(_ROLES)}"
    if not isinstance(content, str):
        return f"of {role} has no text as content"
    if role == "system" and place > 0:
        return "is of the role system, which only the first one may be"
    if role == "assistant" and place == count - 1:
        return "is the last one and of the role assistant: nothing is left to respond to"
    return None


def response_token_ids(
    tokenizer: Any, prompt: Prompt, response: str, system: str | None = None, template: str | None = None
) -> tuple[list[int], list[int]]:
    """Return (prompt ids, response ids); the response ends with exactly one end-of-turn token."""
    conversation = conversation_token_ids(tokenizer, prompt, [response], system, template)
    return conversation.prompt_ids, conversation.responses[0].ids


def conversation_token_ids(
    tokenizer: Any, prompt: Prompt, responses: Sequence[str], system: str | None = None, template: str | None = None
) -> Conversation:
    """Return the ids of a prompt and of several responses to it.

    White space with which the template surrounds a response is there once, also if the response holds it: a model that
    wrote the response from the prompt's ids wrote it too. DataError if the tokenizer cannot encode the text of a
    control token as text.
    """
    messages = prompt_messages(prompt)
    check_conversation(messages)
    turns, text = or_error(lambda: written(tokenizer, messages, system, template), is_set=template is not None)
    answers = [_surrounded(turns, response) for response in responses]
    hidden = [turns.encoder.hide(answer) for answer in answers]
    prompt_ids, *whole = turns.encoder.encode([text, *(text + answer for answer in hidden)])
    size = len(prompt_ids)
    found: list[Response] = []
    for answer, concealed, ids in zip(answers, hidden, whole, strict=True):
        tail = ids[size:] if ids[:size] == prompt_ids else None
        change = None if tail is None else _change(tokenizer, answer, prompt_ids, tail)
        if tail is None or change is not None:
            # The tokenizer merges across the border, or leaves out what follows a token of the prompt. Sampling saw
            # the prompt alone, so training does too.
            alone = turns.encoder.encode([concealed])[0]
            alone_change = _change(tokenizer, answer, prompt_ids, alone)
            if tail is None or alone_change is None:
                tail, change = alone, alone_change
        if turns.end_of_turn in tail:
            raise turns.encoder.impossible("the end of a turn")
        found.append(Response([*tail, turns.end_of_turn], change))
    texts = (*(message["content"] for message in messages), *responses)
    has_control_text = any(map(turns.encoder.holds_control_text, texts))
    return Conversation(with_one_bos(tokenizer, prompt_ids), tuple(found), has_control_text)


def written(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], system: str | None = None, template: str | None = None
) -> tuple[Turns, str]:
    """Return the template's form and what it writes for a conversation, with the data's control tokens hidden.

    TemplateFault if the template cannot be used.
    """
    turns = turns_of(tokenizer, template)
    hide = turns.encoder.hide
    placed = _with_system(turns, messages, system)
    hidden = [{"role": message["role"], "content": hide(message["content"])} for message in placed]
    return turns, render(tokenizer, hidden, turns.template, generation=True)


def _with_system(turns: Turns, messages: Sequence[Mapping[str, str]], system: str | None) -> list[Mapping[str, str]]:
    """Return the conversation with its system text, its own or the given one, where the template has a place for it."""
    rest = list(messages)
    if rest[0]["role"] == "system":
        system = rest.pop(0)["content"]
    if not system:
        return rest
    if takes_system(turns.encoder.tokenizer, turns.template):
        return [{"role": "system", "content": system}, *rest]
    return [*in_users_turn(system, rest)]


def _surrounded(turns: Turns, response: str) -> str:
    return turns.opening + response.removeprefix(turns.opening).removesuffix(turns.closing) + turns.closing


def _change(tokenizer: Any, answer: str, prompt_ids: Sequence[int], ids: Sequence[int]) -> Change | None:
    """Return how a response's ids after a prompt's differ from the response."""
    change = change_of(answer, decoded(tokenizer, ids))
    if change is not None:
        # Some decoders treat the first token of a text in another way.
        prompt, whole = decoded(tokenizer, prompt_ids), decoded(tokenizer, [*prompt_ids, *ids])
        if whole.startswith(prompt) and change_of(answer, whole.removeprefix(prompt)) is None:
            return None
    return change


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of ids, control tokens included, without the clean-up that some tokenizers ask for."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def change_of(text: str, given: str) -> Change | None:
    """Return how a text's ids differ from it, by what they give when decoded.

    One space at the beginning does not count: tokenizers of the SentencePiece kind add one and take one away.
    """
    if text.removeprefix(" ") == given.removeprefix(" "):
        return None
    return Change.SPELLING if any(plain(text) == plain(given) for plain in (_folded, _plain)) else Change.CONTENT


def change_within(text: str, given: str) -> Change | None:
    """Return how the ids of something that holds a text differ from the text, by what they give when decoded."""
    if text in given:
        return None
    return Change.SPELLING if any(plain(text) in plain(given) for plain in (_folded, _plain)) else Change.CONTENT


def _folded(text: str) -> str:
    """Return a text without case and white space: all that most tokenizers change, and quick to compare."""
    return "".join(text.casefold().split())


def _plain(text: str) -> str:
    """Return a text's letters, digits and signs without case, accents, blanks and control characters."""
    return "".join(
        character
        for character in unicodedata.normalize("NFKD", text).casefold()
        if unicodedata.category(character)[0] not in "MZC" and character != "\ufffd"
    )


def end_of_turn_id(tokenizer: Any, template: str | None = None) -> int:
    """Return the token that ends the assistant's turn: the first special one the template writes after a response."""
    return or_error(lambda: turns_of(tokenizer, template), is_set=template is not None).end_of_turn


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
            f"{row} has {count} end-of-turn tokens (id {end_of_turn}) where there must be one, at the end",
            code="EndOfTurnCount",
        )


def sequence_fault(tokenizer: Any, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> str | None:
    """Return what breaks the rule of one BOS and one end-of-turn in a sequence of any origin, or None.

    A BOS is asked for only if the tokenizer puts one before text; one that is also the end-of-turn is not counted.
    Without a usable chat template the end-of-turn is the tokenizer's EOS.
    """
    bos = tokenizer.bos_token_id
    end_of_turn = probable_end_of_turn(tokenizer)
    if bos is not None and bos != end_of_turn:
        count = prompt_ids.count(bos) + response_ids.count(bos)
        if count > 1:
            return "more than one BOS"
        if prompt_ids[0] != bos and (count or _adds_bos(tokenizer)):
            return "no BOS at the beginning"
    if end_of_turn is not None and (response_ids[-1] != end_of_turn or response_ids.count(end_of_turn) != 1):
        return "not exactly one end-of-turn, at the end"
    return None


def probable_end_of_turn(tokenizer: Any) -> int | None:
    """Return the end-of-turn of the tokenizer's chat template; without a usable one its EOS, if it has any."""
    return _probable_end_of_turn(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=32)
def _probable_end_of_turn(tokenizer: Any, _own_template: str) -> int | None:
    try:
        return turns_of(tokenizer).end_of_turn
    except TemplateFault:
        return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)


def with_one_bos(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return the ids of a text that a template wrote with exactly one BOS, if it or the tokenizer writes one."""
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


def or_error(find: Callable[[], _T], *, field: str = FIELD, is_set: bool = False) -> _T:
    """Return what `find` returns; ConfigError with the field of the template that `find` cannot use."""
    try:
        return find()
    except TemplateFault as fault:
        raise fault.error(field, is_set=is_set) from fault
