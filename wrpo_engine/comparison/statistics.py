"""Statistics of outcomes per item: bootstrap intervals, paired differences, rank correlations. Pure and seeded.

An item is what is drawn independently: a held-out prompt, a question with all of its turns. Every function that
resamples draws the same items for all systems, so differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from mpmath import betainc, findroot, mp
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
LEVEL = 0.95
POWER = 0.8
"""Chance of detecting a difference of the minimal detectable size."""
_CHUNK = 1_000
"""Resamples that are held in memory at once."""
_KEPT = 20_000_000
"""Largest number of counts that are kept for the next system: two bytes each, and each at most the number of items."""
_ROUNDING = 1e-12
"""Differences below this share of the largest outcome are rounding errors of equal outcomes."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of a 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Mean difference of two systems on the same items."""

    mean: float
    interval: Interval
    """Percentile bootstrap of items, and of runs where a system has several."""
    standard_error: float
    """Of the mean over items. 0 with one item."""
    t_interval: Interval | None
    """Student's interval. None with one item."""
    not_above: float
    """Share of resamples whose difference is 0 or less: the one-sided p-value of `the first is better`."""
    wins: int
    losses: int
    sign_test: float
    """Two-sided exact p-value of the sign test; ties are left out."""


def resample_counts(items: int, *, seed: int, resamples: int = RESAMPLES) -> Iterator[Floats]:
    """Yield arrays [resamples in the chunk, items]: how often each item is drawn in each resample."""
    if items < 1:
        raise ValueError("there are no items to resample")
    is_small = items * resamples <= _KEPT
    for counts in _kept_counts(items, seed, resamples) if is_small else _counts(items, seed, resamples):
        yield counts.astype(np.float64)


def _counts(items: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    even = np.full(items, 1 / items)
    for start in range(0, resamples, _CHUNK):
        yield rng.multinomial(items, even, size=min(_CHUNK, resamples - start))


@lru_cache(maxsize=4)
def _kept_counts(items: int, seed: int, resamples: int) -> tuple[NDArray[np.uint16], ...]:
    """Return the counts of all chunks: systems on the same items share them, and drawing takes longer than using."""
    return tuple(counts.astype(np.uint16) for counts in _counts(items, seed, resamples))


def bootstrap(
    systems: Sequence[ArrayLike],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    weights: Sequence[ArrayLike] | None = None,
) -> Floats:
    """Return the means of systems in each resample, [resamples, systems].

    A system is an array [items], or [runs, items] for several training seeds. Runs are drawn first, separately for
    each system, then items, which are the same for all. With `weights`, of the same shapes, a mean is the ratio of the
    resampled sums. ValueError if a system has other items than the first.
    """
    tables = [np.atleast_2d(np.asarray(system, dtype=np.float64)) for system in systems]
    items = tables[0].shape[1]
    for table in tables:
        if table.shape[1] != items:
            raise ValueError(f"a system has {table.shape[1]} items, the first one {items}; both must have the same")
    weighted = None if weights is None else [np.atleast_2d(np.asarray(each, dtype=np.float64)) for each in weights]
    rng = np.random.default_rng([seed, 1])
    made = []
    for counts in resample_counts(items, seed=seed, resamples=resamples):
        columns = []
        for index, table in enumerate(tables):
            if weighted is None:
                means = counts @ table.T / items
            else:
                means = counts @ (table * weighted[index]).T / (counts @ weighted[index].T)
            columns.append(drawn_runs(means, rng))
        made.append(np.stack(columns, axis=1))
    return np.concatenate(made)


def drawn_runs(means: Floats, rng: np.random.Generator) -> Floats:
    """Return the mean over runs that are drawn with replacement, [resamples]; `means` are [resamples, runs]."""
    runs = means.shape[1]
    drawn = rng.multinomial(runs, np.full(runs, 1 / runs), size=len(means)) if runs > 1 else 1.0
    chosen: Floats = (means * drawn).sum(axis=1) / runs
    return chosen


def influence(values: ArrayLike, weights: ArrayLike) -> Floats:
    """Return each item's share of a weighted mean, plus the mean: w (v - m) / mean(w) + m, [items].

    Their plain mean is the weighted mean m, and their standard error is that of m to first order. With equal weights
    they are the values.
    """
    found, weight = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    mean = float((found * weight).sum() / weight.sum())
    shares: Floats = weight * (found - mean) / weight.mean() + mean
    return shares


def interval_of(resampled: ArrayLike) -> Interval:
    """Return the percentile interval of resampled values."""
    low, high = np.quantile(np.asarray(resampled, dtype=np.float64), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def difference_of(own: ArrayLike, other: ArrayLike, resampled: ArrayLike) -> Difference:
    """Return the difference of two systems; `resampled` are the differences of their bootstrapped means.

    Several runs of a system are averaged by item for the standard error, the t interval and the sign test.
    """
    first = np.atleast_2d(np.asarray(own, dtype=np.float64)).mean(axis=0)
    second = np.atleast_2d(np.asarray(other, dtype=np.float64)).mean(axis=0)
    apart = first - second
    limit = _ROUNDING * max(1.0, float(np.abs(first).max()), float(np.abs(second).max()))
    wins, losses = int((apart > limit).sum()), int((apart < -limit).sum())
    mean, error = float(apart.mean()), standard_error(apart)
    draws = np.asarray(resampled, dtype=np.float64)
    return Difference(
        mean=mean,
        interval=interval_of(draws),
        standard_error=error,
        t_interval=t_interval(mean, error, len(apart)) if len(apart) > 1 else None,
        not_above=float((draws <= limit).mean()),
        wins=wins,
        losses=losses,
        sign_test=sign_test(wins, losses),
    )


def standard_error(values: ArrayLike) -> float:
    """Return the standard error of the mean of independent values; 0 for a single one."""
    found = np.asarray(values, dtype=np.float64)
    return float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else 0.0


def clustered_error(values: Sequence[Sequence[float]]) -> float:
    """Return the standard error of the overall mean of groups, e.g. of questions with their turns.

    Values of one group are not independent, so that groups are the unit. All groups have the same size.
    """
    return standard_error([float(np.mean(group)) for group in values])


def t_interval(mean: float, error: float, n: int) -> Interval:
    """Return Student's interval of a mean over n independent values with this standard error."""
    half = t_quantile((1 + LEVEL) / 2, n - 1) * error
    return Interval(mean - half, mean + half)


def t_quantile(share: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution, for shares above one half."""
    if degrees < 1 or not 0.5 <= share < 1:
        raise ValueError(f"no quantile {share} with {degrees} degrees of freedom")
    if share == 0.5:
        return 0.0

    def above(t: float) -> float:
        # The mass above t is half of an incomplete beta function.
        tail: float = betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True) / 2
        return tail - (1 - share)

    with mp.workdps(30):
        return float(findroot(above, (0, mp.mpf(10) ** 6), solver="bisect", maxsteps=200, tol=1e-22))


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided exact p-value that wins and losses are equally likely; 1 without any."""
    n, fewer = wins + losses, min(wins, losses)
    share: float = 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    return min(1.0, share)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the given order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def ranks(values: ArrayLike) -> Floats:
    """Return ranks from 1; equal values share their mean rank."""
    found = np.asarray(values, dtype=np.float64)
    below = (found[:, None] > found[None, :]).sum(axis=1)
    equal = (found[:, None] == found[None, :]).sum(axis=1)
    shared: Floats = below + (equal + 1) / 2
    return shared


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Return Spearman's rank correlation; nan if one side is constant."""
    first, second = ranks(x), ranks(y)
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else math.nan


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Return Kendall's tau-b; nan if one side is constant."""
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    upper = np.triu_indices(len(first), k=1)
    signs_x = np.sign(first[:, None] - first[None, :])[upper]
    signs_y = np.sign(second[:, None] - second[None, :])[upper]
    scale = math.sqrt(float((signs_x**2).sum() * (signs_y**2).sum()))
    return float((signs_x * signs_y).sum()) / scale if scale else math.nan


def minimal_detectable_difference(deviation: float, n: int) -> float:
    """Return the smallest true difference that n items detect with a power of 80 % at the two-sided 5 % level.

    `deviation` is the standard deviation of the difference by item.
    """
    if n < 1:
        raise ValueError(f"n is {n}: at least one item is needed")
    normal = NormalDist()
    return (normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)) * deviation / math.sqrt(n)


def slope(steps: ArrayLike, values: ArrayLike) -> float:
    """Return the least-squares slope of values over steps; nan with fewer than two different steps."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(x) < 2 or float(np.ptp(x)) == 0:
        return math.nan
    centred = x - x.mean()
    return float((centred * (y - y.mean())).sum() / (centred**2).sum())
