"""Rendering of the data as one HTML page. The template engine escapes all text of prompts, models and users."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from wrpo_engine.reporting import charts
from wrpo_engine.reporting.benchmarks import figures_of, value_text, view_of
from wrpo_engine.reporting.collect import ReportData, StageView, place_of
from wrpo_engine.reporting.page import environment

_REWARD_CHARTS = ("win_rates", "evaluated", "sampled", "shares")
_TRAINING_CHARTS = ("sft_loss", "loss", "margins", "alpha", "accuracy")
_MARGINS = {"margin_source": "source against rejected", "margin_target": "target against rejected"}


def render(data: ReportData) -> str:
    """Return the page."""
    templates = environment()
    templates.filters["number"] = number
    templates.filters["duration"] = duration
    templates.filters["percent"] = lambda value: f"{value:.1%}"
    templates.filters["score"] = value_text
    made = {name: Markup(svg) for name, svg in figures(data).items()}  # noqa: S704 (matplotlib escapes its text)
    return templates.get_template("report.html.j2").render(
        data=data,
        columns=columns(data.stages),
        benchmarks=view_of(data.benchmarks) if data.benchmarks is not None else None,
        benchmark_charts=[Markup(svg) for svg in figures_of(data.benchmarks)] if data.benchmarks else [],  # noqa: S704
        reward_charts=[made[name] for name in _REWARD_CHARTS if name in made],
        training_charts=[made[name] for name in _TRAINING_CHARTS if name in made],
        key_metrics=key_metrics,
        counts=counts,
        to_json=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
        losses=[(stage.name, reason, count) for stage in data.stages for reason, count in stage.losses],
    )


def figures(data: ReportData) -> dict[str, str]:
    """Return the charts for which there are data, by name."""
    evaluation: Mapping[str, Any] = data.evaluation or {}
    label = (evaluation.get("labels") or ["the last model"])[-1]
    made = {
        "win_rates": charts.win_rate_chart(evaluation.get("win_rates") or {}, title=f"Win rate of {label}"),
        "evaluated": charts.score_boxes(data.evaluated_scores, title="Held-out prompts"),
        "sampled": charts.score_boxes(data.sampled_scores, title="Training prompts, all samples"),
        "shares": charts.share_chart(data.source_share, title="Sources of the preferred response"),
        "loss": charts.line_chart(data.train_steps, {"loss": "loss"}, title="Preference training: loss"),
        "margins": _margins(data),
        "alpha": charts.line_chart(data.train_steps, {"alpha": "alpha"}, title="Weight of the source response (alpha)"),
        "accuracy": charts.line_chart(
            data.train_steps,
            {
                "accuracy_source": "source above rejected",
                "accuracy_target": "target above rejected",
                "accuracy": "chosen above rejected",
            },
            title="Share of triples ranked right",
        ),
        "sft_loss": charts.line_chart(data.sft_steps, {"loss": "loss"}, title="SFT: loss"),
    }
    return {name: svg for name, svg in made.items() if svg is not None}


def _margins(data: ReportData) -> str | None:
    has_source = any("margin_source" in row for row in data.train_steps)
    series = _MARGINS if has_source else {"margin": "chosen against rejected"}
    return charts.line_chart(data.train_steps, series, title="Reward margins")


def columns(stages: list[StageView]) -> list[list[StageView]]:
    """Return the stages as columns of the pipeline picture."""
    return [
        [stage for stage in stages if stage.column == place] for place in sorted({stage.column for stage in stages})
    ]


def key_metrics(stage: StageView) -> list[tuple[str, float]]:
    """Return the few metrics that the pipeline picture shows of a stage."""
    place = place_of(stage.name)
    wanted = place.key_metrics if place is not None else ()
    return [(name.replace("_", " "), stage.metrics[name]) for name in wanted if name in stage.metrics]


def counts(stage: StageView) -> str:
    """Return what the number of rows of a stage counts."""
    place = place_of(stage.name)
    return place.counts if place is not None else "rows"


def number(value: float) -> str:
    """Return a number for people: whole ones with thousands separated, others with four digits that count."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Return a time for people."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
