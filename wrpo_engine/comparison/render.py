"""Rendering of a comparison: terminal, Markdown, CSV, LaTeX, JSON and one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable

from markupsafe import Markup

from wrpo_engine import __version__
from wrpo_engine.comparison.benchmark_texts import (
    TextColumn,
    columns_of,
    csv_columns,
    notes_of,
    prefix_of,
    scaled,
)
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
    (
        "95 % interval",
        lambda row: "-" if row.interval is None else f"{number(row.interval.low)} to {number(row.interval.high)}",
    ),
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


def cells(comparison: Comparison, *, main_only: bool = False) -> list[list[str]]:
    """Return the texts of the table without columns that are empty; the main columns alone for a terminal."""
    own = [
        TextColumn(head=head, texts=_texts(comparison, text), is_main=head in MAIN_COLUMNS) for head, text in COLUMNS
    ]
    names = [row.name for row in comparison.rows]
    found = [*own, *columns_of(comparison.benchmarks, names, published=comparison.settings.published)]
    if any(row.models_resident > 1 for row in comparison.rows):
        found.append(TextColumn(head="models", texts=_texts(comparison, lambda row: str(row.models_resident))))
    kept = [column for column in found if set(column.texts) != {"-"} and (column.is_main or not main_only)]
    return [[column.head for column in kept], *map(list, zip(*(column.texts for column in kept), strict=True))]


def _texts(comparison: Comparison, text: Callable[[Row], str]) -> tuple[str, ...]:
    return tuple(text(row) for row in comparison.rows)


def notes(comparison: Comparison) -> list[str]:
    """Return what a reader has to know, one sentence or two each."""
    found = _held_out_notes(comparison) if comparison.prompts else []
    names = [row.name for row in comparison.rows]
    found += notes_of(comparison.benchmarks, comparison.agreements, names, published=comparison.settings.published)
    found += [
        f"{row.name}: {', '.join(f'{k} {v}' for k, v in row.choices.items())}."
        for row in comparison.rows
        if row.choices
    ]
    single = [row.name for row in comparison.rows if row.runs == 1]
    if single:
        found.append(f"1 run: no training variance is part of the intervals of {', '.join(single)}.")
    if comparison.prompts:
        found.append(
            "If the reward that scores here chose the training responses, the numbers show what was optimised, not "
            "what people prefer."
        )
    return found


def _held_out_notes(comparison: Comparison) -> list[str]:
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
    return [paired, tests, detectable]


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
    published = comparison.settings.published
    further = [csv_columns(comparison.benchmarks, row.name, published=published) for row in comparison.rows]
    writer.writerow([*CSV_COLUMNS, *further[0]])
    for row, numbers in zip(comparison.rows, further, strict=True):
        writer.writerow([*_csv_row(row, len(comparison.prompts)), *numbers.values()])
    return buffer.getvalue()


def _csv_row(row: Row, prompts: int) -> list[object]:
    apart = row.difference
    paired: tuple[object, ...] = ("",) * len(PAIRED_COLUMNS)
    if apart is not None:
        ends = (apart.interval.low, apart.interval.high)
        counts = (apart.wins, apart.losses, apart.sign_test)
        paired = (apart.mean, *ends, apart.not_above, row.adjusted_p, *counts, row.detectable)
    bounds = ("", "") if row.interval is None else (row.interval.low, row.interval.high)
    costs = (row.mean_tokens, row.gpu_seconds, row.training_steps, row.margin_slope, row.margin_slope_half)
    return [row.name, row.runs, prompts, row.mean, *bounds, *paired, *costs]


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
            {
                row.name: (row.mean, row.interval.low, row.interval.high)
                for row in comparison.rows
                if row.mean is not None and row.interval is not None
            },
            title="Mean reward",
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
        *benchmark_charts(comparison),
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


def benchmark_charts(comparison: Comparison) -> list[str | None]:
    """Return a chart of scores for each benchmark and judge, and one of scores by length."""
    made = []
    for table in comparison.benchmarks:
        title, factor = prefix_of(table, comparison.benchmarks), table.scale.factor
        intervals = {name: scaled(cell.own.interval, factor) for name, cell in table.cells.items()}
        scores = {name: cell.own.score * factor for name, cell in table.cells.items()}
        entries = {name: (scores[name], bounds.low, bounds.high) for name, bounds in intervals.items()}
        made.append(charts.interval_chart(entries, title=f"{title} ({table.scale.name})"))
        points = {
            name: (length, scores[name]) for name in table.cells if (length := table.facts[name].characters) is not None
        }
        if len(points) > 1:
            unit = table.scale.name
            made.append(
                charts.point_chart(points, title=f"{title}: score by length", x="mean characters of an answer", y=unit)
            )
    return made


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
