"""Processes of vLLM's engine, seen from outside: the last lines of their output, and whether they live."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import select
import struct
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Generic, TypeVar

KEPT_LINES = 1000
"""A worker's traceback has about a hundred lines, and each of eight workers may log one."""
_LINE_BYTES = 2000
_READ_BYTES = 65536
_POLL_S = 1.0
_GRACE_S = 10.0
"""Seconds for the error that a dead process sent before its end."""
_STANDARD = (1, 2)

T = TypeVar("T")


class EngineOutput:
    """The last lines that processes started inside `captured` write to stdout and stderr.

    Everything is also written where it would have gone without this. The pipes stay open as long as the processes do,
    so that lines which come later are kept too.
    """

    def __init__(self, *, kept: int = KEPT_LINES) -> None:
        self._lines: deque[bytes] = deque(maxlen=kept)
        self._partial = dict.fromkeys(_STANDARD, b"")
        self._readers: dict[int, tuple[int, int]] = {}
        """Reading end of a pipe -> standard descriptor, and a copy of where that went before."""
        self._lock = threading.Lock()

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Give processes that are started inside pipes as stdout and stderr; own output goes through them too."""
        sys.stdout.flush()
        sys.stderr.flush()
        originals = {standard: os.dup(standard) for standard in _STANDARD}
        for standard, original in originals.items():
            reader, writer = os.pipe()
            self._readers[reader] = (standard, original)
            os.dup2(writer, standard)
            os.close(writer)
        threading.Thread(target=self._copy, name="engine-output", daemon=True).start()
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for standard, original in originals.items():
                os.dup2(original, standard)

    def lines(self) -> list[str]:
        """Return the last lines, with everything that has been written by now."""
        with self._lock:
            for reader in list(self._readers):
                self._drain(reader)
            partial = [text for text in self._partial.values() if text]
            return [line.decode(errors="replace") for line in [*self._lines, *partial]]

    def _copy(self) -> None:
        poller = select.poll()
        for reader in self._readers:
            poller.register(reader, select.POLLIN)
        while self._readers:
            for reader, event in poller.poll():
                with self._lock:
                    self._drain(reader)
                    if event & select.POLLHUP:
                        # No process can write to it any more.
                        poller.unregister(reader)
                        self._close(reader)

    def _drain(self, reader: int) -> None:
        while available(reader):
            self._take(reader, os.read(reader, _READ_BYTES))

    def _close(self, reader: int) -> None:
        _, original = self._readers.pop(reader)
        os.close(reader)
        os.close(original)

    def _take(self, reader: int, data: bytes) -> None:
        standard, original = self._readers[reader]
        *lines, rest = (self._partial[standard] + data).split(b"\n")
        self._lines.extend(line[:_LINE_BYTES] for line in lines)
        self._partial[standard] = rest[:_LINE_BYTES]
        # The reader of the original may be gone; the processes must not wait for it.
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(original, data) :]


def available(reader: int) -> int:
    """Return how many bytes a pipe holds."""
    (count,) = struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4))
    return int(count)


class EngineProcessDied(RuntimeError):  # noqa: N818 (an outcome that the sampler turns into its own error)
    """A process of the engine ended without a word to this one."""


@contextmanager
def started_processes() -> Iterator[list[BaseProcess]]:
    """Yield a list that holds, after the block, the child processes that were started in it."""
    before = set(multiprocessing.active_children())
    started: list[BaseProcess] = []
    yield started
    started += [process for process in multiprocessing.active_children() if process not in before]


class WatchedCall(Generic[T]):
    """A call that waits for other processes and would wait for ever if one of them is killed.

    It runs in a thread, while the calling thread looks at the processes. vLLM's client waits on a queue. Nothing is put
    into it any more once the engine's process was killed, for example because the host's memory ran out.
    """

    def __init__(
        self,
        call: Callable[[], T],
        processes: Sequence[BaseProcess],
        *,
        poll_s: float = _POLL_S,
        grace_s: float = _GRACE_S,
    ) -> None:
        self._call, self._processes = call, processes
        self._poll_s, self._grace_s = poll_s, grace_s
        self._asked: SimpleQueue[Future[T]] = SimpleQueue()
        threading.Thread(target=self._run, name="engine-calls", daemon=True).start()

    def __call__(self) -> T:
        """Return the call's result or raise its error; EngineProcessDied if a process died and no result came."""
        answer: Future[T] = Future()
        self._asked.put(answer)
        while True:
            dead = next((process for process in self._processes if process.exitcode is not None), None)
            wait([answer], self._poll_s if dead is None else self._grace_s)
            if answer.done():
                return answer.result()
            if dead is not None:
                raise EngineProcessDied(f"{dead.name}'s process ended with {exit_reason(dead.exitcode)}")

    def _run(self) -> None:
        while True:
            answer = self._asked.get()
            try:
                answer.set_result(self._call())
            except Exception as error:  # noqa: BLE001 (raised in the thread that waits)
                answer.set_exception(error)


def exit_reason(code: int | None) -> str:
    """Return an exit code of multiprocessing in words: negative ones are signals."""
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
