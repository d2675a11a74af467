"""`python -m benchmarks.curation`: curate 3 million source responses and those of the target."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.machine import describe_machine
from benchmarks.common.process import run_worker
from benchmarks.common.results import RESULTS, Table, save_result
from benchmarks.curation.data import COMPLETE, Size, size_of

NAME = "curation"
PAPER_ROWS = 3_000_000
"""10 sources x 60,000 prompts x 5 (arXiv:2412.03187)."""
PAIRINGS = ("WRPO", "WithinSource", "BestWorst")
LIMIT_S = 600
LIMIT_GIB = 4.0
_BYTES_PER_RESPONSE = 1400
"""Bytes of data on disk, with a margin."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curation", description=__doc__)
    parser.add_argument("--rows", type=int, default=PAPER_ROWS, help="responses of all sources together")
    parser.add_argument("--sources", type=int, default=10)
    parser.add_argument("--pairing", choices=PAIRINGS, action="append", help="default: WRPO")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=RESULTS / "curation-data", help="where the data are kept")
    arguments = parser.parse_args(argv)
    console = Console()
    machine = describe_machine()
    size = size_of(arguments.rows, arguments.sources)
    root = arguments.data.resolve() / f"{size.prompts}x{size.sources}"
    made = prepare(root, size, console)
    figures = []
    for pairing in arguments.pairing or ["WRPO"]:
        specification = {"root": str(root), "prompts": size.prompts, "sources": size.sources, "pairing": pairing}
        environ = {"POLARS_MAX_THREADS": str(arguments.threads)}
        result = run_worker(
            "benchmarks.curation.worker", specification, threads=arguments.threads, timeout_s=3600, environ=environ
        )
        figures.append({"pairing": pairing, **result})
    measured = {"data": made, "figures": figures}
    for table in tables(measured):
        table.show(console)
    console.print(machine.line)
    save_result(NAME, machine, measured)
    return 0


def prepare(root: Path, size: Size, console: Console) -> dict[str, Any]:
    """Create the data unless they exist; return their description."""
    marker = root / COMPLETE
    if not marker.exists():
        needed = size.responses * _BYTES_PER_RESPONSE
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
        if free < 2 * needed:
            raise SystemExit(f"{root} has {free / 2**30:.1f} GiB left, twice {needed / 2**30:.1f} GiB are needed")
        console.print(f"making {size.responses:,} responses in {root}; this is done once")
        specification = {"root": str(root), "prompts": size.prompts, "sources": size.sources}
        run_worker("benchmarks.curation.data", specification, threads=2, timeout_s=7200)
    made: dict[str, Any] = json.loads(marker.read_text())
    return made


def tables(result: Mapping[str, Any]) -> list[Table]:
    made = result["data"]
    rows = [
        (
            figure["pairing"],
            f"{figure['rows']:,}",
            f"{figure['seconds']:.0f}",
            f"{figure['cpu_seconds']:.0f}",
            f"{made['responses'] / figure['seconds']:,.0f}",
            f"{figure['peak_bytes'] / 2**30:.2f}",
            f"{figure['load_before']:.1f}-{figure['load_after']:.1f}",
        )
        for figure in result["figures"]
    ]
    gib = made["text_bytes"] / 2**30
    table = Table(
        title=f"Curation of {made['responses']:,} responses ({made['prompts']:,} prompts, {gib:.1f} GiB of text)",
        columns=["pairing", "rows made", "s", "CPU s", "responses/s", "peak RSS, GiB", "load average"],
        rows=rows,
        notes=[
            "The whole stage: reading and verifying (sha256) every part, choosing, writing, manifest.",
            f"Peak RSS is the whole process's. Target at the paper's size: {LIMIT_S} s and {LIMIT_GIB:g} GiB.",
        ],
    )
    return [table]


if __name__ == "__main__":
    raise SystemExit(main())
