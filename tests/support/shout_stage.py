"""A stage that other people might write: one definition, and the two functions it names.

`support.extensions.install` makes a distribution of this file. Nothing of the project names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from wrpo_engine.config import StageParams
from wrpo_engine.contract.definition import Image, Per, ReportPlace, Section, Shape, StageDefinition

if TYPE_CHECKING:
    from wrpo_engine.stage import StageContext, StageResult
    from wrpo_operator.plan.builder import Graph


class ShoutParams(StageParams):
    """Write the SFT prompts in capitals."""

    stage: Literal["shout"] = "shout"
    marks: int = Field(default=1, ge=0)


SHOUT = StageDefinition(
    params=ShoutParams,
    run="shout_stage:run",
    wiring="shout_stage:wire",
    role="shouts",
    inputs=("prompts",),
    per=Per.EXPERIMENT,
    shape=Shape.INDEXED_JOB,
    image=Image.SAMPLER,
    section=Section(name="shout", resources="The pods that shout.", deadlines="Shouting."),
    uses_reward=True,
    weight=17,
    report=ReportPlace(column=1, counts="shouts", key_metrics=("loudness",)),
    summary="write the prompts in capitals",
    makes="the SFT prompts in capitals",
    reuse=None,
)


def wire(graph: Graph) -> None:
    """Shout in experiments with a report, which shows it."""
    from wrpo_operator.plan.model import StageId
    from wrpo_operator.plan.wiring import PREPARE

    if graph.spec.report.enabled:
        graph.add(StageId("shout"), ShoutParams(marks=3), inputs=[PREPARE])


def run(ctx: StageContext) -> StageResult:
    """Write shouts.txt, one line a prompt."""
    import polars as pl

    from wrpo_engine.stage import StageResult

    params = ctx.config.params
    assert isinstance(params, ShoutParams)
    prompts = pl.read_parquet(ctx.input("prompts").file("sft.parquet"))["prompt"]
    lines = [f"{prompt.upper()}{'!' * params.marks}\n" for prompt in prompts]

    def write(path: Path) -> None:
        path.write_text("".join(lines), encoding="utf-8")

    ctx.output.publish("shouts.txt", write)
    metrics = {"loudness": float(params.marks)}
    ctx.output.commit(files=["shouts.txt"], rows={"shouts.txt": len(lines)}, metrics=metrics)
    return StageResult(rows=len(lines), metrics=metrics)
