"""Stopping a process in the middle of its work, however slow the machine is."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from support.patience import wait_until

SLICE_S = 0.02
"""Seconds; much less than what the processes do between two points that a test distinguishes."""
STOPPED, ZOMBIE, GONE = "T", "Z", "X"
"""States of a process, as /proc/PID/stat has them. The last one is also that of a process which is not there."""


def stop_when(pids: list[int], what: str, condition: Callable[[], object], *, slice_s: float = SLICE_S) -> None:
    """Stop processes (SIGSTOP) once the condition holds; SIGCONT continues them.

    They run in short slices and are looked at only while they are stopped. So they cannot do the rest of their work
    while the test waits for the processor.
    """

    def send(number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def holds() -> bool:
        send(signal.SIGSTOP)
        if condition():
            return True
        send(signal.SIGCONT)
        return False

    wait_until(what, holds, every_s=slice_s)


def kill_within_work(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a process that has not ended; return False if it has, whether its parent knows that or not.

    The process is stopped first, so that it cannot end between the look and the signal.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    state = wait_until(f"process {pid} is stopped or has ended", lambda: _settled(pid), every_s=0.001)
    if state != STOPPED:
        return False
    os.kill(pid, number)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return True


def _settled(pid: int) -> str | None:
    """Return the state of a process unless it is about to change."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return GONE
    return state if state in {STOPPED, ZOMBIE, GONE} else None
