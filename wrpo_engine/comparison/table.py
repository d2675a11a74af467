"""Rows of a comparison: score, interval and difference from the baseline of every system. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from wrpo_engine.comparison.benchmarks import BenchmarkTable, JudgesCompared, agreements_of, tables_of
from wrpo_engine.comparison.columns import Sampling, detectable
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
    published: bool = False
    """Show the paper's figures next to rows of the same name."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system."""

    name: str
    runs: int
    """Training runs, e.g. with different seeds."""
    mean: float | None
    """Mean reward over held-out prompts and runs. None without held-out prompts."""
    interval: Interval | None
    mean_tokens: float | None
    difference: Difference | None
    """From the baseline. None: the baseline itself, or no held-out prompts."""
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
    models_resident: int
    choices: Mapping[str, str]
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
    benchmarks: tuple[BenchmarkTable, ...] = ()
    agreements: tuple[JudgesCompared, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything from which the numbers can be recomputed; the curves of training are left out."""
        plain = {"reward": json.loads(self.reward), "margins": None}
        return {**asdict(replace(self, benchmarks=())), **plain, "benchmarks": [t.to_json() for t in self.benchmarks]}


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
    scores = {name: [scores_on(run, prompts) for run in runs] for name, runs in systems.items()} if prompts else {}
    draws = bootstrap(list(scores.values()), seed=settings.seed, resamples=settings.resamples) if scores else None
    by_name = {} if draws is None else dict(zip(scores, draws.T, strict=True))
    differences = {
        name: difference_of(runs, scores[baseline], by_name[name] - by_name[baseline])
        for name, runs in scores.items()
        if name != baseline
    }
    adjusted = dict(zip(differences, holm([each.not_above for each in differences.values()]), strict=True))
    sampling = Sampling(seed=settings.seed, resamples=settings.resamples)
    benchmarks = tables_of(systems, baseline=baseline, sampling=sampling)
    return Comparison(
        rows=tuple(
            _row(
                name,
                runs,
                _Scored(scores[name], by_name[name], differences.get(name), adjusted.get(name)) if prompts else None,
                gpu_seconds=(gpu_seconds or {}).get(name),
            )
            for name, runs in systems.items()
        ),
        baseline=baseline,
        prompts=prompts,
        reward=outcomes[0].reward,
        ordering=_ordering(settings.order, scores, by_name) if settings.order and scores else None,
        settings=settings,
        margins={
            name: run.steps for name, runs in systems.items() if (run := next((r for r in runs if r.steps), None))
        },
        benchmarks=tuple(benchmarks),
        agreements=tuple(agreements_of(benchmarks, sampling)),
    )


@dataclass(frozen=True, slots=True)
class _Scored:
    """A system's scores on the common prompts."""

    scores: Sequence[Sequence[float]]
    """Of each run."""
    draws: Floats
    difference: Difference | None
    """To the baseline; None for the baseline itself."""
    adjusted_p: float | None


def _row(name: str, runs: Sequence[Outcome], scored: _Scored | None, *, gpu_seconds: float | None) -> Row:
    trained = next((run for run in runs if run.steps), None)
    scores = () if scored is None else scored.scores
    difference = None if scored is None else scored.difference
    return Row(
        name=name,
        runs=len(runs),
        mean=None if scored is None else float(np.mean(scores)),
        interval=None if scored is None else interval_of(scored.draws),
        mean_tokens=None if scored is None else float(np.mean([run.mean_tokens for run in runs])),
        difference=difference,
        adjusted_p=None if scored is None else scored.adjusted_p,
        detectable=None if difference is None else detectable(difference, len(scores[0])),
        gpu_seconds=gpu_seconds,
        training_steps=trained.training_steps if trained else None,
        margin_slope=trained.margin_slope() if trained else None,
        margin_slope_half=trained.margin_slope(HALF) if trained else None,
        models_resident=runs[0].models_resident,
        choices=runs[0].choices,
        scores=tuple(tuple(run) for run in scores),
    )


def _known(systems: Mapping[str, object], name: str, option: str) -> str:
    if name not in systems:
        raise UsageError(f"{option} names {name}, which is no row", hint=f"The rows are {', '.join(systems)}.")
    return name


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
