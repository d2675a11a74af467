"""Statistics of comparisons against closed forms and golden numbers of scipy."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.comparison.statistics import (
    bootstrap,
    clustered_error,
    difference_of,
    holm,
    influence,
    interval_of,
    kendall,
    minimal_detectable_difference,
    resample_counts,
    sign_test,
    slope,
    spearman,
    standard_error,
    t_quantile,
)

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "comparisons" / "statistics.json").read_text(encoding="utf-8")
)
PAIRED = GOLDEN["paired"]
OWN: list[float] = PAIRED["a"]
OTHER: list[float] = PAIRED["b"]


def test_a_paired_difference_has_the_known_error_interval_and_p_values() -> None:
    draws = bootstrap([OWN, OTHER], seed=7, resamples=50_000)
    found = difference_of(OWN, OTHER, draws[:, 0] - draws[:, 1])
    assert found.mean == pytest.approx(PAIRED["mean_diff"])
    assert found.standard_error == pytest.approx(PAIRED["se"])
    assert found.t_interval is not None
    assert [found.t_interval.low, found.t_interval.high] == pytest.approx(PAIRED["t_ci95"])
    assert (found.wins, found.losses) == (PAIRED["wins"], PAIRED["losses"])
    assert found.sign_test == pytest.approx(PAIRED["sign_test_p"])
    many = PAIRED["bootstrap_200000"]
    assert [found.interval.low, found.interval.high] == pytest.approx(many["ci95"], abs=0.003)
    assert found.not_above == pytest.approx(many["share_at_most_0"], abs=0.005)


def test_turns_of_a_question_are_not_independent() -> None:
    clustered = GOLDEN["clustered"]
    assert np.mean(clustered["scores"]) == pytest.approx(clustered["overall"])
    assert standard_error(np.ravel(clustered["scores"])) == pytest.approx(clustered["se_naive"])
    assert clustered_error(clustered["scores"]) == pytest.approx(clustered["se_by_question"])


def test_holm_adjusts_in_the_order_of_size_and_keeps_the_given_order() -> None:
    assert holm(GOLDEN["holm"]["p"]) == pytest.approx(GOLDEN["holm"]["adjusted"])
    assert holm([]) == []


def test_rank_correlations_are_spearmans_and_kendalls() -> None:
    ranked = GOLDEN["spearman"]
    assert spearman(ranked["x"], ranked["y"]) == pytest.approx(ranked["rho"])
    assert kendall(ranked["x"], ranked["y"]) == pytest.approx(ranked["kendall"])
    # Ties: scipy's kendalltau and spearmanr of these.
    assert kendall([1, 2, 2, 3], [1, 3, 2, 3]) == pytest.approx(0.8)
    assert spearman([1, 2, 2, 3], [1, 3, 2, 3]) == pytest.approx(5 / 6)
    assert math.isnan(spearman([1, 2], [3, 3]))
    assert math.isnan(kendall([1, 1], [3, 4]))


@pytest.mark.parametrize(("deviation", "error"), GOLDEN["paper_noise"]["se_at_sd"].items())
def test_the_error_of_a_win_rate_over_805_items_is_the_known_one(deviation: str, error: float) -> None:
    # Values at this distance of the mean on either side have this standard deviation, up to the n - 1 of the estimate.
    values = 100 * (0.5 + float(deviation) * np.array([1, -1] * 402 + [0]))
    assert standard_error(values) == pytest.approx(error, rel=1e-3)


def test_a_weighted_mean_is_the_ratio_of_the_resampled_sums() -> None:
    # Arena-Hard: a decisive verdict counts three times.
    values, weights = np.array([1.0, 0.5, 0.0, 1.0]), np.array([4.0, 2.0, 6.0, 4.0])
    draws = bootstrap([values, values], seed=2, resamples=400, weights=[weights, np.ones(4)])
    counts = np.concatenate(list(resample_counts(4, seed=2, resamples=400)))
    expected = [(row * weights * values).sum() / (row * weights).sum() for row in counts]
    assert draws[:, 0] == pytest.approx(np.array(expected))
    assert draws[:, 1] == pytest.approx(bootstrap([values], seed=2, resamples=400)[:, 0])


def test_the_error_of_a_weighted_mean_is_that_of_its_resamples() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.random(300), rng.choice([2.0, 4.0, 6.0], size=300)
    shares = influence(values, weights)
    assert shares.mean() == pytest.approx((values * weights).sum() / weights.sum())
    draws = bootstrap([values], seed=1, resamples=4_000, weights=[weights])
    assert standard_error(shares) == pytest.approx(float(draws.std()), rel=0.05)
    assert influence(values, np.full(300, 3.0)) == pytest.approx(values)


@pytest.mark.parametrize(
    ("share", "degrees", "value"),
    [(0.975, 1, 12.706204736432095), (0.975, 11, 2.200985160082949), (0.975, 400, 1.965912343229391), (0.5, 3, 0.0)],
)
def test_quantiles_are_students(share: float, degrees: int, value: float) -> None:
    assert t_quantile(share, degrees) == pytest.approx(value, rel=1e-9)


def test_a_quantile_needs_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match=r"no quantile 0\.975 with 0 degrees of freedom"):
        t_quantile(0.975, 0)


def test_the_detectable_difference_is_that_of_power_80_percent() -> None:
    # (1.959964 + 0.841621) * 0.4 / sqrt(805)
    assert minimal_detectable_difference(0.4, 805) == pytest.approx(0.0394967, abs=1e-6)


def test_systems_are_resampled_on_the_same_items() -> None:
    draws = bootstrap([OWN, [value + 1 for value in OWN]], seed=3, resamples=500)
    assert draws[:, 1] - draws[:, 0] == pytest.approx(np.ones(500))


def test_several_runs_widen_the_interval_by_their_own_variance() -> None:
    items = list(np.linspace(0, 1, 40))
    one = interval_of(bootstrap([items], seed=1)[:, 0])
    apart = interval_of(bootstrap([[[value - 0.5 for value in items], [value + 0.5 for value in items]]], seed=1)[:, 0])
    # Two runs half a point below and above: a quarter of the draws has one of them twice.
    assert apart.high - apart.low > (one.high - one.low) + 0.8


def test_equal_seeds_give_equal_draws_and_other_items_are_refused() -> None:
    assert (bootstrap([OWN], seed=5, resamples=300) == bootstrap([OWN], seed=5, resamples=300)).all()
    assert (bootstrap([OWN], seed=5, resamples=300) != bootstrap([OWN], seed=6, resamples=300)).any()
    with pytest.raises(ValueError, match="a system has 2 items, the first one 12"):
        bootstrap([OWN, [1.0, 2.0]], seed=1)
    with pytest.raises(ValueError, match="no items"):
        bootstrap([[]], seed=1)


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sign_test_is_symmetric_and_a_probability(wins: int, losses: int) -> None:
    assert 0 < sign_test(wins, losses) <= 1
    assert sign_test(wins, losses) == sign_test(losses, wins)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(new >= old for new, old in zip(adjusted, values, strict=True))
    pairs = list(zip(values, adjusted, strict=True))
    for (a, new_a), (b, new_b) in itertools.product(pairs, pairs):
        assert not a < b or new_a <= new_b


def test_a_slope_is_least_squares() -> None:
    assert slope([1, 2, 3], [2.0, 4.0, 6.5]) == pytest.approx(2.25)
    assert math.isnan(slope([1], [2.0]))
