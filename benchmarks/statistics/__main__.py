"""`python -m benchmarks.statistics`: intervals and differences of 23 systems on 3 benchmarks, 10,000 resamples."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.common.machine import describe_machine
from benchmarks.common.results import Table, save_result
from wrpo_engine.comparison.columns import Judged, Sampling, column_of
from wrpo_engine.comparison.length_control import LengthControl, Rows
from wrpo_engine.comparison.statistics import RESAMPLES

NAME = "statistics"
SYSTEMS = 23
LIMIT_S = 30.0
ALPACA_ITEMS, ARENA_ITEMS, MT_ITEMS = 805, 500, 80
_SHARE = 50
"""The plain refit runs this share of the resamples only."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics", description=__doc__)
    parser.add_argument("--systems", type=int, default=SYSTEMS)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    arguments = parser.parse_args(argv)
    console, machine = Console(), describe_machine()
    figures = [measure(case, arguments.systems, arguments.resamples) for case in CASES]
    measured = {"systems": arguments.systems, "resamples": arguments.resamples, "figures": figures}
    for table in tables(measured):
        table.show(console)
    console.print(machine.line)
    save_result(NAME, machine, measured)
    return 0


def alpaca(systems: int) -> tuple[dict[str, Judged], Rows | None]:
    """Return outcomes with length control, and the rows of a regulariser of the published size."""
    rng = np.random.default_rng(1)
    difficulty = rng.normal(0, 0.6, ALPACA_ITEMS)
    made = {}
    for system in range(systems):
        length = np.tanh(rng.normal(0.3, 1, ALPACA_ITEMS))
        features = np.stack([length, difficulty, np.ones(ALPACA_ITEMS)], axis=1)
        logits = features @ [0.8, 1.0, -0.5 + system / 20] + rng.normal(size=ALPACA_ITEMS)
        made[f"s{system}"] = _judged(1 / (1 + np.exp(-logits)), np.ones(ALPACA_ITEMS), features)
    rows = 2 * ALPACA_ITEMS
    regulariser = np.stack([np.tanh(rng.normal(size=rows)), np.tile(difficulty, 2), np.zeros(rows)], axis=1)
    return made, Rows(features=regulariser, outcomes=rng.random(rows), weights=np.full(rows, 0.1))


def arena(systems: int) -> tuple[dict[str, Judged], Rows | None]:
    """Return weighted outcomes of two games an item."""
    rng = np.random.default_rng(2)
    return {
        f"s{system}": _judged(rng.random(ARENA_ITEMS), rng.choice([2.0, 4.0, 6.0], ARENA_ITEMS), None)
        for system in range(systems)
    }, None


def mt_bench(systems: int) -> tuple[dict[str, Judged], Rows | None]:
    """Return outcomes of two turns an item."""
    rng = np.random.default_rng(3)
    return {
        f"s{system}": _judged(rng.uniform(1, 10, MT_ITEMS), np.full(MT_ITEMS, 2.0), None) for system in range(systems)
    }, None


CASES: tuple[Callable[[int], tuple[dict[str, Judged], Rows | None]], ...] = (alpaca, arena, mt_bench)


def measure(
    case: Callable[[int], tuple[dict[str, Judged], Rows | None]], systems: int, resamples: int
) -> dict[str, Any]:
    """Return the seconds of one column, and of a plain refit of each resample where the case has length control."""
    judged, regulariser = case(systems)
    sampling = Sampling(seed=1, resamples=resamples, regulariser=regulariser)
    started, busy = time.perf_counter(), time.process_time()
    column = column_of({name: [each] for name, each in judged.items()}, baseline="s0", sampling=sampling)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
    first = next(iter(judged.values()))
    return {
        "case": case.__name__,
        "items": len(column.common),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "plain_cpu_seconds": None if regulariser is None else systems * _plain(first, regulariser, resamples),
    }


def _plain(judged: Judged, regulariser: Rows, resamples: int) -> float:
    """Return the processor's seconds of one system's refits one by one, from a share of them."""
    assert judged.features is not None
    rng = np.random.default_rng(4)
    count = max(1, resamples // _SHARE)
    started = time.process_time()
    for _ in range(count):
        chosen = rng.integers(0, len(judged.items), len(judged.items))
        LengthControl(features=judged.features[chosen], outcomes=judged.values[chosen], regulariser=regulariser).score()
    return (time.process_time() - started) * resamples / count


def tables(result: Mapping[str, Any]) -> list[Table]:
    names = {"alpaca": "AlpacaEval-2, length control refitted", "arena": "Arena-Hard, weighted", "mt_bench": "MT-Bench"}
    rows = [
        (
            names[figure["case"]],
            f"{figure['items']}",
            f"{figure['seconds']:.1f}",
            f"{figure['cpu_seconds']:.1f}",
            "-" if figure["plain_cpu_seconds"] is None else f"{figure['plain_cpu_seconds']:.0f}",
        )
        for figure in result["figures"]
    ]
    total, busy = (sum(figure[name] for figure in result["figures"]) for name in ("seconds", "cpu_seconds"))
    table = Table(
        title=f"Statistics of {result['systems']} systems, {result['resamples']:,} resamples",
        columns=["benchmark", "items", "s", "CPU s", "one refit at a time, CPU s"],
        rows=[*rows, ("all", "", f"{total:.1f}", f"{busy:.1f}", "")],
        notes=[
            "Intervals of every system, paired differences from the first one, Holm, detectable differences.",
            f"Target: {LIMIT_S:g} s in all. Refits one at a time are extrapolated from 2 % of one system's resamples.",
        ],
    )
    return [table]


def _judged(values: Any, weights: Any, features: Any) -> Judged:
    return Judged(
        items=tuple(f"q{index:04}" for index in range(len(values))), values=values, weights=weights, features=features
    )


if __name__ == "__main__":
    raise SystemExit(main())
