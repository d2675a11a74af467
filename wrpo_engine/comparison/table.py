"""Rows of a comparison: score, interval and difference from the baseline of every system. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from wrpo_engine.comparison.outcomes import Outcome, common_prompts, refuse_unlike, scores_on
from wrpo_engine.comparison.statistics import (
    RESAMPLES,
    Difference,
    Floats,
    Interval,
    bootstrap,
    difference_of,
    holm,
    interval_of,
    kendall,
    minimal_detectable_difference,
    spearman,
)
from wrpo_engine.errors import UsageError

HALF = 0.5
"""Weight at which margins of runs with different schedules are comparable."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How systems are compared."""

    baseline: str | None = None
    """Name of the row that differences are taken from. None: the first."""
    order: tuple[str, ...] = ()
    """Names in ascending order of a claim, e.g. of more and more sources."""
    seed: int = 42
    resamples: int = RESAMPLES
    allow_unlike_prompts: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system."""

    name: str
    runs: int
    """Training runs, e.g. with different seeds."""
    mean: float
    """Mean reward over prompts and runs."""
    interval: Interval
    mean_tokens: float
    difference: Difference | None
    """From the baseline. None: the baseline itself."""
    adjusted_p: float | None
    """One-sided p-value of the difference by Holm's procedure over the rows."""
    detectable: float | None
    """Smallest difference from the baseline that this many prompts detect."""
    gpu_seconds: float | None
    """Of all stages of a run, on average. None: unknown."""
    training_steps: int | None
    margin_slope: float | None
    """Slope of the reward margin a step, as trained."""
    margin_slope_half: float | None
    """The same with half the weight on the source: comparable between schedules."""
    scores: tuple[tuple[float, ...], ...]
    """By run and prompt."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of an ordering claim: `higher` is better than `lower`."""

    lower: str
    higher: str
    difference: Difference
    adjusted_p: float


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """A claim that systems get better in an order."""

    names: tuple[str, ...]
    steps: tuple[Step, ...]
    spearman: float
    spearman_interval: Interval
    kendall: float
    kendall_interval: Interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows, and what they rest on."""

    rows: tuple[Row, ...]
    baseline: str
    prompts: tuple[str, ...]
    reward: str
    ordering: Ordering | None
    settings: Settings
    margins: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    """Metrics by step of each system's first run that has any, for the figure."""

    def to_json(self) -> dict[str, Any]:
        """Return everything from which the numbers can be recomputed; the curves of training are left out."""
        return {**asdict(self) | {"reward": json.loads(self.reward)}, "margins": None}


def compare(
    systems: Mapping[str, Sequence[Outcome]],
    settings: Settings,
    gpu_seconds: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare systems by name, each with the outcomes of its runs; UsageError if they cannot be compared."""
    outcomes = [outcome for runs in systems.values() for outcome in runs]
    refuse_unlike(outcomes, allow_unlike_prompts=settings.allow_unlike_prompts)
    baseline = _known(systems, settings.baseline or next(iter(systems)), "--baseline")
    for name in settings.order:
        _known(systems, name, "--order")
    prompts = common_prompts(outcomes)
    scores = {name: [scores_on(run, prompts) for run in runs] for name, runs in systems.items()}
    draws = bootstrap(list(scores.values()), seed=settings.seed, resamples=settings.resamples)
    by_name = dict(zip(scores, draws.T, strict=True))
    differences = {
        name: difference_of(runs, scores[baseline], by_name[name] - by_name[baseline])
        for name, runs in scores.items()
        if name != baseline
    }
    adjusted = dict(zip(differences, holm([each.not_above for each in differences.values()]), strict=True))
    rows = []
    for name, runs in systems.items():
        difference = differences.get(name)
        trained = next((run for run in runs if run.steps), None)
        rows.append(
            Row(
                name=name,
                runs=len(runs),
                mean=float(np.mean(scores[name])),
                interval=interval_of(by_name[name]),
                mean_tokens=float(np.mean([run.mean_tokens for run in runs])),
                difference=difference,
                adjusted_p=adjusted.get(name),
                detectable=None if difference is None else _detectable(difference, len(prompts)),
                gpu_seconds=(gpu_seconds or {}).get(name),
                training_steps=trained.training_steps if trained else None,
                margin_slope=trained.margin_slope() if trained else None,
                margin_slope_half=trained.margin_slope(HALF) if trained else None,
                scores=tuple(tuple(run) for run in scores[name]),
            )
        )
    return Comparison(
        rows=tuple(rows),
        baseline=baseline,
        prompts=prompts,
        reward=outcomes[0].reward,
        ordering=_ordering(settings.order, scores, by_name) if settings.order else None,
        settings=settings,
        margins={
            name: run.steps for name, runs in systems.items() if (run := next((r for r in runs if r.steps), None))
        },
    )


def _known(systems: Mapping[str, object], name: str, option: str) -> str:
    if name not in systems:
        raise UsageError(f"{option} names {name}, which is no row", hint=f"The rows are {', '.join(systems)}.")
    return name


def _detectable(difference: Difference, items: int) -> float:
    return minimal_detectable_difference(difference.standard_error * items**0.5, items)


def _ordering(names: tuple[str, ...], scores: Mapping[str, list[list[float]]], draws: Mapping[str, Floats]) -> Ordering:
    if len(set(names)) < len(names) or len(names) < 2:
        raise UsageError(
            f"--order is {', '.join(names)}: an order has at least two rows, each once",
            hint="Write the names in ascending order, separated by commas.",
        )
    found = [
        (lower, higher, difference_of(scores[higher], scores[lower], draws[higher] - draws[lower]))
        for lower, higher in pairwise(names)
    ]
    adjusted = holm([difference.not_above for *_, difference in found])
    places = np.arange(len(names))
    means = [float(np.mean(scores[name])) for name in names]
    resampled = np.stack([draws[name] for name in names], axis=1)
    return Ordering(
        names=names,
        steps=tuple(
            Step(lower=lower, higher=higher, difference=difference, adjusted_p=p)
            for (lower, higher, difference), p in zip(found, adjusted, strict=True)
        ),
        spearman=spearman(places, means),
        spearman_interval=interval_of([spearman(places, row) for row in resampled]),
        kendall=kendall(places, means),
        kendall_interval=interval_of([kendall(places, row) for row in resampled]),
    )
