"""Exactly one BOS and exactly one end-of-turn, for the template families people use."""

from __future__ import annotations

from typing import Any

import pytest
from engine_support import CHATML, make_tokenizer

from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.text.chat import check_sequence, end_of_turn_id, prompt_token_ids, response_token_ids

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}<pad>\n\n"
    "{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<pad>\n\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
NO_BOS_WRITTEN = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

FAMILIES: dict[str, tuple[dict[str, Any], bool]] = {
    "Llama 3: the template writes BOS and the tokenizer adds it too": (
        {"template": LLAMA3, "bos": "<s>", "eos": "<|eot|>", "adds_bos": True},
        True,
    ),
    "Llama 2: BOS in front of each user turn": (
        {"template": LLAMA2, "bos": "<s>", "eos": "</s>", "adds_bos": True},
        True,
    ),
    "Gemma: end-of-turn is not the tokenizer's EOS": (
        {"template": GEMMA, "bos": "<bos>", "eos": "<eos>", "adds_bos": True},
        True,
    ),
    "Qwen: no BOS at all": ({"template": CHATML, "bos": None}, False),
    "Qwen 3: generation opens with an empty thought": ({"template": THINKING, "bos": None}, False),
    "SmolLM: BOS is the token that opens a turn": ({"template": CHATML, "bos": "<|im_start|>"}, True),
    "a template without BOS, a tokenizer that adds it": (
        {"template": NO_BOS_WRITTEN, "bos": "<s>", "eos": "</s>", "adds_bos": True},
        True,
    ),
}


@pytest.mark.parametrize(("options", "has_bos"), FAMILIES.values(), ids=FAMILIES.keys())
def test_exactly_one_bos_and_one_end_of_turn(options: dict[str, Any], has_bos: bool) -> None:
    tokenizer = make_tokenizer(**options)
    prompt, response = response_token_ids(tokenizer, "What is 2 + 2?", "Four, I think.")
    assert prompt == prompt_token_ids(tokenizer, "What is 2 + 2?")
    if has_bos:
        assert prompt[0] == tokenizer.bos_token_id
        assert prompt[1] != tokenizer.bos_token_id
    assert response[-1] == end_of_turn_id(tokenizer)
    assert response.count(end_of_turn_id(tokenizer)) == 1
    assert tokenizer.decode(response[:-1]).strip() == "Four, I think."
    check_sequence(tokenizer, prompt, response, row="row 0")


END_OF_TURN = {
    "ChatML": ({"template": CHATML}, "<|im_end|>"),
    "Gemma": ({"template": GEMMA, "bos": "<bos>", "eos": "<eos>"}, "<|im_end|>"),
    "Llama 3": ({"template": LLAMA3, "bos": "<s>", "eos": "<|eot|>"}, "<|eot|>"),
    "Llama 2": ({"template": LLAMA2, "bos": "<s>", "eos": "</s>"}, "</s>"),
}


@pytest.mark.parametrize(("options", "token"), END_OF_TURN.values(), ids=END_OF_TURN.keys())
def test_the_end_of_turn_is_what_the_template_writes(options: dict[str, Any], token: str) -> None:
    tokenizer = make_tokenizer(**options)
    assert tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)) == token


def test_a_response_that_quotes_the_end_of_turn_goes_on_after_it() -> None:
    tokenizer = make_tokenizer()
    _, response = response_token_ids(tokenizer, "hi", "yes<|im_end|>\nand more")
    assert tokenizer.decode(response[:-1]) == "yes<|im_end|>\nand more"
    assert response.count(end_of_turn_id(tokenizer)) == 1
    assert response[-1] == end_of_turn_id(tokenizer)


def test_the_system_prompt_comes_first() -> None:
    tokenizer = make_tokenizer()
    ids = prompt_token_ids(tokenizer, "hi", "Be brief.")
    assert tokenizer.decode(ids).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi")


def test_a_template_that_refuses_every_message_is_named() -> None:
    tokenizer = make_tokenizer(template="{{ raise_exception('Nothing is supported') }}")
    tokenizer.name_or_path = "broken"
    with pytest.raises(ConfigError) as error:
        prompt_token_ids(tokenizer, "hi", "Be brief.")
    assert error.value.message == (
        'chatTemplate is "<the model\'s>": the chat template of broken refuses the messages: Nothing is supported'
    )
    assert error.value.code == "ChatTemplateFailed"


def test_a_tokenizer_without_template_is_an_error() -> None:
    tokenizer = make_tokenizer(template=None)
    tokenizer.name_or_path = "base-model"
    with pytest.raises(ConfigError) as error:
        prompt_token_ids(tokenizer, "hi")
    assert error.value.code == "MissingChatTemplate"
    assert error.value.message == "chatTemplate is '<unset>': the tokenizer of base-model has no chat template"


def test_a_given_template_replaces_the_tokenizers() -> None:
    tokenizer = make_tokenizer(template=None)
    assert prompt_token_ids(tokenizer, "hi", template=CHATML) == prompt_token_ids(make_tokenizer(), "hi")


def test_sequences_with_two_ends_are_refused() -> None:
    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    with pytest.raises(DataError) as error:
        check_sequence(tokenizer, [5], [7, end, end], row="triple 3")
    assert error.value.message == (f"triple 3 has 2 end-of-turn tokens (id {end}) where there must be one, at the end")


def test_sequences_with_two_bos_are_refused() -> None:
    tokenizer = make_tokenizer(bos="<s>", eos="</s>", template=NO_BOS_WRITTEN)
    bos = tokenizer.bos_token_id
    with pytest.raises(DataError, match=rf"triple 3 begins with two BOS tokens \(id {bos}\)"):
        check_sequence(tokenizer, [bos, bos, 5], [7, tokenizer.eos_token_id], row="triple 3")
