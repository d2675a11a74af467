"""Conversations as prompts: several turns, their own system message, and control tokens from the template only."""

from __future__ import annotations

from typing import Any

import pytest
from engine_support import CHATML, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_chat import FAMILIES, GEMMA, LLAMA3

from wrpo_engine.errors import DataError
from wrpo_engine.text.chat import conversation_prompt_ids, prompt_token_ids

TURNS = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And 3 + 3?"},
]
BRIEF = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(("options", "has_bos"), FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_conversation_of_one_turn_is_a_prompt(options: dict[str, Any], has_bos: bool, system: str | None) -> None:
    tokenizer = make_tokenizer(**options)
    prompt = prompt_token_ids(tokenizer, TURNS[0]["content"], system)
    assert conversation_prompt_ids(tokenizer, TURNS[:1], system) == prompt
    own = [{"role": "system", "content": system}] if system else []
    assert conversation_prompt_ids(tokenizer, [*own, *TURNS[:1]]) == prompt
    assert (prompt[0] == tokenizer.bos_token_id) == has_bos


def test_all_turns_are_written_in_order() -> None:
    tokenizer = make_tokenizer(template=CHATML)
    assert tokenizer.decode(conversation_prompt_ids(tokenizer, TURNS)) == (
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n"
        "<|im_start|>user\nAnd 3 + 3?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_conversations_own_system_message_replaces_the_given_one() -> None:
    tokenizer = make_tokenizer(template=CHATML)
    own = conversation_prompt_ids(tokenizer, [BRIEF, *TURNS], "Be long.")
    assert own == conversation_prompt_ids(tokenizer, TURNS, "Be brief.")
    assert tokenizer.decode(own).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_a_system_message_without_a_place_goes_before_the_users_first_turn() -> None:
    tokenizer = make_tokenizer(template=GEMMA, bos="<bos>", eos="<eos>")
    assert tokenizer.decode(conversation_prompt_ids(tokenizer, [BRIEF, *TURNS])) == (
        "<bos><|im_start|>user\nBe brief.\n\nWhat is 2 + 2?<|im_end|>\n<|im_start|>model\nFour.<|im_end|>\n"
        "<|im_start|>user\nAnd 3 + 3?<|im_end|>\n<|im_start|>model\n"
    )


CONTROL = ["<|im_start|>", "<|im_end|>", "<|eot|>", "<s>", "<pad>"]
CONTENT = st.lists(st.sampled_from([*CONTROL, "text", " ", "\n", "é", "<|"]), min_size=1, max_size=6).map("".join)


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(CONTENT, min_size=1, max_size=4), system=CONTENT | st.none())
@pytest.mark.parametrize("template", [CHATML, LLAMA3], ids=["ChatML", "Llama 3"])
def test_control_tokens_come_from_the_template_only(template: str, contents: list[str], system: str | None) -> None:
    options: dict[str, Any] = {"template": template, "bos": "<s>", "eos": "<|eot|>"}
    tokenizer = make_tokenizer(**options)
    count = 2 * len(contents) - 1
    texts = [contents[place // 2] for place in range(count)]

    def control_ids(system: str | None, texts: list[str]) -> list[int]:
        roles = ["user", "assistant"] * count
        turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        head = [] if system is None else [{"role": "system", "content": system}]
        ids = conversation_prompt_ids(tokenizer, [*head, *turns])
        return [token for token in ids if token in tokenizer.all_special_ids]

    assert control_ids(system, texts) == control_ids(None if system is None else "x", ["x"] * count)


INVALID = {
    "an unknown role": (
        [{"role": "tool", "content": "a"}],
        "message 1 of 1 has the role 'tool', which is none of system, user, assistant",
    ),
    "a late system message": (
        [TURNS[0], BRIEF, TURNS[0]],
        "message 2 of 3 is of the role system, which only the first one may be",
    ),
    "an answer at the end": (
        TURNS[:2],
        "message 2 of 2 is the last one and of the role assistant: nothing is left to respond to",
    ),
    "no content": ([{"role": "user"}], "message 1 of 1 of user has no text as content"),
    "no messages": ([], "a conversation has no message of the user"),
    "a system message alone": ([BRIEF], "a conversation has no message of the user"),
}


@pytest.mark.parametrize(("messages", "rule"), INVALID.values(), ids=INVALID.keys())
def test_a_conversation_that_cannot_be_answered_is_refused(messages: list[dict[str, str]], rule: str) -> None:
    with pytest.raises(DataError) as error:
        conversation_prompt_ids(make_tokenizer(), messages)
    assert error.value.message == rule
    assert error.value.code == "ConversationInvalid"
