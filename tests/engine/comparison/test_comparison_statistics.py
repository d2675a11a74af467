"""Statistics of comparisons against closed forms and published small numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.comparison.statistics import (
    bootstrap,
    clustered_error,
    difference_of,
    holm,
    interval_of,
    kendall,
    minimal_detectable_difference,
    sign_test,
    slope,
    spearman,
    standard_error,
    t_quantile,
)

OWN = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.5, 1.0, 0.0, 1.0, 1.0]
OTHER = [0.0, 1.0, 0.0, 0.5, 0.0, 1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 1.0]


def test_a_paired_difference_has_the_known_error_interval_and_p_values() -> None:
    # The numbers are those of scipy 1.17.1 and of a bootstrap with 200,000 resamples.
    draws = bootstrap([OWN, OTHER], seed=7, resamples=50_000)
    found = difference_of(OWN, OTHER, draws[:, 0] - draws[:, 1])
    assert found.mean == pytest.approx(0.20833333333333334)
    assert found.standard_error == pytest.approx(0.16808111918434687)
    assert found.t_interval is not None
    assert found.t_interval.low == pytest.approx(-0.1616107156830082)
    assert found.t_interval.high == pytest.approx(0.5782773823496749)
    assert (found.wins, found.losses, found.sign_test) == (4, 1, 0.375)
    assert (found.interval.low, found.interval.high) == pytest.approx((-0.125, 0.5))
    assert found.not_above == pytest.approx(0.126605, abs=0.005)


def test_turns_of_a_question_are_not_independent() -> None:
    scores = [[8.0, 6.0], [7.0, 5.0], [9.0, 9.0], [10.0, 3.0], [6.0, 6.0], [8.0, 7.5]]
    assert np.mean(scores) == pytest.approx(7.041666666666667)
    assert standard_error(np.ravel(scores)) == pytest.approx(0.5656128793555972)
    assert clustered_error(scores) == pytest.approx(0.47616815423872183)


def test_holm_adjusts_in_the_order_of_size_and_keeps_the_given_order() -> None:
    assert holm([0.001, 0.02, 0.03, 0.2, 0.04]) == pytest.approx([0.005, 0.08, 0.09, 0.2, 0.09])
    assert holm([]) == []


def test_rank_correlations_are_spearmans_and_kendalls() -> None:
    x, y = [48.9, 52.3, 53.5, 55.9], [7.29, 7.54, 7.42, 7.63]
    assert spearman(x, y) == pytest.approx(0.8)
    assert kendall(x, y) == pytest.approx(0.6666666666666669)
    # Ties: scipy's kendalltau and spearmanr of these.
    assert kendall([1, 2, 2, 3], [1, 3, 2, 3]) == pytest.approx(0.8)
    assert spearman([1, 2, 2, 3], [1, 3, 2, 3]) == pytest.approx(5 / 6)
    assert math.isnan(spearman([1, 2], [3, 3]))
    assert math.isnan(kendall([1, 1], [3, 4]))


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
