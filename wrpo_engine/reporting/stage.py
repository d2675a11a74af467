"""The report stage: one self-contained HTML file about everything upstream."""

from __future__ import annotations

from pathlib import Path

from wrpo_engine import __version__
from wrpo_engine.config import ReportParams
from wrpo_engine.reporting.collect import collect
from wrpo_engine.reporting.render import render
from wrpo_engine.stage import StageContext, StageResult

REPORT_NAME = "report.html"


def run(ctx: StageContext) -> StageResult:
    """Collect the results of all inputs and commit report.html."""
    params = ctx.config.params
    assert isinstance(params, ReportParams)
    data = collect(
        {role: ctx.input(role) for role in sorted(ctx.config.inputs)},
        title=params.title,
        experiment=ctx.config.experiment,
        engine_version=__version__,
        sample_answers=params.sample_answers,
    )
    ctx.stop.raise_if_requested()
    page = render(data)
    ctx.output.publish(REPORT_NAME, lambda path: _write(path, page))
    metrics = {"stages": float(len(data.stages)), "bytes": float(len(page.encode()))}
    ctx.output.commit(files=[REPORT_NAME], metrics=metrics)
    ctx.progress.update(1, 1, message=str(ctx.output.directory / REPORT_NAME))
    return StageResult(rows=len(data.stages), metrics=metrics)


def _write(path: Path, page: str) -> None:
    path.write_text(page, encoding="utf-8")
