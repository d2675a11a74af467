"""Background processes that outlive the command that starts them: start, liveness, stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from wrpo_devcluster.kubelet.records import is_running

_LOG_TAIL_LINES = 25


def start(command: Sequence[str], *, env: Mapping[str, str], log_file: Path, cwd: Path | None = None) -> int:
    """Start a process in a separate session, append its output to `log_file`, and return its pid."""
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(env), cwd=cwd, start_new_session=True
        )
    # It outlives this process; nothing here waits for it.
    process.returncode = 0
    return process.pid


def has_ended(pid: int) -> bool:
    """Return whether a child process has ended; reap it if so."""
    with contextlib.suppress(ChildProcessError):
        return bool(os.waitpid(pid, os.WNOHANG)[0])
    return False


def stop(pid: int, started: int, *, timeout_s: float) -> None:
    """Send SIGTERM, then SIGKILL after the timeout. `started` is from `start_ticks`, because pids are reused."""
    if not is_running(pid, started):
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while is_running(pid, started):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.02)


def log_tail(log_file: Path) -> str:
    """Return the last lines of a log, after a line that names the file."""
    try:
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    return f"The end of {log_file}:\n" + "\n".join(lines[-_LOG_TAIL_LINES:])
