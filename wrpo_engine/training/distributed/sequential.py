"""Waiting for another rank's work: bounded by its signs of life, not by how long the work takes.

A collective ends with a rank's patience for its peers, and exporting a large model takes longer than that. So ranks
that work alone beat in the store of torch's rendezvous meanwhile, and the others wait there until the work is done, or
until one of them has not beaten for as long as a collective would have waited.
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
    """What is used of torch's key-value stores. Every call may block if the store's host stands still."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


@dataclass
class Signs:
    """The beats of ranks that others wait for, and when each was last seen to change."""

    started_s: float
    _seen: dict[int, tuple[str | None, float]] = field(default_factory=dict)

    def note(self, beats: Mapping[int, str | None], now_s: float) -> None:
        """Take in the beats of the ranks that still work."""
        self._seen = {
            rank: (beat, now_s if rank not in self._seen or self._seen[rank][0] != beat else self._seen[rank][1])
            for rank, beat in beats.items()
        }

    def silence(self, now_s: float) -> tuple[float, list[int]]:
        """Return for how long the rank that has been silent longest has been so, and which ones have been as long."""
        if not self._seen:
            return now_s - self.started_s, []
        oldest = min(seen_s for _, seen_s in self._seen.values())
        return now_s - oldest, sorted(rank for rank, (_, seen_s) in self._seen.items() if seen_s == oldest)


class Turns:
    """One rank's part in the turns of a group; all ranks take the same turns in the same order."""

    def __init__(
        self, store: Store, rank: int, timeout_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._rank, self._timeout_s, self._clock = store, rank, timeout_s, clock
        self._interval_s = min(_INTERVAL_S, timeout_s / 6)
        self._number = 0

    def take(self, workers: Sequence[int], function: Callable[[], T]) -> T | None:
        """Call `function` if this rank is one of `workers`; return after all of them have returned from theirs.

        It must not raise. TemporaryError if one of them gives no sign of life for the group's timeout.
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

        # A store that is gone ends the thread; whoever waits is told so by its own call.
        beats = Background(beat, "turn-beats")
        try:
            yield
        finally:
            ended.set()
            beats.wait(self._interval_s)

    def _wait(self, ranks: Sequence[int]) -> None:
        """Let a thread ask the store, which may never answer, and watch the time here."""
        signs = Signs(self._clock())
        abandoned = threading.Event()
        asking = Background(lambda: self._ask(ranks, signs, abandoned), "turn-wait")
        try:
            while True:
                asking.wait(self._interval_s)
                if asking.done:
                    break
                silent_s, silent = signs.silence(self._clock())
                if silent_s > self._timeout_s:
                    names = ", ".join(f"rank {rank}" for rank in silent or ranks)
                    raise TemporaryError(
                        f"{names}, which works while this rank waits, gave no sign of life for {silent_s:.0f} s",
                        code="PeerLost",
                        hint="Its own log says why. The next attempt continues from the last checkpoint.",
                    )
        finally:
            abandoned.set()
        if asking.error is not None:
            raise asking.error

    def _ask(self, ranks: Sequence[int], signs: Signs, abandoned: threading.Event) -> None:
        """Look whether the work is done, often at first and seldom later, so that short turns stay short."""
        pause_s = _FIRST_PAUSE_S
        while working := [rank for rank in ranks if not self._store.check([self._done(rank)])]:
            signs.note({rank: self._last_beat(rank) for rank in working}, self._clock())
            if abandoned.wait(min(pause_s, self._interval_s)):
                return
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    def _last_beat(self, rank: int) -> str | None:
        key = self._beat(rank)
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _done(self, rank: int) -> str:
        return f"wrpo/turns/{self._number}/{rank}/done"

    def _beat(self, rank: int) -> str:
        return f"wrpo/turns/{self._number}/{rank}/beat"


def own_connection(timeout_s: float) -> Any:
    """Return a connection of its own to the store of the default group: a call on it holds nobody else up."""
    from torch.distributed import distributed_c10d

    shared: Any = distributed_c10d._get_default_store()  # noqa: SLF001 (there is no public way to it)
    store: Any = shared.clone()
    store.set_timeout(timedelta(seconds=timeout_s))
    return store
