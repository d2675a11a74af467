"""Headline figures of an experiment's final model, from the metrics of its evaluation. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

_FORMS = {"lc": "LC", "lc-minimal": "LC-minimal", "sc": "SC", "score": "score"}
"""Name of a metric -> name of the figure; the first one that there is, is the headline."""
_METRIC = re.compile(r"^(?P<name>[a-z-]+)_(?P<benchmark>[a-z0-9-]+)_(?P<judge>[a-z0-9-]+)(_(?P<side>low|high))?$")
_OWN = "the judge is a reward that trained the model"


def headlines(metrics: Mapping[str, float], *, wide: bool = False) -> Iterator[str]:
    """Yield one line for each benchmark and judge: the figure with its 95 % interval.

    `metrics` are those of the stage evaluate (`wrpo_engine.evaluation.tables.metrics_of`). `wide` adds the score
    without length control and the share of invalid verdicts.
    """
    columns: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for metric, value in metrics.items():
        if found := _METRIC.match(metric):
            side = f"_{found['side']}" if found["side"] else ""
            columns[found["benchmark"], found["judge"]][found["name"] + side] = value
    for (benchmark, judge), figures in sorted(columns.items()):
        name = next((name for name in _FORMS if name in figures), None)
        if name is None:
            continue
        low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
        interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
        notes = [f"score {figures['score']:.4g}"] if wide and name != "score" and "score" in figures else []
        notes += [f"invalid verdicts {figures['invalid']:.1%}"] if wide and "invalid" in figures else []
        notes += [_OWN] if figures.get("own") else []
        more = f" ({'; '.join(notes)})" if notes else ""
        yield f"{benchmark}, judge {judge}: {_FORMS[name]} {figures[name]:.4g}{interval}{more}"
