"""Single run of a container as a process: start under the shim, wait, and stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wrpo_devcluster.kubelet import shim
from wrpo_devcluster.kubelet.logs import tail_text
from wrpo_devcluster.kubelet.records import Attempt, ExitRecord, kill_strays
from wrpo_devcluster.kubelet.warm import WarmProcess

_START_TIMEOUT_S = 120.0
_MESSAGE_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start: the command line, its whole environment and its directory."""

    argv: list[str]
    env: Mapping[str, str]
    cwd: Path


def launch(attempt: Attempt, what: Launch, warm: WarmProcess | None = None) -> None:
    """Start the shim for a new run: forked from the warm process if there is one and it can, else as a program."""
    attempt.directory.mkdir(parents=True, exist_ok=True)
    # As on a real node, only the previous run is kept.
    for stale in attempt.directory.glob(f"{attempt.number - 2}.*"):
        stale.unlink()
    attempt.log_file.touch(mode=0o600)
    attempt.termination_file.touch(mode=0o600)
    spec = {
        "argv": what.argv,
        "env": dict(what.env),
        "cwd": str(what.cwd),
        "log_file": str(attempt.log_file),
        "pid_file": str(attempt.pid_file),
        "exit_file": str(attempt.exit_file),
    }
    # The environment may hold secrets.
    descriptor = os.open(attempt.spec_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(spec, file)
    shim_log = attempt.directory / "shim.log"
    if warm is not None and warm.fork(attempt.spec_file, shim_log):
        return
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", str(Path(shim.__file__)), str(attempt.spec_file)],
        {"PATH": os.environ.get("PATH", os.defpath)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(shim_log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


async def wait_started(attempt: Attempt) -> bool:
    """Wait until the run has a process; return False if the shim did not start."""
    deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
    while asyncio.get_running_loop().time() < deadline:
        if attempt.pid_file.exists() or attempt.exit_file.exists():
            return True
        await asyncio.sleep(0.005)
    return False


async def wait_ended(attempt: Attempt) -> ExitRecord | None:
    """Wait until no process of the run remains; return its record, None if it left none."""
    process = attempt.process()
    if process is not None and process.is_alive():
        await _wait_for(process.shim_pid)
    if process is not None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.shim_pid, os.WNOHANG)  # noqa: ASYNC222 - does not wait
    record = attempt.exit()
    if record is None:
        kill_strays(marker(attempt))
    return record


def marker(attempt: Attempt) -> str:
    """Return the value by which the processes of a run are found in their environment."""
    return f"{attempt.directory.parent.name}/{attempt.directory.name}/{attempt.number}"


async def stop(attempt: Attempt, grace_s: float) -> None:
    """Send SIGTERM, then SIGKILL after the grace period. Return when no process of the run remains."""
    process = attempt.process()
    if process is None or not process.is_alive():
        return
    process.send(signal.SIGTERM)
    if grace_s > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await _wait_for(process.shim_pid)
            return
    process.send(signal.SIGKILL)
    await _wait_for(process.shim_pid)


def termination_message(attempt: Attempt, policy: str, exit_code: int) -> str:
    """Return the container's termination message, or the end of its log if the policy says so."""
    try:
        raw = attempt.termination_file.read_bytes()[:_MESSAGE_LIMIT]
    except FileNotFoundError:
        raw = b""
    if raw or policy != "FallbackToLogsOnError" or exit_code == 0:
        return raw.decode(errors="replace")
    return tail_text(attempt.log_file)


async def _wait_for(pid: int) -> None:
    """Wait for the end of a process that need not be a child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
