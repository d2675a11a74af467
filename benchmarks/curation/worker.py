"""Worker that runs the stage like `wrpo-engine curate-triples` in this process, and measures it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.process import worker_main
from benchmarks.curation.data import HASH, Size, roles
from wrpo_engine.process.memory import peak_host_bytes
from wrpo_engine.running import run
from wrpo_engine.stage import StopRequest


def measure(specification: Mapping[str, Any]) -> dict[str, Any]:
    root = Path(specification["root"])
    size = Size(prompts=specification["prompts"], sources=specification["sources"])
    output = root / "curate-triples" / HASH
    shutil.rmtree(output, ignore_errors=True)
    config = {
        "experiment": "benchmarks/curation",
        "output": {"stage": "curate-triples", "hash": HASH},
        "inputs": roles(size),
        "storage": {"kind": "volume"},
        "params": {"stage": "curate-triples", "pairing": specification["pairing"]},
    }
    path = root / "curate-triples.json"
    path.write_text(json.dumps(config))
    termination = root / "termination.json"
    environ = {**os.environ, "WRPO_VOLUME_ROOT": str(root), "WRPO_TERMINATION_MESSAGE_PATH": str(termination)}
    before = os.getloadavg()[0]
    started, cpu = time.perf_counter(), time.process_time()
    code = run("curate-triples", path, environ, stop=StopRequest())
    seconds = time.perf_counter() - started
    if code != 0:
        raise RuntimeError(f"curate-triples ended with {code}")
    message = json.loads(termination.read_text())
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": peak_host_bytes(),
        "rows": message["rows"],
        "metrics": message["metrics"],
        "load_before": before,
        "load_after": os.getloadavg()[0],
        "output_bytes": sum(file.stat().st_size for file in output.rglob("*") if file.is_file()),
    }


if __name__ == "__main__":
    worker_main(measure)
