"""Keyed work queue: one worker at a time handles a key, and no key is lost."""

from __future__ import annotations

import asyncio

from wrpo_devcluster.clock import Clock


class WorkQueue:
    """Work queue. A key added while a worker handles it returns afterwards. `add_after` keeps the earliest time."""

    def __init__(self, clock: Clock, *, backoff_s: float = 0.05, max_backoff_s: float = 30.0) -> None:
        self._clock = clock
        self._backoff_s = backoff_s
        self._max_backoff_s = max_backoff_s
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._active: set[str] = set()
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}
        self._timers: dict[str, tuple[float, asyncio.Task[None]]] = {}

    def add(self, key: str) -> None:
        """Add a key, unless it waits already."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: str, delay_s: float) -> None:
        """Add a key after some seconds, or at once if there are none."""
        if delay_s <= 0:
            self.add(key)
            return
        due = self._clock.now().timestamp() + delay_s
        waiting = self._timers.get(key)
        if waiting is not None:
            if waiting[0] <= due:
                return
            waiting[1].cancel()
        self._timers[key] = (due, asyncio.create_task(self._later(key, delay_s)))

    def add_failed(self, key: str) -> None:
        """Add the key again after a pause that doubles with each failure in a row."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self.add_after(key, min(self._backoff_s * 2 ** min(failures, 20), self._max_backoff_s))

    def forget(self, key: str) -> None:
        """Note a success: the key's next failure starts with the shortest pause."""
        self._failures.pop(key, None)

    async def get(self) -> str:
        """Wait for a key and return it; the caller reports its end by `done`."""
        key = await self._ready.get()
        self._queued.discard(key)
        self._active.add(key)
        return key

    def done(self, key: str) -> None:
        """Note that a worker has handled a key."""
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Cancel all keys that wait for their time."""
        for _, task in self._timers.values():
            task.cancel()
        self._timers.clear()

    async def _later(self, key: str, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._timers.pop(key, None)
        self.add(key)
