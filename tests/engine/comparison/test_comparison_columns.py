"""Columns of a comparison: scores, common items, length control and agreement of judges."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from wrpo_engine.comparison.agreement import agreement_of
from wrpo_engine.comparison.columns import Judged, Sampling, column_of, win_rates
from wrpo_engine.comparison.length_control import LengthControl, Rows, details_of, rows_of, rows_to_json
from wrpo_engine.comparison.statistics import Floats, Interval

SAMPLING = Sampling(seed=3, resamples=500)


def judged(values: dict[str, float], weights: dict[str, float] | None = None) -> Judged:
    given = weights or {}
    return Judged(
        items=tuple(values),
        values=np.array(list(values.values())),
        weights=np.array([given.get(item, 1.0) for item in values]),
    )


def test_systems_are_compared_on_the_items_that_are_valid_for_all_and_keep_their_own_score() -> None:
    full = judged({"b": 1.0, "a": 0.0, "c": 1.0, "d": 1.0})
    short = judged({"a": 0.0, "b": 1.0, "x": 0.0})
    column = column_of({"full": [full], "short": [short]}, baseline="short", sampling=SAMPLING)
    assert column.common == ("a", "b")
    cell = column.cells["full"]
    assert (cell.own.score, cell.own.items) == (0.75, 4)
    assert cell.common is not None
    assert (cell.common.score, cell.common.items) == (0.5, 2)
    assert cell.difference is not None
    assert (cell.difference.mean, cell.difference.wins, cell.difference.losses) == (0.0, 0, 0)
    assert column.cells["short"].difference is None


def test_equal_items_give_one_number() -> None:
    one, two = judged({"a": 0.0, "b": 1.0}), judged({"b": 0.0, "a": 0.0})
    column = column_of({"one": [one], "two": [two]}, baseline="one", sampling=SAMPLING)
    assert [cell.common for cell in column.cells.values()] == [None, None]
    assert column.cells["two"].difference is not None
    assert column.cells["two"].difference.losses == 1


def test_systems_without_a_common_item_keep_their_scores_and_have_no_difference() -> None:
    column = column_of({"one": [judged({"a": 1.0})], "two": [judged({"b": 0.0})]}, baseline="one", sampling=SAMPLING)
    assert column.common == ()
    assert [cell.own.score for cell in column.cells.values()] == [1.0, 0.0]
    assert [cell.difference for cell in column.cells.values()] == [None, None]


def test_a_weighted_score_is_a_ratio_of_sums_and_its_sign_test_counts_items() -> None:
    one = judged({"a": 1.0, "b": 0.0, "c": 0.5}, {"a": 6, "b": 2, "c": 2})
    two = judged({"a": 0.0, "b": 0.0, "c": 0.0}, {"a": 2, "b": 6, "c": 2})
    column = column_of({"one": [one], "two": [two]}, baseline="two", sampling=SAMPLING)
    cell = column.cells["one"]
    assert cell.own.score == pytest.approx(0.7)
    assert cell.difference is not None
    assert cell.difference.mean == pytest.approx(0.7)
    assert (cell.difference.wins, cell.difference.losses) == (2, 0)


def test_a_matrix_of_win_rates_counts_ties_as_half() -> None:
    systems = {"one": judged({"a": 1.0, "b": 0.0, "c": 0.5}), "two": judged({"a": 0.0, "b": 0.0, "c": 1.0})}
    assert win_rates(systems) == [[None, 0.5], [0.5, None]]
    systems["three"] = judged({"a": 2.0, "b": 2.0, "c": 1.0})
    assert win_rates(systems)[2] == [1.0, pytest.approx(2.5 / 3), None]


def features(n: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """Return [n, 3] features of length, difficulty and model, the wins without length, and the outcomes with it."""
    rng = np.random.default_rng(seed)
    length, difficulty = np.tanh(rng.normal(0.8, 1, n)), rng.normal(0, 0.5, n)
    columns = np.stack([length, difficulty, np.ones(n)], axis=1)
    fair = 1 / (1 + np.exp(-(difficulty + 0.0)))
    return columns, fair, 1 / (1 + np.exp(-(1.5 * length + difficulty)))


def regulariser(n: int) -> Rows:
    rng = np.random.default_rng(9)
    columns = np.stack([rng.normal(size=n), rng.normal(size=n), np.zeros(n)], axis=1)
    return Rows(features=columns, outcomes=rng.random(n), weights=np.full(n, 0.1))


@pytest.mark.parametrize("rows", [None, regulariser(80)])
def test_length_control_is_the_logistic_regression_without_a_penalty(rows: Rows | None) -> None:
    columns, _, outcomes = features(60, 1)
    design = columns if rows is None else np.concatenate([columns, rows.features])
    labels = outcomes if rows is None else np.concatenate([outcomes, rows.outcomes])
    weights = np.ones(60) if rows is None else np.concatenate([np.ones(60), rows.weights])
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    model.fit(
        np.concatenate([design, design]),
        np.repeat([1, 0], len(design)),
        sample_weight=np.concatenate([labels * weights, (1 - labels) * weights]),
    )
    expected = model.predict_proba(columns * [0, 1, 1])[:, 1].mean()
    control = LengthControl(features=columns, outcomes=outcomes, regulariser=rows)
    assert control.score() == pytest.approx(expected, abs=1e-5)


def test_each_resample_is_fitted_as_if_it_were_alone() -> None:
    columns, _, outcomes = features(30, 2)
    control = LengthControl(features=columns, outcomes=outcomes, regulariser=regulariser(20))
    draws = control.resampled(seed=4, resamples=120)
    rng = np.random.default_rng(4)
    counts = rng.multinomial(30, np.full(30, 1 / 30), size=120)
    for index in (0, 60, 119):
        chosen = np.repeat(np.arange(30), counts[index])
        alone = LengthControl(features=columns[chosen], outcomes=outcomes[chosen], regulariser=regulariser(20))
        assert draws[index] == pytest.approx(alone.score(), abs=2e-6)


def test_a_judge_that_loves_length_favours_long_answers_and_length_control_takes_it_back() -> None:
    columns, fair, outcomes = features(400, 3)
    assert float(outcomes.mean()) > 0.6
    control = LengthControl(features=columns, outcomes=outcomes)
    assert control.score() == pytest.approx(float(fair.mean()), abs=0.01)


def test_a_system_that_wins_every_item_has_a_finite_length_controlled_score() -> None:
    columns, _, _ = features(20, 4)
    control = LengthControl(features=columns, outcomes=np.ones(20))
    draws = control.resampled(seed=1, resamples=50)
    assert control.score() > 0.99
    assert np.isfinite(draws).all()


def test_length_controlled_scores_are_compared_with_the_same_resamples() -> None:
    columns, _, outcomes = features(50, 5)
    items = tuple(f"i{n:02}" for n in range(50))
    own = Judged(items=items, values=outcomes, weights=np.ones(50), features=columns)
    column = column_of({"one": [own], "two": [own]}, baseline="one", sampling=SAMPLING)
    found = column.cells["two"].length_controlled_difference
    assert found is not None
    assert (found.mean, found.interval.low, found.interval.high, found.not_above) == (0.0, 0.0, 0.0, 1.0)
    controlled = column.cells["one"].length_controlled
    assert controlled is not None
    assert controlled.interval.low < controlled.score < controlled.interval.high


def test_the_details_of_length_control_survive_json() -> None:
    rows = regulariser(3)
    details = json.loads(json.dumps(details_of("LC", "lc_win_rate", {"a": [0.5, 1, 1]}, rows)))
    assert details["features"] == {"a": [0.5, 1.0, 1.0]}
    read = rows_of(details["regulariser"])
    assert rows_to_json(read) == rows_to_json(rows)
    assert details_of("LC-minimal", "lc_minimal", {})["regulariser"] is None


def test_judges_that_order_systems_and_answers_alike_agree() -> None:
    first = {"low": judged({"a": 0.0, "b": 0.2}), "high": judged({"a": 1.0, "b": 0.9})}
    second = {"low": judged({"a": 3.0, "b": 4.0}), "high": judged({"a": 9.0, "b": 4.0}), "more": judged({"a": 1.0})}
    found = agreement_of(first, second, sampling=SAMPLING)
    assert found is not None
    assert (found.systems, found.items, found.kendall) == (2, 2, 1.0)
    assert (found.same, found.opposite, found.share) == (1, 0, 1.0)
    assert found.interval == Interval(1.0, 1.0)


def test_judges_that_order_answers_the_other_way_round_disagree() -> None:
    first = {"low": judged({"a": 0.0, "b": 0.2}), "high": judged({"a": 1.0, "b": 0.9})}
    second = {"low": first["high"], "high": first["low"]}
    found = agreement_of(first, second, sampling=SAMPLING)
    assert found is not None
    assert (found.kendall, found.share) == (-1.0, 0.0)


def test_a_judge_that_scores_all_systems_alike_has_no_order() -> None:
    first = {"low": judged({"a": 0.0, "b": 0.2}), "high": judged({"a": 1.0, "b": 0.9})}
    found = agreement_of(first, {name: judged({"a": 1.0, "b": 1.0}) for name in first}, sampling=SAMPLING)
    assert found is not None
    assert (found.kendall, found.interval, found.share) == (None, None, None)


def test_agreement_needs_two_systems_and_a_common_item() -> None:
    one = {"a": judged({"x": 1.0})}
    assert agreement_of(one, one, sampling=SAMPLING) is None
    left = {"a": judged({"x": 1.0}), "b": judged({"x": 0.0})}
    right = {"a": judged({"y": 1.0}), "b": judged({"y": 0.0})}
    assert agreement_of(left, right, sampling=SAMPLING) is None
