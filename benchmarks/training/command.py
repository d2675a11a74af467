"""Common parts of the commands of this package: options, sides, tables."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from benchmarks.common.machine import Machine, describe_machine, usable_cores
from benchmarks.common.results import Table, save_result
from benchmarks.training.cases import EFFORTS, Effort, Level
from benchmarks.training.measure import Comparison, Measured, Side, allowed_speed_up
from benchmarks.training.workload import Case

OURS = Side("wrpo", "benchmarks.training.ours", {"deepspeed": True, "zero_stage": 0})
PADDED = Side("padded", "benchmarks.training.padded")
TRL = Side("TRL", "benchmarks.training.trl_peer")
TRL_PRECOMPUTED = Side("TRL, reference precomputed", "benchmarks.training.trl_peer", {"precompute": True}, rounds=1)
_MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """Level of effort, and the clock."""

    level: Level
    processor_time: bool = False

    @property
    def effort(self) -> Effort:
        return EFFORTS[self.level]

    @property
    def clock(self) -> str:
        return "processor time, one thread" if self.processor_time else "wall clock"

    @property
    def suffix(self) -> str:
        """Return the suffix of the result's name. Only standard measurements by the wall clock go into the README."""
        level = "" if self.level is Level.STANDARD else f"-{self.level.value}"
        return f"{level}-processor-time" if self.processor_time else level

    def sides(self, *sides: Side) -> list[Side]:
        """Return the sides with their threads and clock."""
        if self.processor_time:
            return [replace(side, threads=1, options={**side.options, "processor_time": True}) for side in sides]
        return [replace(side, threads=usable_cores()) for side in sides]


def run_command(
    name: str,
    what: str,
    act: Callable[[Setting], Mapping[str, Any]],
    tables: Callable[[Mapping[str, Any]], list[Table]],
) -> None:
    """Parse the options, measure, save the result, and print the table."""
    parser = argparse.ArgumentParser(description=what)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quick", action="store_true", help="about a minute, to test that it runs")
    group.add_argument("--full", action="store_true", help="larger shapes, for a GPU or a long run")
    parser.add_argument(
        "--processor-time", action="store_true", help="count processor time on one thread: for a machine in use"
    )
    options = parser.parse_args()
    level = Level.QUICK if options.quick else Level.FULL if options.full else Level.STANDARD
    setting = Setting(level, processor_time=options.processor_time)
    machine = describe_machine()
    if machine.gpu is None:
        # Otherwise DeepSpeed, which Transformers imports, logs this in every process.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    figures = {"level": level.value, "clock": setting.clock, **act(setting)}
    path = save_result(f"{name}{setting.suffix}", machine, figures)
    show(machine, tables(figures))
    Console().print(f"saved {path}")


def show(machine: Machine, tables: Sequence[Table]) -> None:
    console = Console(width=170)
    console.print(machine.line)
    for table in tables:
        table.show(console)


def compare(
    cases: Sequence[Case], figures: Sequence[Mapping[str, Measured]], setting: Setting, peers: Sequence[Side]
) -> list[dict[str, Any]]:
    """Return the comparison of our side with each peer on each case."""
    return [
        Comparison(
            case=case.name,
            shape=case.text,
            peer=peer.name,
            triples_per_step=case.triples_per_step,
            ours=measured[OURS.name],
            theirs=measured[peer.name],
            allowed=allowed_speed_up(case, peer.name, setting.effort),
        ).to_json()
        for case, measured in zip(cases, figures, strict=True)
        for peer in peers
    ]


def comparison_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = [
        "case",
        "peer",
        "triples/s, ours",
        "triples/s, peer",
        "speed-up",
        "operations allow",
        "share",
        "with reference pass",
        "step memory, ours",
        "step memory, peer",
        "ratio",
    ]
    notes = [f"{case}: {shape}" for case, shape in {row["case"]: row["shape"] for row in rows}.items()]
    return Table(title, columns, [_cells(row) for row in rows], notes)


def _cells(row: Mapping[str, Any]) -> list[str]:
    ours, theirs = row["triples_per_second"]
    own_memory, peer_memory = row["step_memory_bytes"]
    return [
        row["case"],
        row["peer"],
        _rate(ours, row["step_seconds"][0]),
        _rate(theirs, row["step_seconds"][1]),
        f"{row['speed_up']:.2f}x",
        f"{row['allowed']:.2f}x",
        f"{row['share']:.0%}",
        f"{row['speed_up_with_reference']:.2f}x",
        "-" if own_memory is None else f"{own_memory / _MIB:.0f} MiB",
        "-" if peer_memory is None else f"{peer_memory / _MIB:.0f} MiB",
        "-" if row["memory_ratio"] is None else f"1/{1 / row['memory_ratio']:.1f}",
    ]


def _rate(rate: float, seconds: Sequence[float]) -> str:
    """Return the rate at the median step with its extremes."""
    median, low, high, _count = seconds
    return f"{rate:.3g} ({rate * median / high:.3g}..{rate * median / low:.3g})"
