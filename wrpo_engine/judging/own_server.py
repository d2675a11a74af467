"""A server that a stage runs as a child process: its start, its end in all cases, and what an early end means."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wrpo_engine.errors import ConfigError, TemporaryError, WrpoError
from wrpo_engine.exit_codes import FINAL_EXIT_CODES
from wrpo_engine.process import spares
from wrpo_engine.process.spares import Process
from wrpo_engine.sampling.engine_faults import Meaning, fault_in
from wrpo_engine.sampling.engine_process import KEPT_LINES, exit_reason

log = logging.getLogger("wrpo_engine")

START_VARIABLE = "WRPO_JUDGE_START_SECONDS"
_CODE = "JudgeServerFailed"
_KEPT = "The stage is retried; replies are kept."
_END_S = 20.0
"""Seconds for the server to end by itself."""
_TAIL_LINES = 20
_LINE_CHARACTERS = 300
_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a server serves, as errors name it."""

    field: str
    """Field of the experiment's spec."""
    name: str
    """Value of the field."""


@dataclass(frozen=True, slots=True)
class Program:
    """How a server is started."""

    command: Sequence[str]
    environ: Mapping[str, str]
    """All of its variables."""
    health: str
    """URL that replies once the server is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnServer:
    """A server that was ready."""

    process: Process
    log_path: Path
    """What it wrote to stdout and stderr."""
    served: Served

    def raise_if_ended(self) -> None:
        """Raise what its end means, if it has ended. Safe to call from several threads."""
        code = self.process.poll()
        if code is not None:
            raise end_of_server(code, _lines(self.log_path), self.served, was_ready=True)


def end_of_server(code: int, lines: Sequence[str], served: Served, *, was_ready: bool) -> WrpoError:
    """Return what it means that a server ended by itself: memory, a fault of every attempt, or one that may pass.

    `lines` are the last ones that it wrote. A server that was ready could use the model, so its end may pass.
    """
    fault = fault_in(lines)
    cause = "" if fault is None else f": {fault.line}"
    text = f"the judge's server ended with {exit_reason(code)}{cause}; its last lines:\n{_tail(lines)}"
    meaning = Meaning.TEMPORARY if fault is None else fault.meaning
    if code in FINAL_EXIT_CODES or (meaning is Meaning.UNUSABLE and not was_ready):
        return ConfigError(served.field, served.name, text, "Correct the judge.", code=_CODE)
    if meaning is Meaning.MEMORY:
        hint = "Request more memory or accelerators for the judge, or lower its concurrency. Replies are kept."
        return WrpoError(text, code="OutOfMemory", field=served.field, hint=hint)
    killed = "Signal 9 usually means that memory ran out: request more for the judge. "
    hint = (killed if code == -signal.SIGKILL else "Check the model and the resources of the judge. ") + _KEPT
    return TemporaryError(text, code=_CODE, field=served.field, hint=hint)


@contextlib.contextmanager
def running_server(
    program: Program,
    served: Served,
    *,
    patience_s: float,
    check: Callable[[], None] = lambda: None,
) -> Iterator[OwnServer]:
    """Run a server and yield it once its health URL replies; end it and its children in all cases.

    `check` is called while it starts, and may raise. A server that ends first raises what that means; one that is not
    ready in time is a TemporaryError.
    """
    with tempfile.TemporaryDirectory(prefix="wrpo-judge-") as directory:
        path = Path(directory) / "server.log"
        with path.open("wb") as output:
            process = spares.start(program.command, program.environ, output=output.fileno(), ends_with_parent=True)
        server = OwnServer(process=process, log_path=path, served=served)
        try:
            _wait_until_healthy(server, program.health, patience_s=patience_s, check=check)
            yield server
        finally:
            _end(process)


def _wait_until_healthy(server: OwnServer, health: str, *, patience_s: float, check: Callable[[], None]) -> None:
    process = server.process
    log.info("the judge's server starts: %s", " ".join(process.args[2:] if isinstance(process.args, list) else ()))
    deadline = time.monotonic() + patience_s
    pause = threading.Event()
    while not _is_healthy(health):
        check()
        code = process.poll()
        if code is not None:
            raise end_of_server(code, _lines(server.log_path), server.served, was_ready=False)
        if time.monotonic() > deadline:
            raise TemporaryError(
                f"the judge's server was not ready within {patience_s:g} s; its last lines:\n"
                f"{_tail(_lines(server.log_path))}",
                code=_CODE,
                field=server.served.field,
                hint=f"The stage is retried. Set {START_VARIABLE} for a model that loads longer.",
            )
        pause.wait(_POLL_S)


def _is_healthy(url: str) -> bool:
    # No proxy: it is this pod.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5.0) as answer:
            status: int = answer.status
            return 200 <= status < 300
    except OSError:
        return False


def _lines(path: Path) -> list[str]:
    """Return the last lines that the server wrote."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return [line.rstrip() for line in deque(lines, KEPT_LINES)]


def _tail(lines: Sequence[str]) -> str:
    return "\n".join(line[:_LINE_CHARACTERS] for line in lines[-_TAIL_LINES:])


def _end(process: Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        # The group: vLLM's workers are children of its server.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
