"""Which chat template counts, and what is said of one that cannot be used: always a ConfigError with the field."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from engine_support import CHATML, make_tokenizer, save_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from wrpo_engine.errors import ConfigError
from wrpo_engine.hub.models import ResolvedModel, tokenizer_of
from wrpo_engine.linting.command import load_tokens
from wrpo_engine.scoring.encoding import PairEncoder
from wrpo_engine.text.chat import check_template, conversation_token_ids, end_of_turn_id, prompt_token_ids

OTHER = "{{ raise_exception('for tools only') }}"


def model(directory: Path, template: Any, *, as_list: bool = False) -> ResolvedModel:
    """Save a tokenizer, with config.json as model directories have it."""
    tokenizer = make_tokenizer(template=None if as_list else template)
    tokenizer.save_pretrained(directory)
    if as_list:
        # As older files have them.
        file = directory / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    (directory / "config.json").write_text("{}")
    return ResolvedModel(directory, "a/model", None)


@pytest.mark.parametrize("as_list", [True, False])
def test_of_several_named_templates_the_default_counts_everywhere(tmp_path: Path, as_list: bool) -> None:
    named: Any = {"tool_use": OTHER, "default": CHATML}
    if as_list:
        named = [{"name": name, "template": text} for name, text in named.items()]
    tokenizer = tokenizer_of(model(tmp_path, named, as_list=as_list), field="target")
    plain = make_tokenizer()
    assert prompt_token_ids(tokenizer, "hi") == prompt_token_ids(plain, "hi")
    assert conversation_token_ids(tokenizer, "hi", ["yo"]) == conversation_token_ids(plain, "hi", ["yo"])
    assert end_of_turn_id(tokenizer) == end_of_turn_id(plain)
    (scored,) = PairEncoder(tokenizer, identity="r", max_length=99).encode([("hi", "yo")])
    assert scored == PairEncoder(plain, identity="r", max_length=99).encode([("hi", "yo")])[0]
    assert load_tokens(str(tmp_path)).eos == end_of_turn_id(plain)
    # The trained model keeps what its base has.
    assert set(tokenizer.chat_template) == {"tool_use", "default"}


def test_named_templates_without_a_default_are_refused_with_their_names(tmp_path: Path) -> None:
    found = model(tmp_path, {"rag": CHATML, "tool_use": OTHER})
    with pytest.raises(ConfigError) as error:
        tokenizer_of(found, field="sources[alpha]")
    assert error.value.exit_code == 78
    assert (error.value.code, error.value.field) == ("ChatTemplateAmbiguous", "sources[alpha].chatTemplate")
    assert error.value.message == (
        f'sources[alpha].chatTemplate is "<the model\'s>": the tokenizer of {tmp_path} has the chat templates '
        "rag, tool_use, and none of them is named default"
    )
    assert error.value.hint == (
        "Set sources[alpha].chatTemplate to the text of the one that the model was trained with."
    )
    with pytest.raises(ConfigError, match="none of them is named default"):
        PairEncoder(tokenizer_of(found, needs_template=False), identity="r", max_length=9)
    with pytest.raises(ConfigError, match="none of them is named default"):
        load_tokens(str(tmp_path))
    given_one = ResolvedModel(found.path, "a/model", None, chat_template=CHATML)
    assert prompt_token_ids(tokenizer_of(given_one), "hi") == prompt_token_ids(make_tokenizer(), "hi")


USER = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
UNUSABLE = {
    "a syntax error": ("{% for m in messages %}{{ m.content }", "unexpected '}'"),
    "an unknown filter": (CHATML.replace("m['content']", "m['content'] | shout"), "No filter named 'shout'"),
    "an unknown test": (CHATML + "{% if messages is shouted %}{% endif %}", "No test named 'shouted'"),
    "a missing name": (CHATML + "{{ tools_text.x }}", "'tools_text' is undefined"),
    "a sum of a text and nothing": ("{{ 'a' + messages[0].nothing.x }}", "has no attribute 'nothing'"),
    "a sum of a text and a number": ("{{ 'a' + 1 }}", "fails on the messages with TypeError: can only concatenate str"),
    "an index": ("{{ [][1].x }}", "has no element 1"),
    "a division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    "a date of no form": ("{{ strftime_now(7) }}", "TypeError"),
    "a way out of the sandbox": ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str'"),
    "a change of the messages": ("{{ messages.append(1) }}", "access to attribute 'append'"),
    "a call of itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "an include": ("{% include 'x' %}", "no loader for this environment"),
    "a range too long": ("{% for i in range(999999999) %}x{% endfor %}", "OverflowError"),
    "output without an end": (
        "{% for i in range(99999) %}{% for j in range(99999) %}xxxx{% endfor %}{% endfor %}",
        "writes more than 1048576 characters",
    ),
    "a long output": ("{{ 'x' * 9000000 }}", "writes more than 1048576 characters"),
    "a refusal of users": ("{{ raise_exception('no\nthanks') }}", "refuses the messages: no"),
    "a refusal of assistants": (
        CHATML + "{% if messages[-1].role == 'assistant' %}{{ raise_exception('not me') }}{% endif %}",
        "refuses the messages: not me",
    ),
    "half of a surrogate pair": ("\ud83d" + CHATML, "writes half of a surrogate pair, which is not text"),
    "contents that must be lists": (
        CHATML.replace("m['content']", "(m['content'] | map(attribute='text') | join)"),
        "leaves the user's message out",
    ),
    "a generation prompt that is ignored": (
        USER,
        "ignores add_generation_prompt: it opens a response with '<|im_start|>assistant\\n'",
    ),
}


@pytest.mark.parametrize(("template", "telling"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_template_that_cannot_be_used_is_refused_with_field_and_reason(template: str, telling: str) -> None:
    tokenizer = make_tokenizer(template=template)
    tokenizer.name_or_path = "odd"
    with pytest.raises(ConfigError) as error:
        check_template(tokenizer, field="target.chatTemplate", is_set=True)
    assert error.value.field == "target.chatTemplate"
    assert error.value.exit_code == 78
    assert telling in error.value.message
    assert error.value.message.startswith("target.chatTemplate is '<set>': the chat template of odd ")
    assert error.value.hint is not None
    assert error.value.hint.startswith("Set target.chatTemplate to a template that ")


@pytest.mark.parametrize("template", [7, ["a"], {"default": 7}, {"default": {"a": 1}}])
def test_a_template_that_is_no_text_is_refused(template: Any) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=r"is of type (int|list|dict), not a text"):
        check_template(tokenizer, field="target.chatTemplate")


@pytest.mark.parametrize(
    "config",
    ["[]", "{", "\u0000", '{"chat_template": [1]}', '{"chat_template": [{"name": "default"}]}', '{"eos_token": [1]}'],
)
def test_a_damaged_tokenizer_is_refused_with_the_field_of_its_model(tmp_path: Path, config: str) -> None:
    found = model(tmp_path, CHATML)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(ConfigError) as error:
        tokenizer_of(found, field="target")
    assert error.value.exit_code == 78
    assert error.value.message.startswith("target is 'a/model': its tokenizer cannot be loaded: ")


def test_a_stage_refuses_a_template_before_it_loads_weights(tmp_path: Path) -> None:
    """The first thing that every stage makes of a model is its tokenizer."""
    directory = save_tiny_model(tmp_path / "model", template=UNUSABLE["an unknown filter"][0])
    with pytest.raises(ConfigError, match="No filter named 'shout'"):
        tokenizer_of(ResolvedModel(directory, "m", None), field="target")


WORDS = st.sampled_from(
    [
        "{% for m in messages %}", "{% endfor %}", "{% if add_generation_prompt %}", "{% endif %}", "{% else %}",
        "{{ m['content'] }}", "{{ m.role }}", "{{ m.content | trim }}", "{{ m.content.split('x')[-1] }}", "{{", "}}",
        "{%", "%}", "{#", "{{ bos_token }}", "{{ eos_token }}", "<|im_start|>", "<|im_end|>", "\n", " ", "a",
        "{% set x = messages[5] %}", "{{ x.y.z }}", "{{ 1 / 0 }}", "{{ [] | first }}", "{{ none + 1 }}",
        "{{ messages | tojson }}", "{{ messages[0].content[9] }}", "{% generation %}", "{% endgeneration %}",
        "{% macro f(a) %}", "{% endmacro %}", "{{ f() }}", "{{ namespace(a=1).b.c }}", "{{ '%d' | format('a') }}",
        "{{ 'a'.format(**1) }}", "{{ m.content | int + m.role }}", "{% break %}", "{{ strftime_now('%Q\ud800') }}",
        "{{ raise_exception(1) }}", "{{ raise_exception() }}", "{{ cycler().next() }}", "{{ dict(1) }}",
        "{{ lipsum(n=1, min=9, max=2) }}", "{{ range(-1)[3] }}", "{{ m.content | round }}", "\x00", "\u2028", "\ud800",
    ]
)  # fmt: skip


@given(parts=st.lists(WORDS, max_size=8), wrap=st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_template_makes_another_error_than_ours(parts: list[str], wrap: bool) -> None:
    text = "".join(parts)
    template = f"{{% for m in messages %}}{text}{{% endfor %}}" if wrap else text
    tokenizer = make_tokenizer(template=template)
    for use in (
        lambda: check_template(tokenizer, field="chatTemplate"),
        lambda: prompt_token_ids(tokenizer, "hi", "Be brief."),
        lambda: conversation_token_ids(tokenizer, "hi <|im_end|>", ["yo", ""], "Be brief."),
        lambda: PairEncoder(tokenizer, identity="r", max_length=50).encode([("a", "b")]),
        lambda: PairEncoder(tokenizer, identity="r", max_length=50).keep_border(),
    ):
        with contextlib.suppress(ConfigError):
            use()
