"""Ends a run that stands still: every rank watches itself and, while it waits, the others.

A rank that finishes no micro-batch for `hang_timeout_seconds` writes the stacks of all its threads to the log, says
which rank is behind or silent, leaves a termination message and ends with 75: the gang is made anew and continues from
the last checkpoint. Sooner than that, a rank that waits ends if a peer's process gives no sign of life: a library's
collective would wait for its whole timeout.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from wrpo_engine.config import ErrorInfo, ExitCode, TerminationMessage
from wrpo_engine.process import termination
from wrpo_engine.stage import StageContext
from wrpo_engine.training.distributed.background import Background
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.distributed.sequential import own_connection
from wrpo_engine.training.monitoring.callbacks import Observer, RunStart, StepEnd

SILENCE_S = 120.0
"""A process whose threads have not run for so long is stopped or gone; its node may be."""
_INTERVAL_S = 10.0
_READ_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 5.0
_CLOSED = -1
_LOG = logging.getLogger("wrpo_engine")


@dataclass(frozen=True, slots=True)
class Sign:
    """A rank's last sign of life."""

    step: int
    """Optimizer steps completed."""
    micro_batch: int
    """Micro-batches finished since then."""
    beat: int
    """Counts up while the process runs, whatever its main thread does; -1 when it stopped watching."""

    def encode(self) -> str:
        return f"{self.step} {self.micro_batch} {self.beat}"

    @classmethod
    def decode(cls, text: str) -> Sign:
        step, micro_batch, beat = (int(part) for part in text.split())
        return cls(step, micro_batch, beat)


class Board(Protocol):
    """Where ranks leave their signs for each other. Calls may block if its host is gone."""

    def post(self, sign: Sign) -> None: ...
    def read(self) -> list[Sign | None]: ...


class StoreBoard:
    """On the key-value store of torch's rendezvous, over a connection of its own."""

    def __init__(self, rank: int, world_size: int, timeout_s: float) -> None:
        self._store = own_connection(timeout_s)
        self._rank, self._world_size = rank, world_size

    def post(self, sign: Sign) -> None:
        self._store.set(self._key(self._rank), sign.encode())

    def read(self) -> list[Sign | None]:
        keys = [self._key(rank) for rank in range(self._world_size)]
        return [Sign.decode(self._store.get(key).decode()) if self._store.check([key]) else None for key in keys]

    @staticmethod
    def _key(rank: int) -> str:
        return f"wrpo/signs/{rank}"


class OwnBoard:
    """Of a run with one rank."""

    def __init__(self) -> None:
        self._sign: Sign | None = None

    def post(self, sign: Sign) -> None:
        self._sign = sign

    def read(self) -> list[Sign | None]:
        return [self._sign]


def describe(signs: Sequence[Sign | None], silent: Sequence[int]) -> str:
    """Say which ranks hold the others up: those that are silent, else those that have done least."""
    if silent:
        known = dict(enumerate(signs))
        names = ", ".join(f"rank {rank} ({_place(known.get(rank))})" for rank in silent)
        return f"{names} gave no sign of life: stopped, or gone with its node"
    places = {rank: (sign.step, sign.micro_batch) for rank, sign in enumerate(signs) if sign is not None}
    if len(set(places.values())) < 2:
        return "all ranks are at the same place"
    behind = [rank for rank, place in places.items() if place == min(places.values())]
    return f"{', '.join(f'rank {rank}' for rank in behind)} is behind ({_place(signs[behind[0]])})"


def _place(sign: Sign | None) -> str:
    return "it never reported" if sign is None else f"step {sign.step + 1}, micro-batch {sign.micro_batch + 1}"


def make_watchdog(ctx: StageContext, group: Group) -> Watchdog:
    """Return the watchdog of this rank, not yet started."""
    timeout_s = ctx.config.runtime.hang_timeout_seconds
    board: Board = OwnBoard()
    if group.world_size > 1:
        board = StoreBoard(group.rank, group.world_size, _READ_TIMEOUT_S)
    return Watchdog(group.rank, board, timeout_s, ctx.environ)


@dataclass
class Watchdog(Observer):
    """One rank's watchdog. `beat` and the observer's hooks are called by the training thread."""

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
    """Peer -> its last beat and when this rank saw it change."""
    _signs: list[Sign | None] = field(default_factory=list)
    _exchanged: float = 0.0
    """When the store last answered."""

    def __post_init__(self) -> None:
        self._last = self._exchanged = self.clock()

    def start(self) -> Watchdog:
        self._last = self._exchanged = self.clock()
        for name, target in (("watchdog", self._watch), ("watchdog-signs", self._exchange)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def beat(self) -> None:
        """Say that this rank has got on."""
        self._micro_batch += 1
        self._last = self.clock()

    def on_start(self, start: RunStart) -> None:
        self._step, self._micro_batch, self._last = start.steps_done, 0, self.clock()

    def on_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:  # noqa: ARG002
        self.beat()

    def on_held_out_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:  # noqa: ARG002
        self.beat()

    def on_step(self, end: StepEnd) -> None:
        self._step, self._micro_batch, self._last = end.step, 0, self.clock()

    def on_evaluation(self, step: int, row: Mapping[str, float]) -> None:  # noqa: ARG002
        self._last = self.clock()

    def on_checkpoint(self, step: int) -> None:  # noqa: ARG002
        self._last = self.clock()

    def close(self) -> None:
        """End the watch. A thread that is inside the store's client when the interpreter ends takes the process down.

        With the exit code of an abort, that is, where the run has succeeded. A store that no longer answers is waited
        for no longer than a bound: then its host is gone, and this rank has not succeeded.
        """
        self._closed.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_CLOSE_TIMEOUT_S)

    @property
    def _interval_s(self) -> float:
        return min(_INTERVAL_S, self.timeout_s / 6, self.silence_s / 6)

    def _exchange(self) -> None:
        """Post own signs; read the others' while this rank stands still."""
        beat = 0
        try:
            while not self._closed.wait(self._interval_s):
                beat += 1
                self.board.post(Sign(self._step, self._micro_batch, beat))
                if self.clock() - self._last > 2 * self._interval_s:
                    self.note(self.board.read())
                else:
                    self._changed.clear()
                self._exchanged = self.clock()
            self.board.post(Sign(self._step, self._micro_batch, _CLOSED))
        except Exception as error:  # noqa: BLE001 (the store is gone with its host; the collective says so too)
            _LOG.debug("no signs are exchanged any more: %s", error)

    def note(self, signs: list[Sign | None]) -> None:
        """Remember when each rank's beat was last seen to change."""
        now = self.clock()
        for rank, sign in enumerate(signs):
            beat = 0 if sign is None else sign.beat
            if rank not in self._changed or self._changed[rank][0] != beat:
                self._changed[rank] = (beat, now)
        self._signs = signs

    def _silent(self, for_s: float) -> list[int]:
        now = self.clock()
        return sorted(
            rank
            for rank, (beat, since) in list(self._changed.items())
            if rank != self.rank and beat != _CLOSED and now - since > for_s
        )

    def verdict(self) -> tuple[str, float, list[int]] | None:
        """Return (reason's code, seconds without progress, silent ranks) if the run is to end."""
        idle_s = self.clock() - self._last
        if idle_s > self.timeout_s:
            return "Hang", idle_s, self._silent(3 * self._interval_s)
        if idle_s > self.silence_s and (silent := self._silent(self.silence_s)):
            return "PeerSilent", idle_s, silent
        if self.rank != 0 and min(idle_s, self.clock() - self._exchanged) > self.silence_s:
            # The store lives on the first node: rank 0's.
            return "PeerSilent", idle_s, [0]
        return None

    def _watch(self) -> None:
        while not self._closed.wait(self._interval_s):
            if (verdict := self.verdict()) is not None:
                self._fire(*verdict)

    def _fire(self, code: str, idle_s: float, silent: list[int]) -> None:
        signs = Background(self.board.read, "watchdog-read")
        signs.wait(_READ_TIMEOUT_S)
        message = (
            f"rank {self.rank} has finished no micro-batch for {idle_s:.0f} s, since step {self._step + 1}, "
            f"micro-batch {self._micro_batch + 1}; {describe(signs.value or self._signs, silent)}"
        )
        hint = "The stacks of all threads stand in the pods' logs. The next attempt continues from the last checkpoint."
        print(f"error: {message}\nhint: {hint}\nstacks of rank {self.rank}:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        outcome = TerminationMessage(
            outcome="Failed",
            step=self._step,
            error=ErrorInfo(code=code, message=message, hint=hint),
            exit_code=ExitCode.TEMPORARY,
        )
        try:
            termination.write(outcome, self.environ)
        finally:
            sys.stderr.flush()
            self.end(ExitCode.TEMPORARY)
