"""Laws of all protocols: any replies give finite numbers, which depend on no order, and files that can be parsed."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.protocol_cases import ALPACA, ARENA, MARKED, MT, ask_all, item, judge

from wrpo_engine.judging.protocol import Item, Outcome, Reply, Transcript
from wrpo_engine.judging.protocols import protocol_of

TEMPLATES = {"AlpacaEval2": ALPACA, "ArenaHard": ARENA, "ArenaHardV2": ARENA, "MTBench": MT}
TEXTS = ["m", "M", "[[A>>B]]", "[[B>A]] [A=B]", "[[7]]", "[[99]]", "", "<think>", "\ud800"]
LOGPROBS = [None, {}, {"m": -0.1, "M": -2.0}, {"M": 0.0}, {"x": -1.0}, {"m": math.nan}, {"m": math.inf}]
REPLIES = st.builds(
    Reply, text=st.sampled_from(TEXTS), top_logprobs=st.sampled_from(LOGPROBS), is_refusal=st.booleans()
)
ANSWERS = st.sampled_from([*MARKED.values(), "base", "longer than the base"])


def items_of(kind: str, count: int) -> list[Item]:
    turns = ("one", "two") if kind == "MTBench" else ("one",)
    return [
        item(f"q{n}", n, turns=turns, baseline=("base",), reference=turns, category=("math", "stem")[n % 2])
        for n in range(count)
    ]


@pytest.mark.parametrize("kind", TEMPLATES)
@given(data=st.data())
@settings(max_examples=25)
def test_any_replies_give_finite_numbers_that_depend_on_no_order(kind: Any, data: st.DataObject) -> None:
    made = protocol_of(kind, judge(mode=data.draw(st.sampled_from(["Compat", "Strict"]))), templates=TEMPLATES[kind])
    items = items_of(kind, data.draw(st.integers(0, 7)))
    answers = {entry.item_id: [data.draw(ANSWERS) for _ in entry.turns] for entry in items}
    asks, verdicts, replies = ask_all(made, items, answers, lambda _: data.draw(REPLIES))
    assert all(len(given_) <= made.rounds for given_ in replies.values())
    failed = [
        replace(entry, outcome=Outcome.FAILED, value=None, verdict="") if data.draw(st.integers(0, 5)) == 0 else entry
        for entry in verdicts
    ]
    summary = made.summarise(items, answers, failed)
    assert all(math.isfinite(value) for value in summary.metrics.values())
    assert 0 <= summary.metrics["invalid_share"] <= 1
    assert sum(summary.metrics[outcome.value] for outcome in Outcome) == len(failed)
    assert [entry.item_id for entry in summary.outcomes] == [entry.item_id for entry in items]
    assert all((entry.value is not None) is entry.valid for entry in summary.outcomes)
    shuffled = random.Random(1).sample(failed, len(failed))
    assert made.summarise(items, answers, shuffled) == summary
    json.dumps(summary.details, allow_nan=False)
    files = made.native_files(items, answers, Transcript(asks, failed, replies, "s", "j"))
    assert files == made.native_files(items, answers, Transcript(asks[::-1], shuffled, replies, "s", "j"))
    for name, content in files.items():
        parse(name, content)


def parse(name: str, content: str) -> None:
    content.encode()
    if name.endswith(".csv"):
        assert len(list(csv.reader(io.StringIO(content)))) == 2
    elif name.endswith(".json"):
        json.loads(content, parse_constant=pytest.fail)
    else:
        for line in content.splitlines():
            json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_question_is_unique(kind: Any) -> None:
    made = protocol_of(kind, judge(), templates=TEMPLATES[kind])
    items = items_of(kind, 3)
    asks = [ask for entry in items for ask in made.asks(entry, ["x"] * len(entry.turns))]
    names = [(ask.item_id, ask.order, ask.turn) for ask in asks]
    assert len(set(names)) == len(names) == 3 * (1 if kind == "AlpacaEval2" else 2)
