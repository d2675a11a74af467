"""The template families of the paper's eleven models: BOS, system role, generation prompt, end-of-turn.

The templates have the families' shape and special tokens; the tokenizers are byte-level ones made here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
from engine_support import make_tokenizer

from wrpo_engine.text.chat import check_sequence, end_of_turn_id, prompt_token_ids, response_token_ids

_TURNS = "{% for m in messages %}"
_CHATML_TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
_CHATML_OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family does; `prompt` is what its model reads for the user's "Hi?"."""

    template: str
    eos: str
    end_of_turn: str
    prompt: str
    with_system: str
    """The same with the system prompt "Be brief."."""
    bos: str | None = None
    adds_bos: bool = False
    specials: tuple[str, ...] = ()
    folds: bool = False
    """The template has no place for a system prompt."""

    def tokenizer(self) -> Any:
        return make_tokenizer(
            template=self.template, bos=self.bos, eos=self.eos, adds_bos=self.adds_bos, more_specials=self.specials
        )


FAMILIES = {
    "Llama-3": Family(
        # BOS stands in front of the first message's content, and the tokenizer would add it to text.
        template=_TURNS + "{% set head = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' %}"
        "{% set turn = head + m['content'] | trim + '<|eot_id|>' %}"
        "{{ bos_token + turn if loop.first else turn }}{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        adds_bos=True,
        specials=("<|start_header_id|>", "<|end_header_id|>"),
        end_of_turn="<|eot_id|>",
        prompt="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        with_system="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "Mistral": Family(
        # No generation prompt beyond [/INST]; the answer follows after a space; roles must alternate.
        template="{{ bos_token }}" + _TURNS + "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
        bos="<s>",
        eos="</s>",
        adds_bos=True,
        specials=("[INST]", "[/INST]"),
        end_of_turn="</s>",
        prompt="<s>[INST] Hi? [/INST]",
        with_system="<s>[INST] Be brief.\n\nHi? [/INST]",
        folds=True,
    ),
    "Gemma-2": Family(
        # The assistant is called model, the system role is refused, EOS does not end a turn.
        template="{{ bos_token }}"
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + _TURNS
        + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        bos="<bos>",
        eos="<eos>",
        adds_bos=True,
        specials=("<start_of_turn>", "<end_of_turn>"),
        end_of_turn="<end_of_turn>",
        prompt="<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\n",
        with_system="<bos><start_of_turn>user\nBe brief.\n\nHi?<end_of_turn>\n<start_of_turn>model\n",
        folds=True,
    ),
    "Qwen2": Family(
        # No BOS at all, and a system message of its own where there is none.
        template="{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
        + _TURNS
        + _CHATML_TURN
        + _CHATML_OPEN,
        eos="<|im_end|>",
        specials=("<|endoftext|>",),
        end_of_turn="<|im_end|>",
        prompt="<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
        with_system="<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "InternLM2.5": Family(
        # ChatML after a BOS that the template writes; EOS does not end a turn.
        template="{{ bos_token }}" + _TURNS + _CHATML_TURN + _CHATML_OPEN,
        bos="<s>",
        eos="</s>",
        adds_bos=True,
        end_of_turn="<|im_end|>",
        prompt="<s><|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
        with_system="<s><|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "DeepSeek-V2": Family(
        # Roles are plain words; the answer follows after a space; only EOS ends it.
        template="{{ bos_token }}" + _TURNS + "{% if m['role'] == 'user' %}User: {{ m['content'] }}\n\n"
        "{% elif m['role'] == 'assistant' %}Assistant: {{ m['content'] }}{{ eos_token }}"
        "{% else %}{{ m['content'] }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
        bos="<|begin_of_sentence|>",
        eos="<|end_of_sentence|>",
        adds_bos=True,
        end_of_turn="<|end_of_sentence|>",
        prompt="<|begin_of_sentence|>User: Hi?\n\nAssistant:",
        with_system="<|begin_of_sentence|>Be brief.\n\nUser: Hi?\n\nAssistant:",
    ),
    "Yi-1.5": Family(
        # The tokenizer has a BOS and neither it nor the template writes it; the system message stands bare.
        template="{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}"
        + _TURNS
        + "{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}"
        + "{% endfor %}"
        + _CHATML_OPEN,
        bos="<|startoftext|>",
        eos="<|im_end|>",
        end_of_turn="<|im_end|>",
        prompt="<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
        with_system="Be brief.<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "Phi-3": Family(
        # A system message is left out without a word; EOS follows the end-of-turn at the end of a conversation.
        template="{{ bos_token }}" + _TURNS + "{% if m['role'] == 'user' %}<|user|>\n{{ m['content'] }}<|end|>\n"
        "{% elif m['role'] == 'assistant' %}<|assistant|>\n{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        bos="<s>",
        eos="<|endoftext|>",
        adds_bos=True,
        specials=("<|user|>", "<|assistant|>", "<|end|>"),
        end_of_turn="<|end|>",
        prompt="<s><|user|>\nHi?<|end|>\n<|assistant|>\n",
        with_system="<s><|user|>\nBe brief.\n\nHi?<|end|>\n<|assistant|>\n",
        folds=True,
    ),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


@each_family
def test_the_model_reads_the_prompt_in_its_own_form(family: Family) -> None:
    tokenizer = family.tokenizer()
    ids = prompt_token_ids(tokenizer, "Hi?")
    assert tokenizer.decode(ids) == family.prompt
    assert ids.count(tokenizer.bos_token_id) == family.prompt.count(family.bos or "no BOS")


@each_family
def test_special_tokens_of_the_template_are_tokens_not_text(family: Family) -> None:
    tokenizer = family.tokenizer()
    ids = prompt_token_ids(tokenizer, "Hi?")
    in_template = {token for token in tokenizer.all_special_tokens if token in family.prompt}
    assert in_template <= set(tokenizer.convert_ids_to_tokens(ids))


@each_family
def test_a_system_prompt_is_never_lost(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = family.tokenizer()
    tokenizer.name_or_path = "a-model"
    with caplog.at_level(logging.INFO, "wrpo_engine"):
        for _ in range(2):
            assert tokenizer.decode(prompt_token_ids(tokenizer, "Hi?", "Be brief.")) == family.with_system
    line = (
        "the chat template of a-model has no place for a system prompt: it is put before the prompt in the user's turn"
    )
    assert caplog.messages == ([line] if family.folds else [])


@each_family
@pytest.mark.parametrize("response", ["Four, I think.", "Two\nlines\n", "ends with a space ", "", "Vier, 四 🙂"])
def test_a_response_follows_what_the_model_read_and_ends_its_turn_once(family: Family, response: str) -> None:
    tokenizer = family.tokenizer()
    prompt_ids, response_ids = response_token_ids(tokenizer, "Hi?", response, "Be brief.")
    assert tokenizer.decode(prompt_ids) == family.with_system
    end_of_turn = tokenizer.convert_tokens_to_ids(family.end_of_turn)
    assert end_of_turn_id(tokenizer) == end_of_turn
    assert response_ids[-1] == end_of_turn
    assert response_ids.count(end_of_turn) == 1
    # Templates may trim the answer, and open it with a space.
    assert tokenizer.decode(response_ids[:-1]).strip() == response.strip()
    assert not set(response_ids[:-1]) & set(tokenizer.all_special_ids)
    check_sequence(tokenizer, prompt_ids, response_ids, row="row 0")


@each_family
def test_training_reads_what_sampling_wrote(family: Family) -> None:
    """A model that answers in its own form writes the space with which the template opens answers."""
    tokenizer = family.tokenizer()
    _, response_ids = response_token_ids(tokenizer, "Hi?", "Four.")
    sampled = tokenizer.decode(response_ids, skip_special_tokens=True)
    assert response_token_ids(tokenizer, "Hi?", sampled)[1] == response_ids


def test_a_template_that_writes_the_day_s_date_writes_the_same_one_every_day() -> None:
    dated = "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '. ' }}" + _TURNS + _CHATML_TURN + _CHATML_OPEN
    tokenizer = make_tokenizer(template=dated)
    prompt = prompt_token_ids(tokenizer, "hi")
    assert "Today Date: 26 Jul 2024. " in tokenizer.decode(prompt)
    assert response_token_ids(tokenizer, "hi", "yes")[0] == prompt
