"""Step time and memory of SFT with the fusion loss (10 ids a token) against SFT.

`python -m benchmarks.training.fusion [--quick | --full]`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.common.results import Table
from benchmarks.training.cases import large_vocabulary, shapes
from benchmarks.training.command import Setting, run_command
from benchmarks.training.measure import Measured, Side, measure

NAME = "training-fusion"
FUSED = Side("fusion", "benchmarks.training.sft_side", {"fused": True})
PLAIN = Side("SFT", "benchmarks.training.sft_side", {"fused": False})
_MIB = 2**20


def act(setting: Setting) -> Mapping[str, Any]:
    rows: list[dict[str, Any]] = []
    for cases in (shapes(setting.level), large_vocabulary(setting.level)):
        single = [replace(case, num_responses=1) for case in cases]
        found = measure(single, setting.sides(FUSED, PLAIN), setting.effort, memory=True)
        rows += [_row(case.name, measured) for case, measured in zip(single, found, strict=True)]
    return {"fusion": rows}


def _row(case: str, measured: Mapping[str, Measured]) -> dict[str, Any]:
    fused, plain = measured[FUSED.name], measured[PLAIN.name]
    return {
        "case": case,
        "step_seconds": [fused.seconds.median, plain.seconds.median],
        "time_ratio": fused.seconds.median / plain.seconds.median,
        "step_memory_bytes": [fused.memory_bytes, plain.memory_bytes],
        "memory_ratio": (fused.memory_bytes or 0) / (plain.memory_bytes or 1),
    }


def tables(figures: Mapping[str, Any]) -> list[Table]:
    columns = ["case", "step, fusion", "step, SFT", "ratio", "step memory, fusion", "step memory, SFT", "ratio"]
    cells = [
        [
            row["case"],
            *(f"{seconds * 1e3:.0f} ms" for seconds in row["step_seconds"]),
            f"{row['time_ratio']:.2f}",
            *(f"{memory / _MIB:.0f} MiB" for memory in row["step_memory_bytes"]),
            f"{row['memory_ratio']:.2f}",
        ]
        for row in figures["fusion"]
    ]
    return [Table("SFT with the fusion loss against SFT", columns, cells)]


if __name__ == "__main__":
    run_command(NAME, __doc__ or "", act, tables)
