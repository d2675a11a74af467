"""Reward scoring against a loop over single responses: `python -m benchmarks.scoring`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from benchmarks.common.machine import describe_machine, usable_cores
from benchmarks.common.process import run_worker
from benchmarks.common.results import Table, save_result
from benchmarks.scoring.cases import CASES, Case

NAME = "scoring"
TOLERANCE = 1e-5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__)
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    console = Console(width=160)
    machine = describe_machine()
    chosen = [case for case in CASES if not arguments.case or case.name in arguments.case]
    cores = usable_cores()
    measured: dict[str, Any] = {
        "cases": [case.name for case in chosen],
        "cores": cores,
        "figures": [_run(case, arguments.rounds, threads=1, wall_clock=False) for case in chosen],
        "figures_all_cores": [_run(case, arguments.rounds, threads=cores, wall_clock=True) for case in chosen],
    }
    figures = measured["figures"] + measured["figures_all_cores"]
    for table in tables(measured):
        table.show(console)
    console.print(machine.line)
    save_result(NAME, machine, measured)
    return 0 if all(figure["largest_difference"] <= TOLERANCE for figure in figures) else 1


def tables(result: Mapping[str, Any]) -> list[Table]:
    by_name = {case.name: case for case in CASES}
    cases = [by_name[name] for name in result["cases"]]
    return [
        _table("Processor time of one thread", cases, result["figures"]),
        _table(f"Wall clock on {result['cores']} cores", cases, result["figures_all_cores"]),
    ]


def _table(title: str, cases: Sequence[Case], figures: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        title=f"{title}, five responses a prompt, float32",
        columns=("case", "model", "prompt", "response", "loop s", "scorer s", "times", "token ratio", "difference"),
        rows=[
            (
                case.name,
                f"{case.layers} x {case.hidden}",
                "-".join(map(str, case.prompt_tokens)),
                "-".join(map(str, case.response_tokens)),
                f"{figure['loop_s']:.2f}",
                f"{figure['scorer_s']:.2f}",
                f"{statistics.median(figure['speedups']):.2f}",
                f"{figure['tokens'] / figure['computed_tokens']:.2f}",
                f"{figure['largest_difference']:.0e}",
            )
            for case, figure in zip(cases, figures, strict=True)
        ],
        notes=("Token ratio: tokens of the loop for each that the scorer computes; large models come close to it.",),
    )


def _run(case: Case, rounds: int, *, threads: int, wall_clock: bool) -> dict[str, Any]:
    specification = {"case": case.name, "rounds": rounds, "threads": threads, "wall_clock": wall_clock}
    return run_worker("benchmarks.scoring.worker", specification, threads=threads, timeout_s=1200)


if __name__ == "__main__":
    raise SystemExit(main())
