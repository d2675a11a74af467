"""Step time and memory at three shapes: against the plain padded recipe on triples, against TRL's DPOTrainer on pairs.

`python -m benchmarks.training.compare [--quick | --full]`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.common.results import Table
from benchmarks.training.cases import shapes
from benchmarks.training.command import (
    OURS,
    PADDED,
    TRL,
    TRL_PRECOMPUTED,
    Setting,
    compare,
    comparison_table,
    run_command,
)
from benchmarks.training.measure import measure

NAME = "training-compare"


def act(setting: Setting) -> Mapping[str, Any]:
    triples = shapes(setting.level)
    pairs = [replace(case, num_responses=2) for case in triples]
    on_triples = measure(triples, setting.sides(OURS, PADDED), setting.effort, memory=True)
    on_pairs = measure(pairs, setting.sides(OURS, TRL, TRL_PRECOMPUTED), setting.effort, memory=True)
    return {
        "triples": compare(triples, on_triples, setting, [PADDED]),
        "pairs": compare(pairs, on_pairs, setting, [TRL, TRL_PRECOMPUTED]),
    }


def tables(figures: Mapping[str, Any]) -> list[Table]:
    return [
        comparison_table("WRPO-DPO on triples", figures["triples"]),
        comparison_table("DPO on pairs", figures["pairs"]),
    ]


if __name__ == "__main__":
    run_command(NAME, __doc__ or "", act, tables)
