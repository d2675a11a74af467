"""The judge stage: a judge's verdicts on one system's answers to one benchmark, in parts of questions.

No question is asked twice: published parts, and the journals of earlier attempts, are looked up before a request.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence

from wrpo_engine.artifacts.parts import PARTS, own_parts, part_name, pending_parts
from wrpo_engine.contract.evaluation import JudgeParams
from wrpo_engine.judging.cell import Cell, load_inputs, make_cell
from wrpo_engine.judging.decision import Cells, Decided, known_decision, with_protocol
from wrpo_engine.judging.inquiry import Inquiry, Parts
from wrpo_engine.judging.results import commit_when_complete
from wrpo_engine.stage import StageContext, StageResult


def run(ctx: StageContext) -> StageResult:
    """Ask the questions of this shard's pending parts, and commit once all parts of all shards are there."""
    params = ctx.config.params
    assert isinstance(params, JudgeParams)
    cells = cells_of(ctx, params)
    decided = known_decision(ctx, params, cells)
    latencies_s: list[float] = []
    written = 0
    if decided is None or pending_parts(ctx, part_names(cells(decided))):
        decided, written = _ask(ctx, params, cells, latencies_s)
    metrics = commit_when_complete(ctx, with_protocol(params, decided), cells(decided), part_names(cells(decided)))
    return StageResult(rows=written, metrics=metrics | _latency(latencies_s))


def cells_of(ctx: StageContext, params: JudgeParams) -> Cells:
    """Read the stage's inputs, and return what makes its cell of them for a decided protocol."""
    inputs = load_inputs(ctx, params)

    @functools.cache
    def cell(decided: Decided) -> Cell:
        return make_cell(inputs, with_protocol(params, decided), ctx.config.output)

    return cell


def part_names(cell: Cell) -> list[str]:
    """Return the names of the parts of all shards."""
    return [part_name(index) for index in range(len(cell.parts))]


def _ask(ctx: StageContext, params: JudgeParams, cells: Cells, latencies_s: list[float]) -> tuple[Decided, int]:
    """Ask all that is pending; return the protocol and the number of verdicts."""
    total = pending = 0

    def pending_of(cell: Cell) -> Parts:
        nonlocal total, pending
        parts = dict(zip(part_names(cell), cell.parts, strict=True))
        todo = {name: parts[name] for name in pending_parts(ctx, list(parts))}
        total = sum(len(part) for part in own_parts(ctx, cell.parts))
        pending = sum(map(len, todo.values()))
        return todo

    def show(count: int) -> None:
        ctx.progress.update(total - pending + count, total)

    with Inquiry(
        ctx=ctx, judge=params, published_parts=lambda: ctx.output.published(PARTS), latencies_s=latencies_s
    ) as inquiry:
        return inquiry.ask(cells, pending_of, show)


def _latency(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return the latency of this attempt's requests. Not part of the artifact, which does not depend on time."""
    if len(latencies_s) < 2:
        return {}
    percentiles = statistics.quantiles(latencies_s, n=100, method="inclusive")
    return {f"latency_p{number}_ms": 1000.0 * percentiles[number - 1] for number in (50, 95, 99)}
