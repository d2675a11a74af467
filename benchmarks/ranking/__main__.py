"""PairRM's ranking against a loop over single pairs: `python -m benchmarks.ranking`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from benchmarks.common.machine import describe_machine, usable_cores
from benchmarks.common.process import run_worker
from benchmarks.common.results import Table, save_result
from benchmarks.ranking.cases import CASES, Case

NAME = "ranking"
TOLERANCE = 1e-5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranking", description=__doc__)
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    chosen = [case for case in CASES if not arguments.case or case.name in arguments.case]
    machine = describe_machine()
    cores = usable_cores()
    measured: dict[str, Any] = {
        "cores": cores,
        "figures": [_run(case, arguments.rounds, threads=1, wall_clock=False) for case in chosen],
        "figures_all_cores": [_run(case, arguments.rounds, threads=cores, wall_clock=True) for case in chosen],
    }
    console = Console(width=160)
    for table in tables(measured):
        table.show(console)
    console.print(machine.line)
    save_result(NAME, machine, measured)
    figures = measured["figures"] + measured["figures_all_cores"]
    return 0 if all(figure["largest_difference"] <= TOLERANCE for figure in figures) else 1


def tables(result: Mapping[str, Any]) -> list[Table]:
    return [
        _table("Processor time of one thread", result["figures"]),
        _table(f"Wall clock on {result['cores']} cores", result["figures_all_cores"]),
    ]


def _table(title: str, figures: Sequence[Mapping[str, Any]]) -> Table:
    cases = {case.name: case for case in CASES}
    return Table(
        title=f"{title}, all ordered pairs, float32",
        columns=(
            "case",
            "model",
            "members",
            "tokens a pair",
            "loop s",
            "ranker s",
            "times",
            "times published",
            "padding",
            "difference",
        ),
        rows=[_row(cases[figure["case"]], figure) for figure in figures],
    )


def _row(case: Case, figure: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        case.name,
        f"{case.layers} x {case.hidden}",
        str(case.members),
        f"{figure['tokens'] / figure['pairs']:.0f}",
        f"{figure['loop_s']:.2f}",
        f"{figure['ranker_s']:.2f}",
        f"{statistics.median(figure['speedups']):.2f}",
        f"{figure['published_speedup']:.0f}",
        f"{figure['padding_share']:.1%}",
        f"{figure['largest_difference']:.0e}",
    )


def _run(case: Case, rounds: int, *, threads: int, wall_clock: bool) -> dict[str, Any]:
    specification = {"case": case.name, "rounds": rounds, "threads": threads, "wall_clock": wall_clock}
    return run_worker("benchmarks.ranking.worker", specification, threads=threads, timeout_s=1200)


if __name__ == "__main__":
    raise SystemExit(main())
