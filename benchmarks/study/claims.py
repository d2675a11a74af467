"""Claims of the paper as one-sided tests on the scores of a comparison. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from mpmath import betainc

from wrpo_engine.comparison.statistics import (
    Difference,
    bootstrap,
    difference_of,
    holm,
    minimal_detectable_difference,
)

LEVEL = 0.05
SEED = 42
Runs = Sequence[Sequence[float]]
"""Scores by run and prompt."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`higher` has a higher mean reward than `lower`."""

    topic: str
    higher: str
    lower: str


CLAIMS = (
    Claim(topic="WRPO-X against X: DPO", higher="wrpo", lower="sft-dpo"),
    Claim(topic="WRPO-X against X: SimPO", higher="wrpo-simpo", lower="sft-simpo"),
    Claim(topic="WRPO-X against X: IPO", higher="wrpo-ipo", lower="sft-ipo"),
    Claim(topic="More sources: 2 against 1", higher="sources-2", lower="sources-1"),
    Claim(topic="More sources: 5 against 2", higher="wrpo", lower="sources-2"),
    Claim(topic="With the source's response y_ws", higher="wrpo", lower="no-y-ws"),
    Claim(topic="With the target's response y_wt", higher="wrpo", lower="no-y-wt"),
    Claim(topic="With SFT: WRPO", higher="wrpo", lower="target-wrpo"),
    Claim(topic="With SFT: DPO", higher="sft-dpo", lower="target-dpo"),
)
MARGINS = ("no-y-ws", "wrpo", "no-y-wt")
"""Variants in the ascending order of the slope of their margin that the paper claims."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim with its test."""

    claim: Claim
    difference: Difference
    adjusted_p: float
    detectable: float
    runs: int
    """Of the variant with fewer runs."""

    @property
    def is_shown(self) -> bool:
        """Whether the claim appears at the 5 % level, by Holm's procedure over all claims."""
        return self.adjusted_p < LEVEL

    @property
    def is_reversed(self) -> bool:
        """Whether the interval is below 0."""
        return self.difference.interval.high < 0


@dataclass(frozen=True, kw_only=True)
class SlopeStep:
    """Slopes of two variants by seed, and the test that the second is steeper."""

    lower: str
    higher: str
    differences: tuple[float, ...]
    """By seed."""
    p: float | None
    """One-sided, of the paired t test, by Holm's procedure over the steps. None with one seed."""


def known_scores(comparison: Mapping[str, Any]) -> dict[str, Runs]:
    """Return the scores of each row by the reward of the experiment."""
    return {row["name"]: row["scores"] for row in comparison["rows"] if row["scores"]}


def judged_scores(comparison: Mapping[str, Any], judge: str) -> dict[str, Runs]:
    """Return the scores of each row by another reward on the items that all rows and runs have; empty without it."""
    table = next((table for table in comparison["benchmarks"] if table["judge"] == judge), None)
    if table is None:
        return {}
    found = {
        name: [dict(zip(run["items"], run["values"], strict=True)) for run in row["outcomes"]]
        for name, row in table["rows"].items()
    }
    common = set.intersection(*(set(run) for runs in found.values() for run in runs))
    items = sorted(common)
    return {name: [[run[item] for item in items] for run in runs] for name, runs in found.items()} if items else {}


def check_claims(scores: Mapping[str, Runs]) -> list[Finding]:
    """Return the claims whose rows both exist, each with its paired test."""
    claims = [claim for claim in CLAIMS if claim.higher in scores and claim.lower in scores]
    differences = [_difference(scores[claim.higher], scores[claim.lower]) for claim in claims]
    adjusted = holm([difference.not_above for difference in differences])
    return [
        Finding(
            claim=claim,
            difference=difference,
            adjusted_p=p,
            detectable=_detectable(scores[claim.higher], scores[claim.lower]),
            runs=min(len(scores[claim.higher]), len(scores[claim.lower])),
        )
        for claim, difference, p in zip(claims, differences, adjusted, strict=True)
    ]


def slope_steps(slopes: Mapping[str, Sequence[float]]) -> list[SlopeStep]:
    """Return the steps of the claimed order of slopes; `slopes` are by variant and seed, seeds in one order."""
    names = [name for name in MARGINS if name in slopes]
    steps = list(pairwise(names))
    apart = [tuple(h - x for h, x in zip(slopes[higher], slopes[lower], strict=True)) for lower, higher in steps]
    tested = [p for p in map(paired_t_p, apart) if p is not None]
    adjusted: list[float | None] = [*holm(tested)] if len(tested) == len(steps) else [None] * len(steps)
    return [
        SlopeStep(lower=lower, higher=higher, differences=differences, p=p)
        for (lower, higher), differences, p in zip(steps, apart, adjusted, strict=True)
    ]


def slopes_of(margins: Mapping[str, Any], runs: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Return the slope of the margin as trained by variant, in the order of its runs.

    `margins` is the JSON of a comparison whose rows are the runs. A variant without a slope of every run is left out.
    """
    found = {row["name"]: row["margin_slope"] for row in margins["rows"]}
    by_variant = {name: [found.get(run) for run in runs[name]] for name in MARGINS if name in runs}
    return {
        name: [float(slope) for slope in slopes if slope is not None]
        for name, slopes in by_variant.items()
        if all(slope is not None for slope in slopes)
    }


def paired_t_p(differences: Sequence[float]) -> float | None:
    """Return the one-sided p-value of `the mean difference is above 0`; None with fewer than two values."""
    n = len(differences)
    if n < 2:
        return None
    mean, deviation = fmean(differences), stdev(differences)
    if deviation == 0:
        return 0.0 if mean > 0 else 1.0
    t = mean / (deviation / math.sqrt(n))
    tail = float(betainc((n - 1) / 2, 0.5, 0, (n - 1) / (n - 1 + t * t), regularized=True)) / 2
    return tail if t > 0 else 1 - tail


def _difference(higher: Runs, lower: Runs) -> Difference:
    draws = bootstrap([higher, lower], seed=SEED)
    return difference_of(higher, lower, draws[:, 0] - draws[:, 1])


def _detectable(higher: Runs, lower: Runs) -> float:
    apart = [
        fmean(own) - fmean(other)
        for own, other in zip(zip(*higher, strict=True), zip(*lower, strict=True), strict=True)
    ]
    return minimal_detectable_difference(stdev(apart), len(apart)) if len(apart) > 1 else math.inf
