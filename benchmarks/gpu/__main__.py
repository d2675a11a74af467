"""All that only a GPU shows, in at most 20 minutes on one card: `python -m benchmarks.gpu`.

Every part runs in a separate process with a time budget. A part or case that fails is a row with its error.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.machine import Machine, describe_machine, usable_cores
from benchmarks.common.process import WorkerError, run_worker
from benchmarks.common.results import RESULTS, save_result
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.report import table, tables
from benchmarks.gpu.rows import LOG, Row, read_rows

__all__ = ["NAME", "main", "run_part", "tables"]

NAME = "gpu"
QUICK_NAME = "quick-gpu"
"""Not a name that benchmarks/README.md takes figures from."""
_LOG_LENGTH = 20_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 if all cases have figures, 1 if one failed or there is no GPU, 2 for wrong options."""
    options = _options(argv)
    console = Console(width=200)
    machine = describe_machine()
    if machine.gpu is None and not options.quick:
        console.print("There is no CUDA device. Run this on a machine with one, or with --quick at toy sizes.")
        return 1
    chosen = [part for part in PARTS if not options.part or part.name in options.part]
    measured: dict[str, Any] = {}
    console.print(machine.line)
    for part in chosen:
        console.print(f"{part.name}: {part.what} (at most {part.budget_s} s)")
        measured[part.name] = run_part(part, quick=options.quick, machine=machine)
        table(part, [Row.from_json(row) for row in measured[part.name]["rows"]]).show(console)
    figures = {"is_toy": options.quick, "parts": measured}
    path = _save(options.out, machine, figures, quick=options.quick)
    console.print(f"saved {path}")
    return 1 if any("error" in row for part in measured.values() for row in part["rows"]) else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {part.name:12} {part.what}; {part.budget_s} s" for part in PARTS),
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--part", action="append", choices=names, metavar="NAME", help="run this part; repeatable")
    parser.add_argument("--quick", action="store_true", help="toy sizes, also on a CPU: tests that all parts run")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"JSON file (default: {RESULTS / (NAME + '.json')})")
    return parser.parse_args(argv)


def run_part(part: Part, *, quick: bool, machine: Machine) -> dict[str, Any]:
    """Run a part's process; return its rows, and the seconds that it took."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="wrpo-bench-gpu-") as name:
        path = Path(name) / "rows.jsonl"
        specification = {"rows": str(path), "quick": quick}
        error = None
        try:
            run_worker(
                part.module,
                specification,
                threads=1 if quick else usable_cores(),
                timeout_s=part.budget_s,
                environ={**({"DS_ACCELERATOR": "cpu"} if machine.gpu is None else {}), **part.environ},
                own_group=True,
            )
        except WorkerError as failure:
            error = str(failure)
        rows = read_rows(path)
        log_file = path.with_name(LOG)
        log = log_file.read_text(errors="replace") if log_file.exists() else ""
    if error is not None:
        rows.append(ended_row(error, log, len(rows)))
    elif not rows:
        rows.append(Row.failed("(no case)", "the process ended without a row"))
    result = {"seconds": round(time.perf_counter() - started, 1), "rows": [row.to_json() for row in rows]}
    return result | ({"log": log[-_LOG_LENGTH:]} if any(row.error for row in rows) else {})


def ended_row(error: str, log: str, finished: int) -> Row:
    """Return the row of a process that failed or exceeded its budget after `finished` cases."""
    first, _, output = error.partition("\n")
    row = Row.failed(f"(after {finished} cases)", f"{first}\n{log}{output}")
    return replace(row, error=first) if "did not end" in first else row


def _save(out: Path | None, machine: Machine, figures: Mapping[str, Any], *, quick: bool) -> Path:
    if out is None:
        return save_result(QUICK_NAME if quick else NAME, machine, figures)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"name": NAME, "machine": machine.to_json(), **figures}, indent=1) + "\n")
    return out


if __name__ == "__main__":
    raise SystemExit(main())
