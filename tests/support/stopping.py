"""Stopping a process in the middle of its work, however slow the machine is."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from support.patience import wait_until

SLICE_S = 0.02
"""Seconds; much less than what the processes do between two points that a test distinguishes."""


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
