"""Part: a step of DPO next to TRL's DPOTrainer with the same model, tokens and optimizer, and a step of WRPO-DPO."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common.process import run_worker
from benchmarks.gpu.rows import Figures
from benchmarks.gpu.work import Work, part_main, rounded
from benchmarks.training.cases import Effort
from benchmarks.training.measure import DisagreementError, Side
from benchmarks.training.workload import Case, Plan, save_model

LOSS_TOLERANCE = 0.02
"""Relative, of the first step. Later ones are only reported: TRL computes under autocast, the engine with bfloat16
weights, and rounding grows from step to step."""
_TIMEOUT_S = 600
"""The part's own budget ends it earlier."""


def act(work: Work) -> None:
    options = {"precision": "bfloat16" if work.device.type == "cuda" else "float32"}
    triples = replace(work.case(), triples_per_step=4, triples_per_pass=2)
    pairs = replace(triples, num_responses=2)
    ours = Side("wrpo", "benchmarks.training.ours", {"deepspeed": True, "zero_stage": 1, **options})
    trl = Side("TRL", "benchmarks.training.trl_peer", options)
    sides = [
        ("TRL's DPOTrainer, DPO", trl, pairs),
        ("TRL's DPOTrainer, reference precomputed", replace(trl, options={**options, "precompute": True}), pairs),
        ("wrpo, DPO", ours, pairs),
        ("wrpo, WRPO-DPO", ours, triples),
    ]
    effort = work.pick(Effort(1, 2, 5), Effort(1, 1, 1))
    with tempfile.TemporaryDirectory(prefix="wrpo-bench-model-") as directory:
        save_model(Path(directory), work.size)
        expected: list[float] = []
        for name, side, case in sides:
            plan = Plan(case, directory, effort.warmup_steps, effort.timed_steps, measure_memory=True)
            work.rows.measure(
                name,
                lambda side=side, plan=plan: measure(side, plan, expected),  # type: ignore[misc]
            )


def measure(side: Side, plan: Plan, expected: list[float]) -> Figures:
    """Measure one side; `expected` are the first side's losses on pairs, and receives them from that side."""
    specification = {"each": [{"plan": plan.to_json(), **side.options}]}
    (answer,) = run_worker(side.module, specification, threads=1, timeout_s=_TIMEOUT_S)["each"]
    difference = None
    if plan.case.num_responses == 2:
        if not expected:
            expected.extend(answer["losses"])
        difference = largest_difference(side.name, answer["losses"], expected)
    return figures_of(answer, plan.case, difference)


def largest_difference(name: str, losses: list[float], expected: list[float]) -> float:
    """Return the largest relative difference of a step's losses; raise DisagreementError if the first step's differ."""
    differences = [abs(own - other) / abs(other) for own, other in zip(losses, expected, strict=True)]
    if not differences[0] <= LOSS_TOLERANCE:
        raise DisagreementError(f"{name} has the losses {losses}, the first side {expected}")
    return max(differences)


def figures_of(answer: dict[str, Any], case: Case, difference: float | None) -> Figures:
    seconds = sum(answer["step_seconds"]) / len(answer["step_seconds"])
    memory = answer["step_memory"]
    return rounded(
        {
            "step_ms": seconds * 1e3,
            "rows_per_s": case.triples_per_step / seconds,
            "peak_mib": None if memory is None else memory / 2**20,
            "loss_difference": difference,
        }
    )


if __name__ == "__main__":
    part_main(act)
