"""Worker processes of benchmarks: each side has separate memory, and none warms caches of the other.

A worker is a module whose `__main__` calls `worker_main(function)`: it gets a JSON specification and returns a JSON
result. Several ranks get torchrun's environment, and the result of the first rank counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
_TAIL = 3000
T = TypeVar("T")


class WorkerError(RuntimeError):
    """A worker failed or exceeded its timeout; the message holds the end of its output."""


def worker_main(function: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read the specification named first on the command line, write the result to the file named second."""
    specification, result = sys.argv[1:3]
    answer = function(json.loads(Path(specification).read_text()))
    Path(result).write_text(json.dumps(answer))


def timed(work: Callable[[], T], clock: Callable[[], float]) -> tuple[T, float]:
    """Return what a function returns and the seconds that it took by a clock."""
    begun = clock()
    result = work()
    return result, clock() - begun


def each(function: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a worker that processes a list of specifications, {"each": [...]}, so that it starts only once."""

    def run_all(specification: dict[str, Any]) -> dict[str, Any]:
        return {"each": [function(one) for one in specification["each"]]}

    return run_all


def run_worker(
    module: str,
    specification: Mapping[str, Any],
    *,
    threads: int,
    world_size: int = 1,
    timeout_s: float = 900,
    environ: Mapping[str, str] | None = None,
    own_group: bool = False,
) -> dict[str, Any]:
    """Run `python -m module` as `world_size` processes of `threads` threads each; return the first one's result.

    With `own_group`, the processes that a worker has started, such as vLLM's engine, are ended with it.
    """
    with tempfile.TemporaryDirectory(prefix="wrpo-bench-") as name:
        directory = Path(name)
        (directory / "spec.json").write_text(json.dumps(specification))
        port = free_port()
        processes = [
            _start(
                module,
                directory,
                rank,
                world_size,
                port=port,
                threads=threads,
                extra=environ or {},
                own_group=own_group,
            )
            for rank in range(world_size)
        ]
        try:
            for rank, process in enumerate(processes):
                _wait(process, directory / f"log-{rank}", module, rank, timeout_s)
        finally:
            for process in processes:
                if own_group:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                if process.poll() is None:
                    process.kill()
                    process.wait()
        result: dict[str, Any] = json.loads((directory / "result-0.json").read_text())
        return result


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _start(
    module: str,
    directory: Path,
    rank: int,
    world_size: int,
    *,
    port: int,
    threads: int,
    extra: Mapping[str, str],
    own_group: bool,
) -> subprocess.Popen[bytes]:
    environ = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        **extra,
    }
    if world_size > 1:
        environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    with (directory / f"log-{rank}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(directory / "spec.json"), str(directory / f"result-{rank}.json")],
            cwd=ROOT,
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0 if own_group else None,
        )


def _wait(process: subprocess.Popen[bytes], log: Path, module: str, rank: int, timeout_s: float) -> None:
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise WorkerError(f"{module} (rank {rank}) did not end within {timeout_s:.0f} s\n{_tail(log)}") from None
    if code != 0:
        raise WorkerError(f"{module} (rank {rank}) ended with {code}\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_TAIL:]
