"""Hang watchdog: aborts the run when a rank makes no progress.

Every rank watches itself and, while it waits, its peers. A rank that finishes no micro-batch for `hang_timeout_seconds`
logs the stacks of all its threads and names the rank that is behind or silent. It writes a termination message and
exits with 75. All ranks are then recreated and resume from the last checkpoint. A waiting rank exits earlier if a
peer's process sends no heartbeat, because a library's collective would wait for its whole timeout.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from typing_extensions import override

from wrpo_engine.config import ErrorInfo
from wrpo_engine.process.hang_watch import end_hung
from wrpo_engine.stage import StageContext
from wrpo_engine.training.distributed.background import Background
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.distributed.sequential import own_connection
from wrpo_engine.training.monitoring.callbacks import Observer, RunStart, StepEnd

SILENCE_S = 120.0
"""Seconds after which a process without heartbeats counts as stopped or lost, possibly with its node."""
_INTERVAL_S = 10.0
_READ_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 5.0
_CLOSED = -1
_LOG = logging.getLogger("wrpo_engine")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A rank's last heartbeat."""

    step: int
    """Optimizer steps completed."""
    micro_batch: int
    """Micro-batches finished since then."""
    beat: int
    """Counts up while the process runs, also if its main thread hangs; -1 once the rank has closed its watchdog."""

    def encode(self) -> str:
        """Return the text that `decode` reads."""
        return f"{self.step} {self.micro_batch} {self.beat}"

    @classmethod
    def decode(cls, text: str) -> Heartbeat:
        """Return the heartbeat of a text from `encode`; raise ValueError for any other text."""
        step, micro_batch, beat = (int(part) for part in text.split())
        return cls(step, micro_batch, beat)


class Board(Protocol):
    """The place where ranks exchange heartbeats. Calls may block if its host is gone."""

    def post(self, heartbeat: Heartbeat) -> None:
        """Publish this rank's heartbeat, replacing the previous one."""
        ...

    def read(self) -> list[Heartbeat | None]:
        """Return the last heartbeat of every rank, by rank; None for a rank that has posted none."""
        ...


class StoreBoard(Board):
    """Heartbeats in the key-value store of torch's rendezvous, over a dedicated connection."""

    def __init__(self, rank: int, world_size: int, timeout_s: float) -> None:
        self._store = own_connection(timeout_s)
        self._rank, self._world_size = rank, world_size

    @override
    def post(self, heartbeat: Heartbeat) -> None:
        self._store.set(self._key(self._rank), heartbeat.encode())

    @override
    def read(self) -> list[Heartbeat | None]:
        keys = [self._key(rank) for rank in range(self._world_size)]
        return [Heartbeat.decode(self._store.get(key).decode()) if self._store.check([key]) else None for key in keys]

    @staticmethod
    def _key(rank: int) -> str:
        return f"wrpo/heartbeats/{rank}"


class LocalBoard(Board):
    """The board of a run with one rank."""

    def __init__(self) -> None:
        self._heartbeat: Heartbeat | None = None

    @override
    def post(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat

    @override
    def read(self) -> list[Heartbeat | None]:
        return [self._heartbeat]


def describe(heartbeats: Sequence[Heartbeat | None], silent: Sequence[int]) -> str:
    """Return a message that names the ranks that block the others: the silent ones, otherwise the slowest ones."""
    if silent:
        known = dict(enumerate(heartbeats))
        names = ", ".join(f"rank {rank} ({_place(known.get(rank))})" for rank in silent)
        return f"{names} sent no heartbeat: the process is stopped, or lost with its node"
    places = {
        rank: (heartbeat.step, heartbeat.micro_batch)
        for rank, heartbeat in enumerate(heartbeats)
        if heartbeat is not None
    }
    if len(set(places.values())) < 2:
        return "all ranks are at the same step and micro-batch"
    behind = [rank for rank, place in places.items() if place == min(places.values())]
    return f"{', '.join(f'rank {rank}' for rank in behind)} is behind ({_place(heartbeats[behind[0]])})"


def _place(heartbeat: Heartbeat | None) -> str:
    return (
        "it never reported"
        if heartbeat is None
        else f"step {heartbeat.step + 1}, micro-batch {heartbeat.micro_batch + 1}"
    )


def make_watchdog(ctx: StageContext, group: Group) -> Watchdog:
    """Return the watchdog of this rank, not yet started."""
    timeout_s = ctx.config.runtime.hang_timeout_seconds
    board: Board = LocalBoard()
    if group.world_size > 1:
        board = StoreBoard(group.rank, group.world_size, _READ_TIMEOUT_S)
    return Watchdog(group.rank, board, timeout_s, ctx.environ)


@dataclass
class Watchdog(Observer):
    """One rank's watchdog. The training thread calls `beat` and the observer's hooks."""

    rank: int
    board: Board
    timeout_s: float
    environ: Mapping[str, str]
    silence_s: float = SILENCE_S
    end: Callable[[int], NoReturn] = os._exit
    clock: Callable[[], float] = time.monotonic
    _step: int = 0
    _micro_batch: int = 0
    _last: float = 0.0
    _closed: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _changed: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Peer -> its last beat and the time at which this rank saw it change."""
    _heartbeats: list[Heartbeat | None] = field(default_factory=list)
    _exchanged: float = 0.0
    """Time of the last reply of the store."""

    def __post_init__(self) -> None:
        self._last = self._exchanged = self.clock()

    def start(self) -> Watchdog:
        """Start the watching threads and return this watchdog."""
        self._last = self._exchanged = self.clock()
        for name, target in (("watchdog", self._watch), ("watchdog-heartbeats", self._exchange)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def beat(self) -> None:
        """Record that this rank has finished a micro-batch."""
        self._micro_batch += 1
        self._last = self.clock()

    @override
    def on_start(self, start: RunStart) -> None:
        self._step, self._micro_batch, self._last = start.steps_done, 0, self.clock()

    @override
    def on_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:
        self.beat()

    @override
    def on_held_out_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:
        self.beat()

    @override
    def on_step(self, end: StepEnd) -> None:
        self._step, self._micro_batch, self._last = end.step, 0, self.clock()

    @override
    def on_evaluation(self, step: int, row: Mapping[str, float]) -> None:
        self._last = self.clock()

    @override
    def on_checkpoint(self, step: int) -> None:
        self._last = self.clock()

    @override
    def close(self) -> None:
        """Stop the watching threads.

        A thread that is inside the store's client when the interpreter exits would abort the process, although the run
        has succeeded. A store that no longer replies is waited for up to a bound: its host is gone then, and this rank
        has not succeeded.
        """
        self._closed.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_CLOSE_TIMEOUT_S)

    @property
    def _interval_s(self) -> float:
        return min(_INTERVAL_S, self.timeout_s / 6, self.silence_s / 6)

    def _exchange(self) -> None:
        """Post this rank's heartbeat; read the others' while this rank makes no progress."""
        beat = 0
        try:
            while not self._closed.wait(self._interval_s):
                beat += 1
                self.board.post(Heartbeat(self._step, self._micro_batch, beat))
                if self.clock() - self._last > 2 * self._interval_s:
                    self.note(self.board.read())
                else:
                    self._changed.clear()
                self._exchanged = self.clock()
            self.board.post(Heartbeat(self._step, self._micro_batch, _CLOSED))
        except Exception as error:  # noqa: BLE001 (the store is gone with its host; the collective fails too)
            _LOG.debug("heartbeats are no longer exchanged: %s", error)

    def note(self, heartbeats: list[Heartbeat | None]) -> None:
        """Record the time of each rank's last change of its beat."""
        now = self.clock()
        for rank, heartbeat in enumerate(heartbeats):
            beat = 0 if heartbeat is None else heartbeat.beat
            if rank not in self._changed or self._changed[rank][0] != beat:
                self._changed[rank] = (beat, now)
        self._heartbeats = heartbeats

    def _silent(self, for_s: float) -> list[int]:
        now = self.clock()
        return sorted(
            rank
            for rank, (beat, since) in list(self._changed.items())
            if rank != self.rank and beat != _CLOSED and now - since > for_s
        )

    def verdict(self) -> tuple[str, float, list[int]] | None:
        """Return (error code, seconds without progress, silent ranks) if the run must end, otherwise None."""
        idle_s = self.clock() - self._last
        if idle_s > self.timeout_s:
            return "Hang", idle_s, self._silent(3 * self._interval_s)
        if idle_s > self.silence_s and (silent := self._silent(self.silence_s)):
            return "PeerSilent", idle_s, silent
        if self.rank != 0 and min(idle_s, self.clock() - self._exchanged) > self.silence_s:
            # The store is on the first node, rank 0's.
            return "PeerSilent", idle_s, [0]
        return None

    def _watch(self) -> None:
        while not self._closed.wait(self._interval_s):
            if (verdict := self.verdict()) is not None:
                self._fire(*verdict)

    def _fire(self, code: str, idle_s: float, silent: list[int]) -> None:
        heartbeats = Background(self.board.read, "watchdog-read")
        heartbeats.wait(_READ_TIMEOUT_S)
        message = (
            f"rank {self.rank} has finished no micro-batch for {idle_s:.0f} s, since step {self._step + 1}, "
            f"micro-batch {self._micro_batch + 1}; {describe(heartbeats.value or self._heartbeats, silent)}"
        )
        hint = "The pods' logs show the stacks of all threads. The next attempt resumes from the last checkpoint."
        error = ErrorInfo(code=code, message=message, hint=hint)
        end_hung(error, self.environ, self.end, who=f"rank {self.rank}", step=self._step)
