"""Charts as inline SVG that follows the page's colours. The same data give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PALETTE = ("#4c78a8", "#e07b39", "#3f9c6c", "#b65fa8", "#8a7a2f", "#5aa6b8", "#c4515f", "#7d6bb5")
"""Middle tones: readable on light and on dark."""
_INK = "#010203"
"""Stands for the page's text colour until the SVG is written."""
_FAINT = "#040506"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "wrpo",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "figure.titlesize": 10.5,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
}

Steps = Sequence[Mapping[str, float]]


def line_chart(steps: Steps, series: Mapping[str, str], *, title: str) -> str | None:
    """Return curves over optimizer steps; `series` maps a metric to its name. None if there is no metric."""
    present = {key: name for key, name in series.items() if any(_is_number(row.get(key)) for row in steps)}
    if not present:
        return None
    with _figure(4.6, 2.7) as (figure, axes):
        for colour, (key, name) in zip(_colours(), present.items(), strict=False):
            points = [(row["step"], row[key]) for row in steps if _is_number(row.get(key))]
            axes.plot(
                *zip(*points, strict=True), label=name, color=colour, marker="o" if len(points) < 30 else None, ms=3
            )
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(present) > 1:
            axes.legend()
        return _svg(figure, title)


def score_boxes(groups: Mapping[str, Sequence[float]], *, title: str) -> str | None:
    """Return one box (quartiles, whiskers at 5 and 95 %, a dot at the mean) a group, the first on top."""
    shown = {name: list(scores) for name, scores in groups.items() if scores}
    if not shown:
        return None
    with _figure(4.6, 0.9 + 0.42 * len(shown)) as (figure, axes):
        boxes = axes.boxplot(
            list(shown.values()),
            orientation="horizontal",
            whis=(5, 95),
            widths=0.55,
            patch_artist=True,
            showmeans=True,
            showfliers=False,
            meanprops={"marker": "o", "markerfacecolor": _INK, "markeredgecolor": _INK, "markersize": 4},
            medianprops={"color": _INK},
            whiskerprops={"color": _INK},
            capprops={"color": _INK},
        )
        for colour, box in zip(_colours(), boxes["boxes"], strict=False):
            box.set(facecolor=colour, alpha=0.75, edgecolor=_INK)
        axes.set_yticks(range(1, len(shown) + 1), [f"{name} ({len(scores)})" for name, scores in shown.items()])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("score of the reward model")
        return _svg(figure, title)


def win_rate_chart(rates: Mapping[str, Mapping[str, float]], *, title: str) -> str | None:
    """Return win rates with their 95 % intervals and the line of a draw."""
    if not rates:
        return None
    with _figure(4.6, 0.9 + 0.45 * len(rates)) as (figure, axes):
        axes.axvline(0.5, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        for row, (colour, entry) in enumerate(zip(_colours(), rates.values(), strict=False)):
            axes.plot([entry["ci_low"], entry["ci_high"]], [row, row], color=colour, linewidth=6, alpha=0.45)
            axes.plot([entry["rate"]], [row], "o", color=colour, ms=8)
        axes.set_yticks(range(len(rates)), [f"against {name}" for name in rates])
        axes.set_ylim(len(rates) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.grid(visible=False, axis="y")
        return _svg(figure, title)


def interval_chart(
    entries: Mapping[str, tuple[float, float, float]], *, title: str, line: float | None = None
) -> str | None:
    """Return one value with its interval a row, (value, low, high), and a line at `line`."""
    if not entries:
        return None
    with _figure(4.6, 0.9 + 0.42 * len(entries)) as (figure, axes):
        if line is not None:
            axes.axvline(line, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        for row, (colour, (value, low, high)) in enumerate(zip(_colours(), entries.values(), strict=False)):
            axes.plot([low, high], [row, row], color=colour, linewidth=6, alpha=0.45)
            axes.plot([value], [row], "o", color=colour, ms=8)
        axes.set_yticks(range(len(entries)), list(entries))
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        return _svg(figure, title)


def curves_chart(curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> str | None:
    """Return one curve over optimizer steps a name; None without any point."""
    shown = {name: points for name, points in curves.items() if points}
    if not shown:
        return None
    with _figure(4.6, 2.7) as (figure, axes):
        for colour, (name, points) in zip(_colours(), shown.items(), strict=False):
            axes.plot(*zip(*points, strict=True), label=name, color=colour)
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return _svg(figure, title)


def point_chart(points: Mapping[str, tuple[float, float]], *, title: str, x: str, y: str) -> str | None:
    """Return one named point (x, y) a system."""
    if not points:
        return None
    with _figure(4.6, 3.2) as (figure, axes):
        for colour, (name, place) in zip(_colours(), points.items(), strict=False):
            axes.plot(*place, "o", color=colour, ms=8)
            axes.annotate(name, place, xytext=(6, 4), textcoords="offset points", fontsize=8.5, color=_INK)
        axes.margins(x=0.25, y=0.15)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        return _svg(figure, title)


def share_chart(shares: Mapping[str, float], *, title: str) -> str | None:
    """Return one horizontal bar a source."""
    if not shares:
        return None
    with _figure(4.6, 0.8 + 0.4 * len(shares)) as (figure, axes):
        names = list(shares)
        bars = axes.barh(
            names,
            [shares[name] for name in names],
            height=0.6,
            color=[colour for colour, _ in zip(_colours(), names, strict=False)],
        )
        axes.bar_label(bars, [f" {shares[name]:.0%}" for name in names], color=_INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
        axes.grid(visible=False, axis="y")
        return _svg(figure, title)


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Any]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield figure, axes


def _svg(figure: Figure, title: str) -> str:
    # Over the whole figure: next to long labels the axes leave a title too little room.
    figure.suptitle(title, x=0.01, horizontalalignment="left", wrap=True)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace(_FAINT, "var(--faint)")
    # The page sets the size and the font; matplotlib's points would stay fixed on a small screen.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids must be unique on the page, which shows several charts.
    prefix = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    text = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    return re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{prefix}-\1"', text)


def _colours() -> Iterator[str]:
    while True:
        yield from PALETTE


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
