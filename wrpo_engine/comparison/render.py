"""Rendering of a comparison: terminal, Markdown, CSV, LaTeX, JSON and one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Collection

from markupsafe import Markup

from wrpo_engine import __version__
from wrpo_engine.comparison.table import Comparison, Row
from wrpo_engine.reporting import charts
from wrpo_engine.reporting.page import environment

_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    }
)  # fmt: skip
PAIRED_COLUMNS = (
    *("difference", "difference_ci_low", "difference_ci_high", "p_one_sided", "p_holm"),
    *("wins", "losses", "sign_test", "detectable"),
)
CSV_COLUMNS = (
    *("system", "runs", "prompts", "mean_reward", "ci_low", "ci_high", *PAIRED_COLUMNS),
    *("mean_tokens", "gpu_seconds", "training_steps", "margin_slope", "margin_slope_half"),
)
COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("system", lambda row: row.name),
    ("runs", lambda row: str(row.runs)),
    ("mean reward", lambda row: number(row.mean)),
    ("95 % interval", lambda row: f"{number(row.interval.low)} to {number(row.interval.high)}"),
    ("difference", lambda row: "-" if row.difference is None else f"{row.difference.mean:+.4g}"),
    (
        "95 % interval of it",
        lambda row: (
            "-"
            if row.difference is None
            else f"{row.difference.interval.low:+.4g} to {row.difference.interval.high:+.4g}"
        ),
    ),
    ("p (Holm)", lambda row: share(row.adjusted_p)),
    ("won, lost", lambda row: "-" if row.difference is None else f"{row.difference.wins}, {row.difference.losses}"),
    ("sign test", lambda row: "-" if row.difference is None else share(row.difference.sign_test)),
    ("detectable", lambda row: number(row.detectable)),
    ("tokens", lambda row: number(row.mean_tokens)),
    ("GPU hours", lambda row: "-" if row.gpu_seconds is None else number(row.gpu_seconds / 3600)),
    ("steps", lambda row: "-" if row.training_steps is None else str(row.training_steps)),
    ("margin slope", lambda row: number(row.margin_slope)),
    ("at alpha 0.5", lambda row: number(row.margin_slope_half)),
)
"""Head and text of each column."""
MAIN_COLUMNS = frozenset(
    {"system", "runs", "mean reward", "95 % interval", "difference", "95 % interval of it", "p (Holm)", "tokens"}
)
"""Heads of the columns that a terminal shows."""


def number(value: float | None) -> str:
    """Return four digits that count; a dash for an unknown value."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def share(value: float | None) -> str:
    """Return a p-value; small ones as a bound."""
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def cells(comparison: Comparison, heads_shown: Collection[str] | None = None) -> list[list[str]]:
    """Return the texts of the table, all columns or those with these heads, without those that are empty."""
    columns = [[text(row) for row in comparison.rows] for _, text in COLUMNS]
    heads = [head for head, _ in COLUMNS]
    kept = [
        index
        for index, column in enumerate(columns)
        if set(column) != {"-"} and (heads_shown is None or heads[index] in heads_shown)
    ]
    return [[heads[index] for index in kept], *map(list, zip(*(columns[index] for index in kept), strict=True))]


def notes(comparison: Comparison) -> list[str]:
    """Return what a reader has to know, one sentence or two each."""
    items = len(comparison.prompts)
    paired = (
        f"Differences are from {comparison.baseline}, paired on {items} held-out prompts. Intervals are percentile "
        f"bootstraps with {comparison.settings.resamples:,} resamples (seed {comparison.settings.seed})."
    )
    tests = (
        "p is the share of resamples without an improvement (one-sided), adjusted by Holm's procedure over the rows. "
        "The sign test is exact and two-sided; ties are left out."
    )
    detectable = "Detectable: the smallest true difference that this many prompts detect with a power of 80 %."
    found = [paired, tests, detectable]
    single = [row.name for row in comparison.rows if row.runs == 1]
    if single:
        found.append(f"1 run: no training variance is part of the intervals of {', '.join(single)}.")
    found.append(
        "If the reward that scores here chose the training responses, the numbers show what was optimised, not what "
        "people prefer."
    )
    return found


def to_markdown(comparison: Comparison) -> str:
    """Return a Markdown table with its notes."""
    head, *rows = [[cell.replace("|", r"\|") for cell in line] for line in cells(comparison)]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    ordered = ordering_lines(comparison)
    parts = [table, *(["\n".join(f"- {line}" for line in ordered)] if ordered else []), *notes(comparison)]
    return "\n\n".join(parts) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Return the table as CSV, numbers in full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in comparison.rows:
        apart = row.difference
        paired: tuple[object, ...] = ("",) * len(PAIRED_COLUMNS)
        if apart is not None:
            ends = (apart.interval.low, apart.interval.high)
            counts = (apart.wins, apart.losses, apart.sign_test)
            paired = (apart.mean, *ends, apart.not_above, row.adjusted_p, *counts, row.detectable)
        own = (row.name, row.runs, len(comparison.prompts), row.mean, row.interval.low, row.interval.high)
        costs = (row.mean_tokens, row.gpu_seconds, row.training_steps, row.margin_slope, row.margin_slope_half)
        writer.writerow([*own, *paired, *costs])
    return buffer.getvalue()


def to_tex(comparison: Comparison) -> str:
    """Return a LaTeX tabular with booktabs rules."""
    head, *rows = [[cell.translate(_TEX) for cell in line] for line in cells(comparison)]
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([*(f"% {note}" for note in notes(comparison)), *lines]) + "\n"


def to_json(comparison: Comparison) -> str:
    """Return all numbers with the scores by prompt."""
    return json.dumps(comparison.to_json(), indent=1, ensure_ascii=False) + "\n"


def to_html(comparison: Comparison) -> str:
    """Return one page that needs nothing else. The template engine escapes all names."""
    made = [
        charts.interval_chart(
            {row.name: (row.mean, row.interval.low, row.interval.high) for row in comparison.rows}, title="Mean reward"
        ),
        charts.interval_chart(
            {
                row.name: (row.difference.mean, row.difference.interval.low, row.difference.interval.high)
                for row in comparison.rows
                if row.difference is not None
            },
            title=f"Difference from {comparison.baseline}",
            line=0.0,
        ),
        charts.curves_chart(
            {
                name: [(row["step"], row["margin"]) for row in steps if "margin" in row]
                for name, steps in comparison.margins.items()
            },
            title="Reward margin as trained",
        ),
    ]
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            version=__version__,
            comparison=comparison,
            table=cells(comparison),
            notes=notes(comparison),
            ordering=ordering_lines(comparison),
            charts=[Markup(svg) for svg in made if svg is not None],  # noqa: S704 (matplotlib escapes its text)
        )
    )


def ordering_lines(comparison: Comparison) -> list[str]:
    """Return the ordering claim as sentences; none without a claim."""
    claim = comparison.ordering
    if claim is None:
        return []
    steps = [
        f"{step.higher} above {step.lower}: {step.difference.mean:+.4g} "
        f"({step.difference.interval.low:+.4g} to {step.difference.interval.high:+.4g}), p {share(step.adjusted_p)}"
        for step in claim.steps
    ]
    low, high = claim.spearman_interval.low, claim.spearman_interval.high
    tau_low, tau_high = claim.kendall_interval.low, claim.kendall_interval.high
    correlations = (
        f"Spearman {number(claim.spearman)} ({number(low)} to {number(high)}), Kendall {number(claim.kendall)} "
        f"({number(tau_low)} to {number(tau_high)}) over {len(claim.names)} systems in the claimed order"
    )
    return [*steps, correlations]


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "html": to_html,
    "md": to_markdown,
    "csv": to_csv,
    "tex": to_tex,
    "json": to_json,
}
"""Extension of comparison.* -> its writer."""
