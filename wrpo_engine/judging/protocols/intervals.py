"""Percentile intervals by resampling items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from wrpo_engine.judging.protocol import ItemOutcome

RESAMPLES = 1000
SEED = 0
_BOUNDS = (2.5, 97.5)


def resampled_items(items: int) -> NDArray[np.int64]:
    """Return positions of items, a row for each resample; the same for every call."""
    return np.random.default_rng(SEED).integers(0, items, (RESAMPLES, items), dtype=np.int64)


def interval(name: str, values: NDArray[np.float64]) -> Mapping[str, float]:
    """Return the bounds of the 95 % interval as metrics NAME_low and NAME_high."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {}
    low, high = np.percentile(finite, _BOUNDS)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def mean_interval(name: str, outcomes: Sequence[ItemOutcome], *, scale: float = 1.0) -> Mapping[str, float]:
    """Return the interval of the weighted mean of the valid outcomes, resampled by item."""
    valid = [(outcome.value, outcome.weight) for outcome in outcomes if outcome.valid and outcome.value is not None]
    if not valid:
        return {}
    values, weights = np.array(valid).T
    draws = resampled_items(len(values))
    return interval(name, scale * (values * weights)[draws].sum(axis=1) / weights[draws].sum(axis=1))
