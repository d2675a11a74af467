"""`python -m benchmarks.scoring`: reward scoring against one response at a time."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from benchmarks.common.machine import describe_machine
from benchmarks.common.process import run_worker
from benchmarks.common.results import Table, save_result
from benchmarks.scoring.cases import CASES, Case

NAME = "scoring"
TOLERANCE = 1e-5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__)
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    console = Console()
    machine = describe_machine()
    chosen = [case for case in CASES if not arguments.case or case.name in arguments.case]
    figures = [_run(case, arguments.rounds, arguments.threads) for case in chosen]
    measured = {"cases": [case.name for case in chosen], "figures": figures}
    for table in tables(measured):
        table.show(console)
    console.print(machine.line)
    save_result(NAME, machine, measured)
    return 0 if all(figure["largest_difference"] <= TOLERANCE for figure in figures) else 1


def tables(result: Mapping[str, Any]) -> list[Table]:
    by_name = {case.name: case for case in CASES}
    cases = [by_name[name] for name in result["cases"]]
    table = Table(
        title="Processor seconds, five responses a prompt, float32",
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
            for case, figure in zip(cases, result["figures"], strict=True)
        ],
        notes=("Token ratio: tokens of the loop for each that the scorer computes; large models come close to it.",),
    )
    return [table]


def _run(case: Case, rounds: int, threads: int) -> dict[str, Any]:
    specification = {"case": case.name, "rounds": rounds, "threads": threads}
    return run_worker("benchmarks.scoring.worker", specification, threads=threads, timeout_s=1200)


if __name__ == "__main__":
    raise SystemExit(main())
