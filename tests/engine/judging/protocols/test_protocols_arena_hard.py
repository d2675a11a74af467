"""Arena-Hard v0.1 and v2.0: games, labels, scores and style control, against values of the original code."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.protocol_cases import ARENA, MARKED, ask_all, golden, item, judge, summary_of, verdict

from wrpo_engine.bundles.markdown import markdown_counts
from wrpo_engine.comparison.length_control import LengthControl
from wrpo_engine.errors import DataError
from wrpo_engine.judging.protocol import Ask, BenchmarkProtocol, Item, Outcome, Reply, Transcript, Verdict
from wrpo_engine.judging.protocols import Baseline, protocol_of
from wrpo_engine.judging.protocols.arena_hard import ArenaHard
from wrpo_engine.judging.protocols.arena_verdicts import game_of, label_2024, label_2025, match_2025
from wrpo_engine.judging.protocols.style import StyleControl, StyledBattle, density_style, style_control, style_of

GOLDEN = golden("arena_hard")
V01 = GOLDEN["v01"]
STYLE = V01["style_control"]
TEN = ("A>>B", "A>B", "A=B", "B>A", "B>>A", "A<<B", "A<B", "B=A", "B<A", "B<<A")
ASK = Ask(item_id="q", order=0, turn=0, messages=({"role": "user", "content": "?"},), max_tokens=9, temperature=0.0)


def protocol(kind: Any = "ArenaHard", templates: Mapping[str, str] = ARENA, **fields: Any) -> BenchmarkProtocol:
    return protocol_of(kind, judge(**fields), templates=templates, baseline=Baseline({"q": "gpt-4-0314"}))


def games_of(rows: list[Any]) -> tuple[list[Item], dict[str, list[str]], list[Verdict]]:
    """Rows of {question_id, scores} as items, answers and verdicts."""
    items = [item(row["question_id"], n, baseline=("base",)) for n, row in enumerate(rows)]
    verdicts = [
        verdict(
            row["question_id"], None if label is None else game_of(label, order).score, order=order, label=label or ""
        )
        for row in rows
        for order, label in enumerate(row["scores"])
    ]
    return items, {row["question_id"]: ["an answer"] for row in rows}, verdicts


@pytest.mark.parametrize("model", V01["weighted_mean_percent"])
def test_the_score_is_the_weighted_mean_which_is_the_bradley_terry_rate(model: str) -> None:
    items, answers, verdicts = games_of([row for row in V01["rows"] if row["model"] == model])
    summary = protocol().summarise(items, answers, verdicts)
    score, battles = V01["weighted_mean_percent"][model]
    assert summary.metrics["score"] == pytest.approx(score, rel=1e-12)
    assert round(summary.metrics["score"], 2) == V01["win_rate_percent"][model]
    assert sum(outcome.weight for outcome in summary.outcomes) == battles
    rating = V01["elo"][model] - V01["elo"]["gpt-4-0314"]
    assert summary.metrics["score"] == pytest.approx(100 / (1 + 10 ** (-rating / 400)), abs=5e-3)
    total = sum((outcome.value or 0) * outcome.weight for outcome in summary.outcomes)
    assert 100 * total / battles == pytest.approx(score, rel=1e-12)


def test_all_battles_are_those_of_the_original() -> None:
    games = [game_of(label, order) for row in V01["rows"] for order, label in enumerate(row["scores"]) if label]
    assert sum(game.weight for game in games) == V01["n_battles"]


@pytest.mark.parametrize("model", V01["weighted_mean_percent"])
def test_the_interval_by_questions_is_wider_than_that_of_battles(model: str) -> None:
    """The original resamples battles, so a decisive game counts as three independent ones."""
    items, answers, verdicts = games_of([row for row in V01["rows"] if row["model"] == model])
    metrics = protocol().summarise(items, answers, verdicts).metrics
    old = V01["bootstrap_20_rounds_seed42"]
    width = metrics["score_high"] - metrics["score_low"]
    assert metrics["score_low"] < metrics["score"] < metrics["score_high"]
    assert width > old["upper"][model] - old["lower"][model]


@pytest.mark.parametrize("model", V01["weighted_mean_percent"])
def test_resampled_games_have_the_interval_of_the_original(model: str) -> None:
    """Percentiles of the ratings of resampled battles, which the original prints as chances to win."""
    battles = [
        (row["model"], game_of(label, order))
        for row in V01["rows"]
        for order, label in enumerate(row["scores"])
        for _ in range(game_of(label, order).weight if label else 0)
    ]
    players = np.array([player for player, _ in battles])
    scores = np.array([game.score for _, game in battles])
    draw = np.random.RandomState(42)
    ratings = []
    for _ in range(20):
        rows = draw.choice(len(battles), len(battles), replace=True)
        mean = scores[rows][players[rows] == model].mean()
        ratings.append(400 * math.log10(mean / (1 - mean)))
    bounds = [round(100 / (1 + 10 ** (-rating / 400)), 2) for rating in np.percentile(ratings, [2.5, 97.5])]
    old = V01["bootstrap_20_rounds_seed42"]
    assert bounds == [old["lower"][model], old["upper"][model]]


def test_style_control_has_the_coefficients_of_2024() -> None:
    outcomes = {"model_a": 0.0, "tie": 0.5, "model_b": 1.0}
    battles = [
        StyledBattle(
            model=row["model_b"],
            outcome=outcomes[row["winner"]],
            baseline_style=styles(row, 0),
            model_style=styles(row, 1),
        )
        for row in STYLE["battles"]
    ]
    found = style_control(battles)
    assert found.coefficients == pytest.approx(STYLE["coef"], rel=1e-9)
    anchor = STYLE["elo"]["gpt-4-0314"]
    for model, rating in found.ratings.items():
        assert anchor + rating == pytest.approx(STYLE["elo"][model], rel=1e-12)
        assert round(found.win_rate(model), 2) == STYLE["win_rate_percent"][model]


BOARD = golden("arena_hard_2025")


def battles_of_board() -> list[StyledBattle]:
    battles = []
    for model, place, *labels in BOARD["rows"]:
        own, base = (BOARD["styles"][name][place] for name in (model, BOARD["baseline"]))
        for game in (game_of(label, order) for order, label in enumerate(labels)):
            battle = StyledBattle(model=model, outcome=game.score, model_style=own, baseline_style=base)
            battles += [battle] * game.weight
    return battles


def style_control_2025(battles: Sequence[StyledBattle]) -> StyleControl:
    """Return ratings with style as a feature, as the leaderboard of v2.0 has them, at the maximum of the likelihood.

    The original ends after 50 short steps, within 0.5 % of it, and prints the median of 100 resamples.
    """
    models = sorted({battle.model for battle in battles})
    styles = np.array([density_style(battle.model_style, battle.baseline_style) for battle in battles])
    mean, deviation = styles.mean(axis=0), styles.std(axis=0, ddof=1)
    spread = np.where(deviation > 1e-9, deviation, 1.0)
    players = np.array([[battle.model == model for model in models] for battle in battles], dtype=np.float64)
    fit = LengthControl(
        features=np.concatenate([(styles - mean) / spread, players], axis=1),
        outcomes=np.array([battle.outcome for battle in battles]),
    )
    coefficients, strengths = np.split(fit.coefficients(), [styles.shape[1]])
    unit = 400 / math.log(10)
    return StyleControl(
        ratings={model: float(unit * strength) for model, strength in zip(models, strengths, strict=True)},
        coefficients=tuple(float(value) for value in coefficients),
        mean_style_rating=float(unit * (coefficients @ (mean / spread))),
    )


def test_style_control_of_2025_is_that_of_the_leaderboard() -> None:
    """Its 50 steps end a little before the maximum that ours finds, and its table is the median of 100 resamples."""
    battles = battles_of_board()
    assert len(battles) == BOARD["n_battles"]
    found = style_control_2025(battles)
    assert found.coefficients == pytest.approx(BOARD["converged_coefficients"], abs=2e-4)
    assert found.coefficients == pytest.approx(BOARD["one_fit_coefficients"], abs=0.006)
    for model in found.ratings:
        low, printed, high = BOARD["bootstrap"][model]
        assert found.win_rate(model) == pytest.approx(BOARD["converged"][model], abs=2e-3)
        assert found.win_rate(model) == pytest.approx(BOARD["one_fit"][model], abs=0.2)
        assert found.win_rate(model) == pytest.approx(printed, abs=1)
        assert low < found.win_rate(model) < high


def styled_cell(win: Any) -> Any:
    """Return the metrics of v2.0 and the style-controlled result of its battles; `win` says who wins a question."""
    draw = random.Random(3)

    def text() -> str:
        marks = "# a\n" * draw.randint(0, 3) + "- b\n" * draw.randint(0, 5) + "**c** " * draw.randint(0, 4)
        return marks + "word " * draw.randint(5, 80)

    items = [item(f"q{n}", n, baseline=(text(),), category=("hard_prompt", "math")[n % 2]) for n in range(60)]
    answers = {entry.item_id: [text()] for entry in items}
    labels = {entry.item_id: win(draw, len(answers[entry.item_id][0]), len(entry.baseline[0])) for entry in items}
    metrics = summary_of(
        protocol("ArenaHardV2"), items, answers, lambda ask: f"[[{labels[ask.item_id][ask.order]}]]"
    ).metrics
    battles = []
    for entry in items:
        for game in (game_of(label, order) for order, label in enumerate(labels[entry.item_id])):
            own, base = (style_of(each, len(each)) for each in (answers[entry.item_id][0], entry.baseline[0]))
            battle = StyledBattle(model="m", outcome=game.score, model_style=own, baseline_style=base)
            battles += [battle] * game.weight
    return metrics, battles


def test_v2_has_the_leaderboard_s_score_at_equal_style_with_an_interval() -> None:
    def longer_wins(draw: random.Random, own: int, base: int) -> tuple[str, str]:
        wins = draw.random() < 1 / (1 + math.exp(-2 - (own - base) / 80))
        return ("B>>A", "A>B") if wins else ("A>B", draw.choice(["B>>A", "A=B"]))

    metrics, battles = styled_cell(longer_wins)
    found = style_control_2025(battles)
    assert metrics["sc2025_score"] == pytest.approx(found.equal_style_win_rate("m"), abs=1e-4)
    assert metrics["sc2025_score"] > metrics["score"] + 1
    assert metrics["sc2025_score_low"] < metrics["sc2025_score"] < metrics["sc2025_score_high"]
    assert {"sc2025_score_hard_prompt", "sc2025_score_math"} <= metrics.keys()


def test_battles_that_the_style_alone_decides_have_no_score_at_equal_style() -> None:
    metrics, _ = styled_cell(lambda _, own, base: ("B>A", "A>B") if own > base else ("A>B", "B>A"))
    assert "score" in metrics
    assert not [name for name in metrics if name.startswith("sc2025")]


def styles(row: Any, side: int) -> tuple[float, float, float, float]:
    return row["tokens"][side], row["headers"][side], row["lists"][side], row["bold"][side]


def test_markdown_is_counted_as_the_original_does() -> None:
    case = GOLDEN["markdown_counts"]
    assert markdown_counts(case["text"]) == case["counts"]


@pytest.mark.parametrize(("text", "label"), GOLDEN["verdict_parsing"]["cases"])
def test_the_2025_rule_takes_the_last_match_of_the_first_pattern(text: str, label: str | None) -> None:
    assert match_2025(text) == label
    assert label_2025(text) == label
    read = protocol("ArenaHardV2").read(ASK, [Reply(text=text)])
    assert (read.verdict or None, read.outcome is Outcome.OK) == (label, label is not None)


@pytest.mark.parametrize("label", ["A", "B", ">", ">>B", "A>", "A>>>B", "AB", "A>A", "A==B"])
@pytest.mark.parametrize("kind", ["ArenaHard", "ArenaHardV2"])
@pytest.mark.parametrize("mode", ["Compat", "Strict"])
def test_a_match_that_is_no_label_is_refused(label: str, kind: str, mode: str) -> None:
    """The original raises KeyError on them."""
    read = protocol(kind, mode=mode).read(ASK, [Reply(text=f"[[A>B]], no: [[{label}]]")])
    assert (read.outcome, read.value, read.verdict) == (Outcome.UNPARSABLE, None, "")


@pytest.mark.parametrize("label", TEN)
def test_all_ten_labels_count(label: str) -> None:
    mirrored = label.translate(str.maketrans("AB<>", "BA<>"))
    for order in (0, 1):
        assert game_of(label, order).score == game_of(mirrored, 1 - order).score == 1 - game_of(label, 1 - order).score
        assert game_of(label, order).weight == (3 if len(label) == 4 else 1)
        read = protocol().read(ASK, [Reply(text=f"[[{label}]]")])
        assert (read.value, read.weight) == (game_of(label, 0).score, game_of(label, 0).weight)


COMPAT = [
    ("[[A>B]] and again [[A>B]]", "A>B", False),
    ("[[A>B]] then [[B>A]]", None, False),
    ("nothing", None, True),
    ("[A>B]", None, True),
    ("[[a>b]]", None, True),
    ("[[A<B]]", None, False),
    ("[[A>>B]]", "A>>B", False),
]


@pytest.mark.parametrize(("text", "label", "again"), COMPAT)
def test_the_2024_rule_wants_all_matches_to_agree(text: str, label: str | None, *, again: bool) -> None:
    assert label_2024(text) == (label, again)
    compat = protocol(mode="Compat")
    assert (compat.read(ASK, [Reply(text=text)]).verdict or None) == label
    assert (compat.follow_up(ASK, [Reply(text=text)]) is not None) is again


def test_a_missing_verdict_is_asked_for_once_more_in_the_same_conversation() -> None:
    made = protocol()
    question = made.follow_up(ASK, [Reply(text="Both are fine.")])
    assert question is not None
    assert [message["role"] for message in question.messages] == ["user", "assistant", "user"]
    assert question.messages[1]["content"] == "Both are fine."
    replies = [Reply(text="Both are fine."), Reply(text="[[B>A]]")]
    assert made.read(ASK, replies).verdict == "B>A"
    assert made.follow_up(ASK, replies[:1] * 2) is None
    assert (made.rounds, protocol("ArenaHardV2").rounds) == (2, 1)
    assert protocol("ArenaHardV2").follow_up(ASK, replies[:1]) is None


def test_the_bundle_can_word_the_request_for_a_verdict() -> None:
    question = protocol(templates=ARENA | {"continue": "And now?"}).follow_up(ASK, [Reply(text="Hm.")])
    assert question is not None
    assert question.messages[-1]["content"] == "And now?"


@pytest.mark.parametrize("kind", ["ArenaHard", "ArenaHardV2"])
def test_a_null_drops_the_game_in_v01_and_the_question_in_v20(kind: str) -> None:
    rows = [{"question_id": "q0", "scores": ["B>>A", None]}, {"question_id": "q1", "scores": ["A>B", "B>A"]}]
    items, answers, verdicts = games_of(rows)
    summary = protocol(kind).summarise(items, answers, verdicts)
    assert summary.metrics["score"] == pytest.approx({"ArenaHard": 60.0, "ArenaHardV2": 0.0}[kind])
    assert summary.outcomes[0].valid is (kind == "ArenaHard")
    assert summary.metrics["invalid_share"] == 0.25


def test_ties_position_bias_and_the_unweighted_mean_are_reported() -> None:
    rows = [
        {"question_id": "q0", "scores": ["A>B", "A>B"]},
        {"question_id": "q1", "scores": ["A=B", "A>>B"]},
    ]
    metrics = protocol().summarise(*games_of(rows)).metrics
    assert metrics["score"] == pytest.approx(100 * (0 + 1 + 0.5 + 3) / 6)
    assert metrics["score_unweighted"] == pytest.approx(100 * 2.5 / 4)
    assert (metrics["tie_share"], metrics["contradiction_share"], metrics["first_position_share"]) == (0.25, 0.5, 1.0)


def test_a_judge_that_always_prefers_the_first_answer_scores_a_half() -> None:
    items = [item(f"q{n}", n, baseline=("base",)) for n in range(6)]
    answers = {entry.item_id: ["answer"] for entry in items}
    metrics = summary_of(protocol(), items, answers, lambda _: "[[A>>B]]").metrics
    assert (metrics["score"], metrics["contradiction_share"], metrics["first_position_share"]) == (50.0, 1.0, 1.0)


def test_categories_have_scores_of_their_own() -> None:
    """The original's loop keeps only the first category."""
    items = [item(f"q{n}", n, baseline=("b",), category=("hard_prompt", "creative_writing")[n % 2]) for n in range(4)]
    answers = {entry.item_id: ["hard" if entry.index % 2 == 0 else "poem"] for entry in items}

    def reply(ask: Ask) -> str:
        wins = "hard" in ask.messages[-1]["content"]
        return "[[A>B]]" if wins == bool(ask.order) else "[[B>A]]"

    metrics = summary_of(protocol("ArenaHardV2"), items, answers, reply).metrics
    assert (metrics["score_hard_prompt"], metrics["score_creative_writing"], metrics["score"]) == (100.0, 0.0, 50.0)


def test_a_judge_that_loves_length_alone_has_a_style_controlled_score_near_a_half() -> None:
    """The original crashes with the length as its only feature; here the other features do not vary."""
    draw = random.Random(0)
    items = [item(f"q{n}", n, baseline=("b" * draw.randint(50, 150),)) for n in range(120)]
    answers = {entry.item_id: ["m" * draw.randint(60, 260)] for entry in items}

    def reply(ask: Ask) -> str:
        first, second = ask.messages[-1]["content"].split("A: ")[1].split("\nB: ")
        chance = 1 / (1 + math.exp((len(second) - len(first)) / 30))
        return "[[A>B]]" if draw.random() < chance else "[[B>A]]"

    metrics = summary_of(protocol(), items, answers, reply).metrics
    assert metrics["score"] > 65
    assert metrics["sc_score"] == pytest.approx(50, abs=8)


@pytest.mark.parametrize("label", ["A>B", "B>A"])
def test_one_sided_battles_have_no_style_controlled_score(label: str) -> None:
    items, answers, verdicts = games_of([{"question_id": "q0", "scores": [label, "B>A" if label == "A>B" else "A>B"]}])
    metrics = protocol().summarise(items, answers, verdicts).metrics
    assert metrics["score"] in {0.0, 100.0}
    assert "sc_score" not in metrics


@pytest.mark.parametrize("answer", MARKED.values())
def test_an_answer_is_inserted_as_it_is_in_both_games(answer: str) -> None:
    question = item(turns=("{ANSWER_B}",), baseline=("the base",), category="creative_writing")
    made = protocol("ArenaHardV2", ARENA | {"system/creative_writing": "Judge the poem."})
    first, second = made.asks(question, [answer])
    assert first.messages == (
        {"role": "system", "content": "Judge the poem."},
        {"role": "user", "content": f"Q: {{ANSWER_B}}\nA: the base\nB: {answer}\nJSON looks like {{}}."},
    )
    assert second.messages[1]["content"] == f"Q: {{ANSWER_B}}\nA: {answer}\nB: the base\nJSON looks like {{}}."
    assert (first.max_tokens, first.temperature, first.top_logprobs) == (4096, 0.0, None)


def test_a_template_of_v01_has_its_own_fields() -> None:
    made = protocol(templates={"user": "{question_1}|{answer_1}|{answer_2}"})
    first, _ = made.asks(item(baseline=("base",)), ["mine"])
    assert first.messages == ({"role": "user", "content": "question q|base|mine"},)


BROKEN = {
    "absent": ({}, "the bundle has no judge prompt 'user'; it has: none"),
    "lacks": ({"user": "{QUESTION} {ANSWER_A}"}, "judge prompt 'user' lacks the field {ANSWER_B}"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_judge_prompt_is_refused_before_any_question(name: str) -> None:
    templates, message = BROKEN[name]
    with pytest.raises(DataError) as caught:
        protocol(templates=templates)
    assert str(caught.value) == message


def test_a_field_without_a_value_is_refused() -> None:
    made = protocol(templates={"user": "{QUESTION} {ANSWER_A} {ANSWER_B} {REFERENCE}"})
    with pytest.raises(DataError, match=r"judge prompt 'user' has the field \{REFERENCE\}, but there is a value only"):
        made.asks(item(baseline=("b",)), ["x"])


def test_thoughts_are_not_read_in_strict_mode() -> None:
    said = [Reply(text="<think>[[A>B]]? no</think> They are alike: [A=B]")]
    assert protocol().read(ASK, said).verdict == "A=B"
    assert protocol().read(ASK, [Reply(text="<think>perhaps [[A>B]]")]).outcome is Outcome.UNPARSABLE
    assert protocol(mode="Compat").read(ASK, said).verdict == "A>B"


def test_items_with_a_conversation_show_it_to_the_judge() -> None:
    history = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    first, _ = protocol().asks(item(messages=history, baseline=("b",)), ["x"])
    assert "System: Be brief.\n\nUser: Hi\n\nUser: question q" in first.messages[-1]["content"]


def test_the_name_of_the_baseline_has_no_effect_on_the_numbers() -> None:
    """The original anchors its bootstrap at gpt-4-0314 alone."""
    rows = [{"question_id": f"q{n}", "scores": ["A>B", ("A>>B", "B>A")[n % 2]]} for n in range(6)]
    found = [
        protocol_of("ArenaHard", judge(), templates=ARENA, baseline=Baseline({f"q{n}": name for n in range(6)}))
        .summarise(*games_of(rows))
        .metrics
        for name in ("gpt-4-0314", "another")
    ]
    assert found[0] == found[1]


def test_the_length_of_the_style_control_is_counted_as_told() -> None:
    items, answers, verdicts = games_of([{"question_id": f"q{n}", "scores": ["A>B", "A>B"]} for n in range(4)])
    counted: list[str] = []
    plain = protocol()
    assert isinstance(plain, ArenaHard)
    made = replace(plain, length_of=lambda text: len(counted.append(text) or text.split()), length_unit="tokens")
    assert made.summarise(items, answers, verdicts).details["style_length"] == "tokens"
    assert set(counted) == {"an answer", "base"}
    assert plain.summarise(items, answers, verdicts).details["style_length"] == "characters"


@pytest.mark.parametrize("kind", ["ArenaHard", "ArenaHardV2"])
def test_native_files_have_both_games_and_no_time(kind: Any) -> None:
    made = protocol(kind)
    items = [item("q", baseline=("base",), category="math")]
    answers = {"q": ["mine"]}
    asks, verdicts, replies = ask_all(made, items, answers, lambda ask: "[[A>B]]" if ask.order else "no idea")
    (files,) = {
        json.dumps(made.native_files(items, answers, Transcript(asks, verdicts, replies, "org/m", "gpt-4")))
        for _ in range(2)
    }
    ((name, content),) = json.loads(files).items()
    assert name == "model_judgment/gpt-4/org--m.jsonl"
    row = json.loads(content)
    assert (row["model"], row["judge"]) == ("org/m", "gpt-4")
    assert [game["score"] for game in row["games"]] == [None, "A>B"]
    if kind == "ArenaHard":
        assert list(row) == ["question_id", "model", "judge", "games"]
        assert row["games"][0]["judgment"] == "\nno idea\nno idea"
        assert row["games"][0]["user_prompt"] == asks[0].messages[-1]["content"]
    else:
        assert list(row) == ["uid", "category", "judge", "model", "baseline", "games"]
        assert row["baseline"] == "gpt-4-0314"
        assert row["games"][1]["judgment"] == {"answer": "[[A>B]]"}
        assert [message["role"] for message in row["games"][1]["prompt"]] == ["system", "user"]


@given(st.text(alphabet="AB<>=[] ab\n", max_size=40))
def test_any_reply_gives_one_of_the_labels_or_none(text: str) -> None:
    for label in (label_2025(text), label_2024(text)[0]):
        assert label is None or label in TEN
