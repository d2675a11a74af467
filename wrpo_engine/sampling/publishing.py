"""Publisher of parts in a separate thread, so that the engine does not wait for the storage."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

_MAX_WAITING = 8
"""Parts kept in memory for a storage that is slower than the engine."""


class Publisher:
    """Runs what it is given one after another, in order. Leaving the block waits for all of it.

    An error of a write is raised by the next `submit`, or at the end of the block.
    """

    def __init__(self, max_waiting: int = _MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._waiting: deque[Future[None]] = deque()

    def submit(self, write: Callable[[], None]) -> None:
        """Queue `write`; block only if too many are waiting."""
        self._waiting.append(self._threads.submit(write))
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > self._max_waiting):
            self._waiting.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also after an error or a stop request: what is finished is kept.
        self._threads.shutdown(wait=True)
        if kind is None:
            for written in self._waiting:
                written.result()
