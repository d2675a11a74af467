"""Prompts and order of calls of a mixture: the values of the released script."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.answering.mixture import INSTRUCTION, longest_prefix, with_references
from wrpo_engine.contract.mixture import Decoding, mixture_calls

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "comparisons" / "moa.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["prompt_cases"], ids=["no system", "own system", "several turns"])
def test_prompts_are_those_of_the_released_script(case: dict[str, Any]) -> None:
    messages = with_references(case["messages"], case["references"])
    assert [message["role"] for message in messages] == case["roles"]
    system = messages[0]["content"]
    assert len(system) == case["system_chars"]
    assert system.endswith(case["system_tail"])
    assert hashlib.sha256(system.encode()).hexdigest() == case["system_sha256"]
    turns = [message for message in case["messages"] if message["role"] != "system"]
    assert messages[1:] == turns


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_calls_are_those_of_the_released_script(rounds: int) -> None:
    plan = GOLDEN["call_plans"][f"rounds_{rounds}"]
    calls = mixture_calls(["m1", "m2"], "agg", rounds, proposing=Decoding(temperature=0.5, max_tokens=99))
    names = [f"{call.model}#{number}" for number, call in enumerate(calls, 1)]
    assert [
        {
            "model": call.model,
            "n_references": len(call.references),
            "references": [names[place] for place in call.references],
            "temperature": call.decoding.temperature,
            "max_tokens": call.decoding.max_tokens,
        }
        for call in calls
    ] == plan["calls"]
    assert names[-1] == plan["output"]["output"]
    assert [call.layer for call in calls] == [layer for layer in range(1, rounds + 1) for _ in range(2)] + [rounds + 1]


def test_references_without_text_are_left_out_and_the_numbers_have_no_gaps() -> None:
    messages = with_references([{"role": "user", "content": "?"}], ["", "first", " \n", "second"])
    assert messages[0]["content"] == f"{INSTRUCTION}\n1. first\n2. second"
    assert messages[1:] == [{"role": "user", "content": "?"}]


def test_a_conversation_without_any_reference_does_not_change() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "?"}]
    assert with_references(messages, ["", " "]) == messages


def test_the_arguments_are_not_changed() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "?"}]
    with_references(messages, ["a"])
    assert messages == [{"role": "system", "content": "s"}, {"role": "user", "content": "?"}]


@given(text=st.text(max_size=60), limit=st.integers(0, 40))
def test_a_reference_is_cut_to_the_longest_beginning_that_fits(text: str, limit: int) -> None:
    def count(part: str) -> int:
        return len(part.encode())

    prefix = longest_prefix(text, limit, count)
    assert text.startswith(prefix)
    assert count(prefix) <= limit
    assert prefix == text or count(text[: len(prefix) + 1]) > limit
