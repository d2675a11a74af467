"""The judge stage against a bare loop of its HTTP client: `python -m benchmarks.judging`."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from benchmarks.common.machine import describe_machine, usable_cores
from benchmarks.common.process import ROOT, run_worker
from benchmarks.common.results import Table, save_result
from benchmarks.common.summary import Summary, alternating

NAME = "judging"
ITEMS = 3000
FLOOR = 500
"""Verdicts a second that the stage must reach."""
SIDES = ("stage", "loop")
_NOTE = """The stage also journals every reply, reads verdicts, and writes parts, scores and native files.
Stage, loop and server share the cores; libraries are imported before the clock starts."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and save; return 1 if the stage is slower than the floor."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judging", description=__doc__)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, action="append", help="default: 16 and 64")
    arguments = parser.parse_args(argv)
    machine = describe_machine()
    measured: dict[str, Any] = {"items": arguments.items, "figures": []}
    with stub_judge() as endpoint:
        for concurrency in arguments.concurrency or [16, 64]:
            rates = _rates(endpoint, items=arguments.items, rounds=arguments.rounds, concurrency=concurrency)
            measured["figures"].append({"concurrency": concurrency, "rates": rates})
    console = Console(width=160)
    for table in tables(measured):
        table.show(console)
    console.print(machine.line)
    save_result(NAME, machine, measured)
    return 0 if all(Summary.of(each["rates"]["stage"]).median >= FLOOR for each in measured["figures"]) else 1


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Return verdicts a second of both sides."""
    rows = []
    for figure in result["figures"]:
        stage, loop = (Summary.of(figure["rates"][side]) for side in SIDES)
        share = stage.median / loop.median
        rows.append((str(figure["concurrency"]), stage.text("", 0), loop.text("", 0), f"{share:.0%}"))
    title = f"Verdicts a second, {result['items']} questions of about 450 words, one server on the loopback"
    columns = ("in flight", "judge stage", "bare loop", "share")
    return [Table(title=title, columns=columns, rows=rows, notes=(_NOTE,))]


@contextlib.contextmanager
def stub_judge() -> Iterator[str]:
    """Run the server and yield its endpoint."""
    command = [sys.executable, "-m", "benchmarks.judging.server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        finally:
            server.stdin.close()


def _rates(endpoint: str, *, items: int, rounds: int, concurrency: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for side in alternating(SIDES, rounds):
        specification = {"side": side, "endpoint": endpoint, "items": items, "concurrency": concurrency}
        found = run_worker("benchmarks.judging.worker", specification, threads=usable_cores())
        if found["verdicts"] != found["requests"]:
            raise RuntimeError(f"{side}: {found['verdicts']} verdicts of {found['requests']} requests")
        rates[side].append(found["requests"] / found["seconds"])
    return rates


if __name__ == "__main__":
    raise SystemExit(main())
