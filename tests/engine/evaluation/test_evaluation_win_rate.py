"""Win rates and their intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.evaluation.win_rate import WinRate, compare, shares, wilson_interval


@pytest.mark.parametrize(
    ("rate", "n", "low", "high"),
    [
        (0.5, 10, 0.236593, 0.763407),
        (0.75, 6, 0.364823, 0.940010),
        (0.0, 20, 0.0, 0.161125),
        (1.0, 20, 0.838875, 1.0),
        (0.81, 263, 0.758257, 0.852818),
    ],
)
def test_the_interval_is_wilsons(rate: float, n: int, low: float, high: float) -> None:
    # The ends are the roots p of (rate - p)^2 = z^2 p (1 - p) / n, found numerically.
    assert wilson_interval(rate, n) == pytest.approx((low, high), abs=2e-6)


def test_a_tie_is_half_a_win() -> None:
    result = compare({"a": 1.0, "b": 0.5, "c": 0.0}, {"a": 0.0, "b": 0.5, "c": 0.2})
    assert (result.win, result.tie, result.loss) == (1, 1, 1)
    assert result.rate == 0.5
    assert result.to_json() == {
        "win": 1,
        "tie": 1,
        "loss": 1,
        "rate": 0.5,
        "ci_low": pytest.approx(0.125334, abs=1e-6),
        "ci_high": pytest.approx(0.874666, abs=1e-6),
        "n": 3,
    }


def test_models_that_answered_different_prompts_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="only one of them has a response to b, c"):
        compare({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0})


def test_an_interval_needs_a_trial_and_a_share() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        wilson_interval(0.5, 0)
    with pytest.raises(ValueError, match=r"rate is 1\.5"):
        wilson_interval(1.5, 3)


SCORES = st.dictionaries(st.text(min_size=1, max_size=3), st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1)


@given(SCORES)
def test_two_models_win_rates_against_each_other_add_up_to_one(scores: dict[str, tuple[float, float]]) -> None:
    own = {prompt: pair[0] for prompt, pair in scores.items()}
    other = {prompt: pair[1] for prompt, pair in scores.items()}
    forward, backward = compare(own, other), compare(other, own)
    assert forward.rate + backward.rate == pytest.approx(1)
    assert (forward.win, forward.tie) == (backward.loss, backward.tie)
    low, high = forward.interval()
    assert (1 - high, 1 - low) == pytest.approx(backward.interval())


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_the_interval_holds_the_rate_and_stays_within_zero_and_one(win: int, tie: int, loss: int) -> None:
    result = WinRate(win=win, tie=tie, loss=loss)
    if result.n:
        low, high = result.interval()
        assert 0 <= low <= result.rate <= high <= 1


@given(st.integers(1, 200), st.integers(0, 200))
def test_more_prompts_with_the_same_rate_narrow_the_interval(win: int, loss: int) -> None:
    small, large = WinRate(win=win, tie=0, loss=loss), WinRate(win=4 * win, tie=0, loss=4 * loss)
    narrow, wide = large.interval(), small.interval()
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_shares_of_sources_add_up_and_are_sorted() -> None:
    assert shares(["b", "a", "b", "b"]) == {"a": 0.25, "b": 0.75}
    assert shares([]) == {}
