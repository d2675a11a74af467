"""Keyed work queue: one worker per key at a time, duplicates merged, errors retried with exponential backoff.

A key added while it is being worked on is worked on once more afterwards. Delayed adds keep the earliest due time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delay after the n-th failure in a row: base * 2^(n-1), at most `limit_s`, less up to a quarter at random."""

    base_s: float = 0.5
    limit_s: float = 120.0
    jitter: float = 0.25

    def delay_s(self, failures: int, rand: Callable[[], float]) -> float:
        """Return the delay in seconds after this number of failures; `rand` returns a number in [0, 1)."""
        full = min(self.limit_s, self.base_s * 2.0 ** min(failures - 1, 32))
        return full * (1 - self.jitter * rand())


class RetryAfterError(Exception):
    """Raised by a worker to set the time of its next try, if the server requested a pause."""

    def __init__(self, delay_s: float) -> None:
        super().__init__(f"retry after {delay_s:g} s")
        self.delay_s = delay_s


class ReconcileQueue(Generic[K]):
    """Calls `work(key)` for each added key. `work` returns the seconds until its next call, or None."""

    def __init__(
        self,
        work: Callable[[K], Awaitable[float | None]],
        *,
        backoff: Backoff | None = None,
        rand: Callable[[], float] = random.random,
        on_error: Callable[[K, Exception, float], None] = lambda _key, _error, _delay: None,
    ) -> None:
        self._work = work
        self._backoff = backoff or Backoff()
        self._rand = rand
        self._on_error = on_error
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._queued: set[K] = set()
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._started_at: dict[K, float] = {}

    def add(self, key: K) -> None:
        """Work on `key` as soon as a worker is free."""
        self._cancel_timer(key)
        if key in self._active:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: K, delay_s: float) -> None:
        """Work on `key` after `delay_s` unless it is due earlier."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_s
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due:
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_at(due, self.add, key)

    def forget(self, key: K) -> None:
        """Drop the state of a key whose object was deleted."""
        self._cancel_timer(key)
        self._failures.pop(key, None)

    @property
    def depth(self) -> int:
        """Keys waiting for a worker."""
        return len(self._queued)

    def oldest_running_s(self) -> float:
        """Seconds the longest-running work has taken so far; 0 when idle."""
        now = asyncio.get_running_loop().time()
        return max((now - at for at in self._started_at.values()), default=0.0)

    async def run(self, workers: int) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._worker(), name=f"reconcile-{number}")

    async def _worker(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            key = await self._ready.get()
            self._queued.discard(key)
            self._active.add(key)
            self._started_at[key] = loop.time()
            try:
                delay_s = await self._attempt(key)
            finally:
                self._active.discard(key)
                self._started_at.pop(key, None)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif delay_s is not None:
                self.add_after(key, delay_s)

    async def _attempt(self, key: K) -> float | None:
        try:
            delay_s = await self._work(key)
        except Exception as error:  # noqa: BLE001  # one key's error must not end the worker
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            pause = self._backoff.delay_s(failures, self._rand)
            if isinstance(error, RetryAfterError):
                pause = max(pause, error.delay_s)
            # An event about the object must not bypass the backoff; otherwise a failing write becomes a busy loop.
            self._again.discard(key)
            self._on_error(key, error, pause)
            return pause
        self._failures.pop(key, None)
        return delay_s

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
