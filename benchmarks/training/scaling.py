"""Scaling from one process to two, one thread each, on the same global batch: DeepSpeed against all-reduce.

`python -m benchmarks.training.scaling [--quick | --full]`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.common.results import Table
from benchmarks.training.cases import scaling
from benchmarks.training.command import OURS, PADDED, Setting, run_command
from benchmarks.training.measure import Side, measure

NAME = "training-scaling"
_MODES: tuple[tuple[str, Side, Mapping[str, Any]], ...] = (
    ("wrpo, ZeRO-1", OURS, {"deepspeed": True, "zero_stage": 1}),
    ("wrpo, ZeRO-3", OURS, {"deepspeed": True, "zero_stage": 3}),
    ("padded", PADDED, {}),
)


def _side(name: str, base: Side, options: Mapping[str, Any], world_size: int) -> Side:
    return replace(base, name=f"{name} x{world_size}", options=options, world_size=world_size, threads=1)


def act(setting: Setting) -> Mapping[str, Any]:
    if setting.processor_time:
        raise SystemExit("two processes are compared with one by the wall clock: leave --processor-time out")
    cases = scaling(setting.level)
    sides = [_side(name, base, options, world) for name, base, options in _MODES for world in (1, 2)]
    effort = replace(setting.effort, rounds=1, timed_steps=setting.effort.timed_steps + 1)
    (figures,) = measure(cases, sides, effort, memory=False)
    rows = []
    for name, *_ in _MODES:
        one, two = (figures[f"{name} x{world_size}"].seconds for world_size in (1, 2))
        rows.append(
            {
                "side": name,
                "step_seconds": [[one.median, one.low, one.high], [two.median, two.low, two.high]],
                "triples_per_second": [cases[0].triples_per_step / summary.median for summary in (one, two)],
                "efficiency": one.median / (2 * two.median),
            }
        )
    return {"case": cases[0].text, "rows": rows}


def tables(figures: Mapping[str, Any]) -> list[Table]:
    rows = [
        [
            row["side"],
            *(
                f"{rate:.3g} ({rate * median / high:.3g}..{rate * median / low:.3g})"
                for rate, (median, low, high) in zip(row["triples_per_second"], row["step_seconds"], strict=True)
            ),
            f"{row['efficiency']:.0%}",
        ]
        for row in figures["rows"]
    ]
    columns = ["side", "triples/s, 1 process", "triples/s, 2 processes", "efficiency"]
    return [Table("One process and two, one thread each", columns, rows, [f"mixed: {figures['case']}"])]


if __name__ == "__main__":
    run_command(NAME, __doc__ or "", act, tables)
