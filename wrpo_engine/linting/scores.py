"""Checks of the scores of responses."""

from __future__ import annotations

import polars as pl

from wrpo_engine.linting.findings import Finding, Limits, Severity, finding

_COLUMNS = ("source_score", "target_score", "rejected_score")
_MIN_ROWS = 20
_FENCE = 6.0
"""Interquartile ranges above the upper quartile: far beyond what a long tail does."""


def check_scores(table: pl.DataFrame, limits: Limits) -> list[Finding]:
    """Check order and size of the gaps in rows that have scores."""
    present = [name for name in _COLUMNS if name in table.columns]
    found: list[Finding] = []
    for name in present:
        broken = table.filter(pl.col(name).is_not_null() & ~pl.col(name).is_finite())
        found += finding(
            broken, "score-not-finite", Severity.ERROR, f"{name} is not a finite number", limits.shown(name)
        )
    finite = table.filter(pl.all_horizontal(pl.col(name).is_null() | pl.col(name).is_finite() for name in present))
    gaps = finite.with_columns(_gap=pl.col("target_score") - pl.col("rejected_score"))
    found += finding(
        gaps.filter(pl.col("_gap") < 0),
        "score-order",
        Severity.ERROR,
        "target_chosen scores below rejected",
        limits.shown("target_score", as_column="_gap"),
    )
    found += finding(
        gaps.filter(pl.col("_gap") == 0),
        "score-tie",
        Severity.WARNING,
        "target_chosen and rejected have the same score; curation.onTie: Drop drops such rows",
        limits.shown("target_score", as_column="_gap"),
    )
    found += _outliers(gaps, limits)
    behind = finite.filter(pl.col("source_score") <= pl.col("target_score"))
    return found + finding(
        behind,
        "source-not-better",
        Severity.INFO,
        "source_chosen does not score above target_chosen; curation.requireSourceBetter drops such rows",
        limits.shown("source_score"),
    )


def _outliers(gaps: pl.DataFrame, limits: Limits) -> list[Finding]:
    known = gaps["_gap"].drop_nulls()
    if len(known) < _MIN_ROWS:
        return []
    lower, upper = known.quantile(0.25), known.quantile(0.75)
    if lower is None or upper is None or upper <= lower:
        return []
    fence = upper + _FENCE * (upper - lower)
    message = (
        f"the gap between target_chosen and rejected is above {fence:.4g} (quartiles {lower:.4g} and {upper:.4g}); "
        "curation.maxScoreGap drops such rows"
    )
    rows = gaps.filter(pl.col("_gap") > fence).sort("_gap", descending=True, maintain_order=True)
    return finding(rows, "score-outlier", Severity.WARNING, message, limits.shown("target_score", as_column="_gap"))
