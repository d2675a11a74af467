"""Watch on a process that works alone: it ends if no work is finished for too long, so that another attempt starts."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NoReturn, Self

from wrpo_engine.config import ErrorInfo, ExitCode, TerminationMessage
from wrpo_engine.process import termination

_CHECKS = 6
"""Checks in the time without progress that is allowed."""


def end_hung(
    error: ErrorInfo,
    environ: Mapping[str, str],
    end: Callable[[int], NoReturn],
    *,
    who: str = "this process",
    step: int | None = None,
) -> None:
    """End a process that hangs with 75, after the stacks of all threads on stderr and the termination message.

    `step` is the number of optimizer steps completed.
    """
    print(f"error: {error.message}\nhint: {error.hint}\nstacks of {who}:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
    outcome = TerminationMessage(outcome="Failed", step=step, error=error, exit_code=ExitCode.TEMPORARY)
    try:
        termination.write(outcome, environ)
    finally:
        sys.stderr.flush()
        end(ExitCode.TEMPORARY)


class HangWatch:
    """Ends the process with 75 if `beat` is not called for `timeout_s` seconds inside the `with` block.

    The stacks of all threads go to stderr first, and the termination message says what stopped.
    """

    def __init__(
        self,
        what: str,
        timeout_s: float,
        environ: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], NoReturn] = os._exit,
    ) -> None:
        self._what, self._timeout_s, self._environ = what, timeout_s, environ
        self._clock, self._end = clock, end
        self._last = clock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)

    def beat(self) -> None:
        """Record progress."""
        self._last = self._clock()

    def check(self) -> None:
        """End the process if there has been no progress for too long."""
        idle_s = self._clock() - self._last
        if idle_s <= self._timeout_s:
            return
        message = f"{self._what} made no progress for {idle_s:.0f} s"
        hint = "The pod's log shows the stacks of all threads. Finished parts are kept; the next attempt continues."
        end_hung(ErrorInfo(code="Hang", message=message, hint=hint), self._environ, self._end)

    def __enter__(self) -> Self:
        self.beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._timeout_s / _CHECKS):
            self.check()
