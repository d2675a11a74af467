"""Agreement of two judges on the same answers. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from wrpo_engine.comparison.columns import Judged, Sampling, shared_items
from wrpo_engine.comparison.statistics import Floats, Interval, interval_of, kendall


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far two judges agree."""

    systems: int
    items: int
    """Items that both judges judged for every system."""
    kendall: float | None
    """Rank correlation (tau-b) of the systems' scores; None if one judge scores all systems alike."""
    interval: Interval | None
    same: int
    """Pairs of answers to one item that both judges order the same way."""
    opposite: int
    """Pairs that they order the other way round. Pairs that one of them sees as equal are left out."""

    @property
    def share(self) -> float | None:
        """Share of pairs in the same order; None without a pair that both order."""
        ordered = self.same + self.opposite
        return self.same / ordered if ordered else None


def agreement_of(first: Mapping[str, Judged], second: Mapping[str, Judged], *, sampling: Sampling) -> Agreement | None:
    """Return the agreement of two judges; None with fewer than two common systems, or without a common item."""
    names = [name for name in first if name in second]
    if len(names) < 2:
        return None
    items = shared_items([*(first[name] for name in names), *(second[name] for name in names)])
    if not items:
        return None
    sides = [{name: side[name].on(items) for name in names} for side in (first, second)]
    scores = [[side[name].mean for name in names] for side in sides]
    draws = [np.stack(list(sampling.scores({n: [j] for n, j in side.items()}).values()), axis=1) for side in sides]
    signs = [_orders(np.stack([judged.values for judged in side.values()], axis=1)) for side in sides]
    products = signs[0] * signs[1]
    tau, taus = kendall(*scores), _kendalls(*draws)
    return Agreement(
        systems=len(names),
        items=len(items),
        kendall=None if math.isnan(tau) else tau,
        interval=interval_of(taus) if len(taus) else None,
        same=int((products > 0).sum()),
        opposite=int((products < 0).sum()),
    )


def _orders(values: Floats) -> Floats:
    """Return the sign of the difference of each pair of columns, [rows, pairs]."""
    pairs = list(combinations(range(values.shape[1]), 2))
    made: Floats = np.sign(np.stack([values[:, a] - values[:, b] for a, b in pairs], axis=1))
    return made


def _kendalls(first: Floats, second: Floats) -> Floats:
    """Return tau-b of each resample whose scores are not all equal."""
    own, other = _orders(first), _orders(second)
    scale = np.sqrt((own**2).sum(axis=1) * (other**2).sum(axis=1))
    known = scale > 0
    taus: Floats = (own * other).sum(axis=1)[known] / scale[known]
    return taus
