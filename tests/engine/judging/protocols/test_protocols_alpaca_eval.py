"""AlpacaEval 2: order, preferences, win rates and length control, against values of the original code."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.protocol_cases import ALPACA, MARKED, ask_all, golden, item, judge, summary_of, verdict

from wrpo_engine.artifacts import records
from wrpo_engine.comparison.length_control import LengthControl as RefittedControl
from wrpo_engine.comparison.length_control import rows_of
from wrpo_engine.errors import DataError
from wrpo_engine.judging.protocol import Ask, Item, Outcome, Reply, Transcript, Verdict
from wrpo_engine.judging.protocols import AlpacaEval, Baseline, difficulties_of, protocol_of
from wrpo_engine.judging.protocols.length_control import Judged, LengthControl, length_control, refit_of
from wrpo_engine.judging.protocols.preferences import first_chance, is_switched, preference_of, win_rates

GOLDEN = golden("alpaca_eval")
SYNTHETIC = GOLDEN["synthetic"]
FORMS = {"length_controlled_v1": (True, True), "length_controlled_noreg": (True, False)}


def protocol(**fields: Any) -> AlpacaEval:
    made = protocol_of("AlpacaEval2", judge(**fields), templates=ALPACA)
    assert isinstance(made, AlpacaEval)
    return made


def gamed() -> pl.DataFrame:
    return pl.DataFrame(SYNTHETIC["df_gamed"]).select(list(records.BENCH_REGULARISER))


def synthetic(*, start: int = 0) -> tuple[list[Item], dict[str, list[str]], list[Verdict]]:
    """The golden rows as items, answers of their lengths, and verdicts."""
    rows = SYNTHETIC["rows"][start:]
    items = [item(f"q{row['index']}", row["index"], baseline=("b" * row["len_1"],)) for row in rows]
    answers = {f"q{row['index']}": ["m" * row["len_2"]] for row in rows}
    return items, answers, [verdict(f"q{row['index']}", row["preference"] or 1.5) for row in rows]


def controlled(form: str) -> LengthControl:
    rows = SYNTHETIC["rows"]
    known = difficulties_of(gamed())
    with_difficulty, regularised = FORMS.get(form, (False, False))
    judged = Judged(
        outcome=np.array([(row["preference"] or 1.5) - 1 for row in rows]),
        delta=np.array([float(row["len_1"] - row["len_2"]) for row in rows]),
        difficulty=np.array([known.by_index[row["index"]] for row in rows]) if with_difficulty else None,
    )
    return length_control(judged, known.regulariser if regularised else None)


@pytest.mark.parametrize("form", SYNTHETIC["glm"])
def test_length_control_has_the_coefficients_of_the_original(form: str) -> None:
    expected, found = SYNTHETIC["glm"][form], controlled(form)
    assert found.win_rate == pytest.approx(expected["metrics"]["length_controlled_winrate"], rel=1e-12)
    assert found.spread == pytest.approx(expected["metrics"]["lc_standard_error"], rel=1e-9, abs=1e-12)
    assert found.strength == pytest.approx(expected["chosen_C"], rel=1e-12)
    assert found.coefficients == pytest.approx(list(expected["coef"].values()), rel=1e-12)


def test_the_fit_of_the_interval_agrees_with_the_penalised_one() -> None:
    """Within half a point on 40 items; the penalty has less effect on more."""
    items, answers, verdicts = synthetic()
    made = protocol_of("AlpacaEval2", judge(), templates=ALPACA, baseline=Baseline(regulariser=gamed()))
    known = difficulties_of(gamed())
    judged = Judged(
        outcome=np.array([(entry.value or 0) - 1 for entry in verdicts]),
        delta=np.array([float(len(e.baseline[0]) - len(answers[e.item_id][0])) for e in items]),
        difficulty=np.array([known.by_index[n] for n in range(len(items))]),
    )
    rate = 100 * refit_of(judged, known.regulariser).score()
    assert rate == pytest.approx(made.summarise(items, answers, verdicts).metrics["lc_win_rate"], abs=0.5)


def test_win_rates_are_those_of_the_original() -> None:
    expected = SYNTHETIC["raw"]
    found = win_rates([row["preference"] for row in SYNTHETIC["rows"]])
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_win_rates_of_no_verdicts_are_absent() -> None:
    assert win_rates([]) == {"n_wins": 0.0, "n_wins_base": 0.0, "n_draws": 0.0, "n_total": 0.0}


@pytest.mark.parametrize("mode", ["Compat", "Strict"])
@pytest.mark.parametrize("case", GOLDEN["logprob_parser"]["cases"])
def test_log_probabilities_give_the_preferences_of_the_original(case: Any, mode: Any) -> None:
    chance = first_chance(dict(case["top_logprobs"]), mode=mode)
    preference = None if chance is None else preference_of(chance, switched=False)
    expected = case["preference"][0]
    assert preference == (None if expected is None else pytest.approx(expected, rel=1e-12))
    binary = case["binarized"][0]
    assert binary == (None if preference is None else round(preference))


@pytest.mark.parametrize(("instruction", "switched"), GOLDEN["switch"]["instructions"].items())
def test_the_order_depends_on_the_instruction(instruction: str, *, switched: bool) -> None:
    assert is_switched(instruction) is switched
    question = item(instruction, turns=(instruction,), baseline=("base",))
    (ask,) = protocol().asks(question, ["model"])
    text = ask.messages[-1]["content"]
    assert (text.index("model") < text.index("base")) is switched
    assert ask.order == int(switched)


def test_another_seed_gives_another_order() -> None:
    orders = {seed: [is_switched(f"q{number}", seed=seed) for number in range(16)] for seed in (0, 1)}
    assert orders[0] != orders[1]


def test_a_run_against_a_stub_judge_equals_the_original() -> None:
    expected = GOLDEN["end_to_end"]
    items = [item(f"q{n}", n, turns=(f"q{n}",), baseline=("ref answer " * 4,)) for n in range(8)]
    answers = {f"q{n}": ["long answer " * (n + 1)] for n in range(8)}
    asks, verdicts, _ = ask_all(protocol(), items, answers, lengths_judge)
    request = expected["request"]
    assert {(ask.max_tokens, ask.temperature, ask.top_logprobs) for ask in asks} == {
        (request["max_tokens"], request["temperature"], request["top_logprobs"])
    }
    assert [message["role"] for message in asks[0].messages] == expected["roles"]
    shown = {ask.item_id: "model" if ask.order else "baseline" for ask in asks}
    assert shown == expected["shown_first"]
    assert [entry.value for entry in verdicts] == pytest.approx(expected["preference"], rel=1e-14)
    metrics = protocol().summarise(items, answers, verdicts).metrics
    assert {name: metrics[name] for name in expected["metrics"]} == pytest.approx(expected["metrics"], rel=1e-13)


def lengths_judge(ask: Ask) -> Reply:
    """Prefer the longer answer: log probabilities of sigmoid(difference / 20)."""
    first, second = ask.messages[-1]["content"].split('"m": """')[1].split('""", "M": """')
    difference = (len(first) - len(second.split('"""', maxsplit=1)[0])) / 20
    chance = 1 / (1 + math.exp(-difference))
    return Reply(text="m", top_logprobs={"m": math.log(chance), "M": math.log(1 - chance)})


def test_length_control_joins_difficulties_by_the_index_of_the_bundle() -> None:
    """A missing first row must not shift the others; with `positional` it does, as in the original."""
    items, answers, verdicts = synthetic(start=1)
    full = protocol_of("AlpacaEval2", judge(), templates=ALPACA, baseline=Baseline(regulariser=gamed()))
    assert isinstance(full, AlpacaEval)
    known = difficulties_of(gamed())
    rates = {}
    for positional, first in ((False, 1), (True, 0)):
        made = replace(full, positional=positional)
        rates[positional] = made.summarise(items, answers, verdicts).metrics["lc_win_rate"]
        judged = Judged(
            outcome=np.array([(entry.value or 0) - 1 for entry in verdicts]),
            delta=np.array([float(len(e.baseline[0]) - len(answers[e.item_id][0])) for e in items]),
            difficulty=np.array([known.by_index[place] for place in range(first, first + len(items))]),
        )
        assert rates[positional] == pytest.approx(length_control(judged, known.regulariser).win_rate, rel=1e-12)
    assert rates[False] == full.summarise(items, answers, verdicts).metrics["lc_win_rate"] != rates[True]


def test_an_item_without_a_verdict_stays_in_the_average_of_the_predictions() -> None:
    items, answers, verdicts = synthetic()
    verdicts[3] = verdict("q3", None)
    full = protocol_of("AlpacaEval2", judge(), templates=ALPACA, baseline=Baseline(regulariser=gamed()))
    metrics = full.summarise(items, answers, verdicts).metrics
    known = difficulties_of(gamed())
    values = [entry.value for entry in verdicts]
    judged = Judged(
        outcome=np.array([math.nan if value is None else value - 1 for value in values]),
        delta=np.array([float(len(e.baseline[0]) - len(answers[e.item_id][0])) for e in items]),
        difficulty=np.array([known.by_index[n] for n in range(40)]),
    )
    assert metrics["lc_win_rate"] == pytest.approx(length_control(judged, known.regulariser).win_rate, rel=1e-12)
    assert (metrics["n_total"], metrics["invalid_share"], metrics["unparsable"]) == (39.0, 1 / 40, 1.0)


def test_no_metric_shows_the_spread_of_predictions_as_an_error() -> None:
    items, answers, verdicts = synthetic()
    metrics = (
        protocol_of("AlpacaEval2", judge(), templates=ALPACA, baseline=Baseline(regulariser=gamed()))
        .summarise(items, answers, verdicts)
        .metrics
    )
    assert not {name for name in metrics if "lc_standard_error" in name}
    assert metrics["lc_win_rate_low"] < metrics["lc_win_rate"] < metrics["lc_win_rate_high"]
    assert metrics["lc_win_rate_high"] - metrics["lc_win_rate_low"] == pytest.approx(4 * 4.08, rel=0.1)


def test_without_a_regulariser_the_rate_has_another_name() -> None:
    items, answers, verdicts = synthetic()
    summary = protocol().summarise(items, answers, verdicts)
    expected = SYNTHETIC["glm"]["length_controlled_minimal"]["metrics"]["length_controlled_winrate"]
    assert summary.metrics["lc_minimal_win_rate"] == pytest.approx(expected, rel=1e-12)
    assert "lc_win_rate" not in summary.metrics
    assert summary.details["length_control"]["form"] == "LC-minimal"


@pytest.mark.parametrize("regulariser", [None, gamed()])
def test_a_comparison_can_refit_the_length_control_from_the_details(regulariser: pl.DataFrame | None) -> None:
    items, answers, verdicts = synthetic()
    made = protocol_of("AlpacaEval2", judge(), templates=ALPACA, baseline=Baseline(regulariser=regulariser))
    summary = made.summarise(items, answers, verdicts)
    about = json.loads(json.dumps(summary.details["length_control"]))
    valid = [outcome for outcome in summary.outcomes if outcome.valid]
    assert list(about["features"]) == [outcome.item_id for outcome in valid]
    refitted = RefittedControl(
        features=np.array(list(about["features"].values())),
        outcomes=np.array([outcome.value for outcome in valid], dtype=np.float64),
        regulariser=None if about["regulariser"] is None else rows_of(about["regulariser"]),
    )
    known = difficulties_of(gamed())
    judged = Judged(
        outcome=np.array([(each.value or 1.5) - 1 for each in verdicts]),
        delta=np.array([float(len(e.baseline[0]) - len(answers[e.item_id][0])) for e in items]),
        difficulty=None if regulariser is None else np.array([known.by_index[n] for n in range(40)]),
    )
    whole = refit_of(judged, None if regulariser is None else known.regulariser)
    assert refitted.score() == pytest.approx(whole.score(), rel=1e-12)
    assert about["metric"] in summary.metrics
    without = made.summarise(items, answers, [verdict("q0", None), *verdicts[1:]])
    assert "q0" not in without.details["length_control"]["features"]


@pytest.mark.parametrize("value", [1.0, 1.5, 2.0])
def test_a_baseline_or_one_sided_verdicts_have_a_rate(value: float) -> None:
    """Equal lengths, equal outcomes: there is nothing to correct, and nothing must fail."""
    items = [item(f"q{n}", n, baseline=("same",)) for n in range(8)]
    answers = {entry.item_id: ["size"] for entry in items}
    metrics = protocol().summarise(items, answers, [verdict(e.item_id, value) for e in items]).metrics
    assert metrics["win_rate"] == 100 * (value - 1)
    assert metrics["lc_minimal_win_rate"] == pytest.approx(100 * (value - 1), abs=1)
    assert all(math.isfinite(entry) for entry in metrics.values())


def test_a_judge_that_loves_length_alone_has_a_controlled_rate_near_a_half() -> None:
    draw = np.random.default_rng(0)
    items = [item(f"q{n}", n, baseline=("b" * int(draw.integers(50, 150)),)) for n in range(200)]
    answers = {entry.item_id: ["m" * int(draw.integers(60, 260))] for entry in items}
    metrics = summary_of(protocol(), items, answers, lengths_judge).metrics
    assert metrics["win_rate"] > 70
    assert metrics["lc_minimal_win_rate"] == pytest.approx(50, abs=6)


def test_few_verdicts_have_no_controlled_rate() -> None:
    items = [item(f"q{n}", n, baseline=("base",)) for n in range(4)]
    verdicts = [verdict(entry.item_id, 1.25) for entry in items]
    metrics = protocol().summarise(items, {entry.item_id: ["model"] for entry in items}, verdicts).metrics
    assert metrics["win_rate"] == 25
    assert not {name for name in metrics if name.startswith("lc_")}


def test_equal_answers_are_a_draw_without_a_question() -> None:
    question = item(baseline=("same",))
    made = protocol()
    assert made.asks(question, ["same"]) == []
    (settled,) = made.settled(question, ["same"])
    assert (settled.value, settled.outcome) == (1.5, Outcome.OK)
    assert made.settled(question, ["other"]) == []


@pytest.mark.parametrize("answer", MARKED.values())
def test_an_answer_cannot_break_out_of_its_place_in_the_messages(answer: str) -> None:
    question = item(turns=("{output_2}",), baseline=("the base",))
    (ask,) = protocol().asks(question, [answer])
    assert [message["role"] for message in ask.messages] == ["system", "user"]
    first, second = (answer, "the base") if ask.order else ("the base", answer)
    assert ask.messages[1]["content"] == (
        f'{{ "instruction": """{{output_2}}""" }}\n{{ "m": """{first}""", "M": """{second}""" }}\nBest?'
    )


def test_answers_with_the_delimiter_and_empty_ones_are_counted_and_kept() -> None:
    items = [item(f"q{n}", n, baseline=("base",)) for n in range(3)]
    answers = {"q0": ['a """ b'], "q1": [" "], "q2": ["fine"]}
    metrics = summary_of(protocol(), items, answers, lambda _: Reply(text="m", top_logprobs={"m": 0.0})).metrics
    assert (metrics["answers_with_delimiters"], metrics["empty_answers"], metrics["n_total"]) == (1.0, 1.0, 3.0)


def test_items_without_an_answer_are_counted_as_invalid() -> None:
    items = [item(f"q{n}", n, baseline=("base",)) for n in range(4)]
    metrics = summary_of(protocol(), items, {"q0": ["x"]}, lambda _: Reply(text="m", top_logprobs={"m": 0.0})).metrics
    assert (metrics["unanswered"], metrics["invalid_share"], metrics["n_total"]) == (3.0, 0.75, 1.0)


REPLIES: dict[str, tuple[Reply, dict[str, float | None]]] = {
    "white space in tokens": (
        Reply(text=" m", top_logprobs={" m": -0.1, "M\n": -3.0}),
        {"Strict": 0.948, "Compat": None},
    ),
    "several spellings": (
        Reply(text="m", top_logprobs={"m": math.log(0.3), " m": math.log(0.3), "M": math.log(0.4)}),
        {"Strict": 0.6, "Compat": 0.4286},
    ),
    "not a number": (Reply(text="m", top_logprobs={"m": math.nan, "M": -1.0}), {"Strict": None, "Compat": None}),
    "neither token": (Reply(text="The", top_logprobs={"The": -0.1}), {"Strict": None, "Compat": None}),
    "minus infinity": (
        Reply(text="m", top_logprobs={"m": -math.inf, "M": -math.inf}),
        {"Strict": None, "Compat": None},
    ),
    "tiny chances": (Reply(text="m", top_logprobs={"m": -9999.0, "M": -9999.0}), {"Strict": 0.5, "Compat": 0.5}),
    "above one": (Reply(text="m", top_logprobs={"m": 2.0, "M": -1.0}), {"Strict": None, "Compat": 0.9526}),
}


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("mode", ["Strict", "Compat"])
def test_log_probabilities_of_other_judges_are_read_or_refused(name: str, mode: str) -> None:
    reply, expected = REPLIES[name]
    ask = Ask(item_id="q", order=1, turn=0, messages=(), max_tokens=1, temperature=1.0)
    read = protocol(mode=mode, protocol="Logprobs").read(ask, [reply])
    if expected[mode] is None:
        assert (read.outcome, read.value) == (Outcome.UNPARSABLE, None)
    else:
        assert read.value == pytest.approx(1 + (expected[mode] or 0), abs=1e-3)


@pytest.mark.parametrize(
    ("text", "value"),
    [("m", 2.0), (" M\n", 1.0), ("m or M", None), ("", None), ("Answer: m", None), ("<think>M?</think>\nm", 2.0)],
)
def test_the_text_protocol_accepts_the_identifier_alone(text: str, value: float | None) -> None:
    ask = Ask(item_id="q", order=1, turn=0, messages=(), max_tokens=1, temperature=1.0)
    for name in ("Text", "Auto"):
        assert protocol(protocol=name).read(ask, [Reply(text=text)]).value == value
    assert protocol(protocol="Logprobs").read(ask, [Reply(text=text)]).outcome is Outcome.UNPARSABLE


def test_a_text_judge_is_not_asked_for_log_probabilities() -> None:
    question = item(baseline=("base",))
    assert protocol(protocol="Text").asks(question, ["x"])[0].top_logprobs is None
    assert protocol(protocol="Auto", max_tokens=9, temperature=0.0).asks(question, ["x"])[0].max_tokens == 9


def test_a_refusal_is_an_outcome_of_its_own() -> None:
    ask = Ask(item_id="q", order=0, turn=0, messages=(), max_tokens=1, temperature=1.0)
    assert protocol().read(ask, [Reply(text="I cannot", is_refusal=True)]).outcome is Outcome.REFUSED


BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "absent": ({}, "the bundle has no judge prompt 'alpaca_eval_clf'; it has: none"),
    "field": (
        {"alpaca_eval_clf": "<|im_start|>user\n{instruction}{output_1}<|im_end|>"},
        "judge prompt 'alpaca_eval_clf' lacks the field {output_2}",
    ),
    "format": (
        {"alpaca_eval_clf": "{instruction}{output_1}{output_2}"},
        "judge prompt 'alpaca_eval_clf' is not ChatML: it has no <|im_start|>ROLE .. <|im_end|>",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_judge_prompt_is_refused_before_any_question(name: str) -> None:
    templates, message = BROKEN[name]
    with pytest.raises(DataError) as caught:
        protocol_of("AlpacaEval2", judge(), templates=templates)
    assert str(caught.value) == message


def test_an_item_without_a_baseline_names_itself() -> None:
    with pytest.raises(DataError, match="item q7 has no baseline answer"):
        protocol().asks(item("q7"), ["x"])


def test_a_regulariser_of_another_data_set_is_refused() -> None:
    items, answers, verdicts = synthetic()
    part = gamed().filter(pl.col("index") < 39)
    with pytest.raises(DataError, match="no instruction_difficulty for index 39, only for 39"):
        protocol_of("AlpacaEval2", judge(), templates=ALPACA, baseline=Baseline(regulariser=part)).summarise(
            items, answers, verdicts
        )


def test_native_files_hold_what_the_original_writes() -> None:
    items, answers, verdicts = synthetic()
    made = protocol_of(
        "AlpacaEval2",
        judge(),
        templates=ALPACA,
        baseline=Baseline({entry.item_id: "gpt4_1106_preview" for entry in items}, gamed()),
    )
    replies = {("q1", 0, 0): [Reply(text="m", top_logprobs={"m": -0.5})]}
    transcript = Transcript([], verdicts, replies, system="fused", judge="gpt-x")
    files = [made.native_files(items, answers, transcript) for _ in range(2)]
    assert files[0] == files[1]
    rows = json.loads(files[0]["annotations.json"])
    assert [row["preference"] for row in rows[:2]] == [1.0308, 1.1698]
    assert list(rows[0]) == [
        *("instruction", "output_1", "generator_1", "dataset", "output_2", "generator_2", "annotator", "preference"),
        *("price_per_example", "time_per_example", "raw_completion"),
    ]
    assert (rows[0]["generator_1"], rows[0]["generator_2"], rows[0]["annotator"]) == (
        "gpt4_1106_preview",
        "fused",
        "gpt-x",
    )
    assert rows[1]["raw_completion"]["logprobs"]["content"][0]["top_logprobs"] == [{"token": "m", "logprob": -0.5}]
    (row,) = csv.DictReader(io.StringIO(files[0]["leaderboard.csv"]))
    expected = SYNTHETIC["glm"]["length_controlled_v1"]["metrics"]
    assert row.pop("") == "fused"
    assert row.pop("mode") == "community"
    assert float(row.pop("avg_length")) == pytest.approx(sum(r["len_2"] for r in SYNTHETIC["rows"]) / 40)
    assert {name: float(value) for name, value in row.items()} == pytest.approx(expected, rel=1e-9)


def test_native_files_without_a_regulariser_leave_the_controlled_rate_empty() -> None:
    items, answers, verdicts = synthetic()
    files = protocol().native_files(items, answers, Transcript([], verdicts, {}, "s", "j"))
    (row,) = csv.DictReader(io.StringIO(files["leaderboard.csv"]))
    assert (row["length_controlled_winrate"], row["lc_standard_error"]) == ("", "")


@given(st.dictionaries(st.sampled_from(["m", "M", " m", "M\n", "x"]), st.floats(allow_nan=True)))
def test_any_log_probabilities_give_a_chance_or_none(logprobs: dict[str, float]) -> None:
    modes: list[Any] = ["Compat", "Strict"]
    for mode in modes:
        chance = first_chance(logprobs, mode=mode)
        assert chance is None or 0 <= chance <= 1
