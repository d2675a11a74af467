"""Sequential work of single ranks while the others wait, with a timeout on heartbeats instead of on the work.

Exporting a large model takes longer than the timeout of a collective. So a rank that works alone writes heartbeats to
the store of torch's rendezvous. The other ranks poll the store until the work is done. They fail if a working rank has
sent no heartbeat for as long as a collective would have waited.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from wrpo_engine.errors import TemporaryError
from wrpo_engine.training.distributed.background import Background

T = TypeVar("T")
_INTERVAL_S = 10.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.001, 0.5


class Store(Protocol):
    """The part of torch's key-value stores that is used. Every call may block if the store's host hangs."""

    def set(self, key: str, value: str) -> None:
        """Write a value, replacing the previous one."""
        ...

    def get(self, key: str) -> bytes:
        """Return a value; block until the key exists, at most for the store's timeout."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys exist, without blocking for a missing one."""
        ...


@dataclass
class Heartbeats:
    """The heartbeats of the working ranks, with the time of each one's last change."""

    started_s: float
    _seen: dict[int, tuple[str | None, float]] = field(default_factory=dict)

    def note(self, beats: Mapping[int, str | None], now_s: float) -> None:
        """Record the heartbeats of the ranks that still work; a rank that is left out has finished."""
        self._seen = {
            rank: (beat, now_s if rank not in self._seen or self._seen[rank][0] != beat else self._seen[rank][1])
            for rank, beat in beats.items()
        }

    def silence(self, now_s: float) -> tuple[float, list[int]]:
        """Return the longest silence in seconds, and the ranks that have been silent for that long."""
        if not self._seen:
            return now_s - self.started_s, []
        oldest = min(seen_s for _, seen_s in self._seen.values())
        return now_s - oldest, sorted(rank for rank, (_, seen_s) in self._seen.items() if seen_s == oldest)


class SequentialWork:
    """One rank's part in the sequential work of a group; all ranks call `run` the same number of times."""

    def __init__(
        self, store: Store, rank: int, timeout_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._rank, self._timeout_s, self._clock = store, rank, timeout_s, clock
        self._interval_s = min(_INTERVAL_S, timeout_s / 6)
        self._number = 0

    def run(self, workers: Sequence[int], function: Callable[[], T]) -> T | None:
        """Call `function` if this rank is one of `workers`; return its result after all workers have finished.

        `function` must not raise. TemporaryError if a worker sends no heartbeat for the group's timeout.
        """
        self._number += 1
        result = None
        if self._rank in workers:
            with self._beating():
                result = function()
            self._store.set(self._done(self._rank), "")
        others = [rank for rank in workers if rank != self._rank]
        if others:
            self._wait(others)
        return result

    @contextmanager
    def _beating(self) -> Iterator[None]:
        ended = threading.Event()

        def beat() -> None:
            count = 0
            while not ended.wait(self._interval_s):
                count += 1
                self._store.set(self._beat(self._rank), str(count))

        # The thread ends with a store that is gone; the waiting ranks see it in their own calls.
        beats = Background(beat, "sequential-heartbeat")
        try:
            yield
        finally:
            ended.set()
            beats.wait(self._interval_s)

    def _wait(self, ranks: Sequence[int]) -> None:
        """Poll the store in a thread, because a call may never return, and check the timeout here."""
        heartbeats = Heartbeats(self._clock())
        abandoned = threading.Event()
        polling = Background(lambda: self._poll(ranks, heartbeats, abandoned), "sequential-wait")
        try:
            while True:
                polling.wait(self._interval_s)
                if polling.done:
                    break
                silent_s, silent = heartbeats.silence(self._clock())
                if silent_s > self._timeout_s:
                    names = ", ".join(f"rank {rank}" for rank in silent or ranks)
                    raise TemporaryError(
                        f"{names}, which works while this rank waits, sent no heartbeat for {silent_s:.0f} s",
                        code="PeerLost",
                        hint="See the log of that rank for the cause. The next attempt resumes from the last "
                        "checkpoint.",
                    )
        finally:
            abandoned.set()
        if polling.error is not None:
            raise polling.error

    def _poll(self, ranks: Sequence[int], heartbeats: Heartbeats, abandoned: threading.Event) -> None:
        """Poll until the work is done, often at first and less often later, so that short work stays short."""
        pause_s = _FIRST_PAUSE_S
        while working := [rank for rank in ranks if not self._store.check([self._done(rank)])]:
            heartbeats.note({rank: self._last_beat(rank) for rank in working}, self._clock())
            if abandoned.wait(min(pause_s, self._interval_s)):
                return
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    def _last_beat(self, rank: int) -> str | None:
        key = self._beat(rank)
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _done(self, rank: int) -> str:
        return f"wrpo/sequential/{self._number}/{rank}/done"

    def _beat(self, rank: int) -> str:
        return f"wrpo/sequential/{self._number}/{rank}/beat"


def own_connection(timeout_s: float) -> Any:
    """Return a dedicated connection to the default group's store, so that its calls block no other thread."""
    from torch.distributed import distributed_c10d

    shared: Any = distributed_c10d._get_default_store()  # noqa: SLF001 (there is no public accessor)
    store: Any = shared.clone()
    store.set_timeout(timedelta(seconds=timeout_s))
    return store
