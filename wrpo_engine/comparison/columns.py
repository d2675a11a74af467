"""One column of a comparison: the scores of all systems on one benchmark by one judge or reward. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wrpo_engine.comparison.length_control import LengthControl, Rows
from wrpo_engine.comparison.statistics import (
    RESAMPLES,
    Difference,
    Floats,
    Interval,
    bootstrap,
    difference_of,
    drawn_runs,
    holm,
    influence,
    interval_of,
    minimal_detectable_difference,
)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Valid outcomes of one system in one run."""

    items: tuple[str, ...]
    """Ids, each once."""
    values: Floats
    """[items]."""
    weights: Floats
    """[items], above 0."""
    features: Floats | None = None
    """[items, columns] of the length control; None without one."""

    def on(self, items: Sequence[str]) -> Judged:
        """Return the outcomes of these items, in their order; KeyError if one is missing."""
        places = {item: index for index, item in enumerate(self.items)}
        chosen = [places[item] for item in items]
        return Judged(
            items=tuple(items),
            values=self.values[chosen],
            weights=self.weights[chosen],
            features=None if self.features is None else self.features[chosen],
        )

    @property
    def mean(self) -> float:
        """The score: the weighted mean."""
        return float((self.values * self.weights).sum() / self.weights.sum())


Runs = Sequence[Judged]
"""One system's outcomes by training seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A score with its interval."""

    score: float
    interval: Interval
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One system's result in a column."""

    own: Scored
    """On all of its valid items."""
    common: Scored | None
    """On the items that are valid for every system of the column. None if all of its valid items
    are common, or if none is."""
    difference: Difference | None
    """From the baseline on the common items. None: the baseline itself, or no common item."""
    adjusted_p: float | None
    """One-sided p-value of the difference by Holm's procedure over the column."""
    detectable: float | None
    """Smallest difference from the baseline that this many items detect."""
    length_controlled: Scored | None
    """Length-controlled score from 0 to 1 on all of its valid items, by regression without a penalty."""
    length_controlled_difference: Difference | None
    """From the baseline on the common items, both refitted in each resample."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """All systems on one benchmark by one judge."""

    cells: Mapping[str, Cell]
    common: tuple[str, ...]
    """Items that are valid for every system, sorted."""
    draws: Mapping[str, Floats]
    """Score of each system in each resample of the common items; empty without a common item."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How items are resampled."""

    seed: int
    resamples: int = RESAMPLES
    regulariser: Rows | None = None
    """Rows of the length control."""

    def scores(self, systems: Mapping[str, Runs]) -> dict[str, Floats]:
        """Return each system's score in each resample; all have the same items."""
        tables = [np.stack([run.values for run in runs]) for runs in systems.values()]
        weights = [np.stack([run.weights for run in runs]) for runs in systems.values()]
        if not tables:
            return {}
        drawn = bootstrap(tables, seed=self.seed, resamples=self.resamples, weights=weights)
        return dict(zip(systems, drawn.T, strict=True))

    def length_controlled(self, runs: Runs) -> Floats | None:
        """Return the length-controlled score in each resample; None without length control."""
        controls = self.controls(runs)
        if controls is None:
            return None
        made = [control.resampled(seed=self.seed, resamples=self.resamples) for control in controls]
        return drawn_runs(np.stack(made, axis=1), np.random.default_rng([self.seed, 1]))

    def controls(self, runs: Runs) -> list[LengthControl] | None:
        """Return the length control of each run; None if one has none."""
        found = [
            LengthControl(features=run.features, outcomes=run.values, regulariser=self.regulariser)
            for run in runs
            if run.features is not None
        ]
        return found if len(found) == len(runs) else None


def column_of(systems: Mapping[str, Runs], *, baseline: str, sampling: Sampling) -> Column:
    """Compare systems by name, each with the outcomes of its runs, which have a valid item in common.

    Where a run has length control, its values are from 0 to 1. Systems without a common item have no differences.
    """
    own = {name: _on(runs, shared_items(runs)) for name, runs in systems.items()}
    common = shared_items([run for runs in systems.values() for run in runs])
    shared = {name: _on(runs, common) for name, runs in systems.items()} if common else {}
    draws = sampling.scores(shared)
    lengths = {name: sampling.length_controlled(runs) for name, runs in shared.items()}
    differences = {
        name: _difference(runs, shared[baseline], draws[name] - draws[baseline])
        for name, runs in shared.items()
        if name != baseline
    }
    adjusted = dict(zip(differences, holm([each.not_above for each in differences.values()]), strict=True))
    cells = {}
    for name, runs in own.items():
        same = runs[0].items == common
        difference = differences.get(name)
        controlled = lengths.get(name) if same else sampling.length_controlled(runs)
        cells[name] = Cell(
            own=_scored(runs, draws[name] if same else sampling.scores({name: runs})[name]),
            common=None if same or not common else _scored(shared[name], draws[name]),
            difference=difference,
            adjusted_p=adjusted.get(name),
            detectable=None if difference is None else detectable(difference, len(common)),
            length_controlled=None if controlled is None else _controlled(sampling, runs, controlled),
            length_controlled_difference=_controlled_difference(sampling, shared, lengths, (name, baseline)),
        )
    return Column(cells=cells, common=common, draws=draws)


def shared_items(runs: Iterable[Judged]) -> tuple[str, ...]:
    """Return the items that are valid in every run, sorted."""
    first, *others = [set(run.items) for run in runs]
    return tuple(sorted(first.intersection(*others)))


def detectable(difference: Difference, items: int) -> float:
    """Return the smallest true difference that this many items detect, from the error of the observed one."""
    return minimal_detectable_difference(difference.standard_error * items**0.5, items)


def win_rates(systems: Mapping[str, Judged]) -> list[list[float | None]]:
    """Return the share of items on which a row's system scores above a column's; a tie is half a win.

    All systems have the same items. None on the diagonal.
    """
    values = [judged.values for judged in systems.values()]
    return [
        [None if own is other else float(((own > other) + (own == other) / 2).mean()) for other in values]
        for own in values
    ]


def _on(runs: Runs, items: Sequence[str]) -> list[Judged]:
    return [run.on(items) for run in runs]


def _scored(runs: Runs, draws: Floats) -> Scored:
    return Scored(
        score=float(np.mean([run.mean for run in runs])), interval=interval_of(draws), items=len(runs[0].items)
    )


def _difference(own: Runs, other: Runs, draws: Floats) -> Difference:
    """Return the difference of two scores; the sign test counts items, not their weights."""
    made = difference_of(_influences(own), _influences(other), draws)
    plain = difference_of([run.values for run in own], [run.values for run in other], draws)
    return replace(made, wins=plain.wins, losses=plain.losses, sign_test=plain.sign_test)


def _influences(runs: Runs) -> list[Floats]:
    return [influence(run.values, run.weights) for run in runs]


def _controlled(sampling: Sampling, runs: Runs, draws: Floats) -> Scored:
    controls = sampling.controls(runs) or []
    score = float(np.mean([control.score() for control in controls]))
    return Scored(score=score, interval=interval_of(draws), items=len(runs[0].items))


def _controlled_difference(
    sampling: Sampling, shared: Mapping[str, Runs], lengths: Mapping[str, Floats | None], pair: tuple[str, str]
) -> Difference | None:
    name, baseline = pair
    own, other = lengths.get(name), lengths.get(baseline)
    if name == baseline or own is None or other is None:
        return None
    draws = own - other
    first, second = (np.mean([c.score() for c in sampling.controls(shared[key]) or []]) for key in pair)
    plain = difference_of([run.values for run in shared[name]], [run.values for run in shared[baseline]], draws)
    return replace(plain, mean=float(first - second), standard_error=float(draws.std(ddof=1)), t_interval=None)
