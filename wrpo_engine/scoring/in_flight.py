"""A bounded number of requests at a time, in threads, without waiting for a server that does not reply."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")
_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Threads that make requests."""

    threads: int
    stopped: threading.Event
    """Set at the end."""
    grace_s: float = 0.0
    """Time for requests that have been sent, after the end."""


def in_flight(
    request: Callable[[int], Result], count: int, workers: Workers, *, on_wait: Callable[[], None] = lambda: None
) -> Generator[tuple[int, Result]]:
    """Yield the number and the result of each of `count` requests as they complete; the first error ends them all.

    `on_wait` is called while nothing completes; an exception from it ends the requests, too.
    """
    done: queue.Queue[tuple[int, Result | BaseException]] = queue.Queue()
    todo = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        while not workers.stopped.is_set():
            with lock:
                index = next(todo, None)
            if index is None:
                return
            try:
                done.put((index, request(index)))
            except BaseException as error:  # noqa: BLE001 (raised by the thread that waits)
                done.put((index, error))
                return

    # Daemons: a stop request must not wait for a server that does not reply.
    started = [
        threading.Thread(target=work, name=f"request-{number}", daemon=True)
        for number in range(min(workers.threads, count))
    ]
    for thread in started:
        thread.start()
    try:
        for _ in range(count):
            index, result = _next(done, on_wait)
            if isinstance(result, BaseException):
                raise result
            yield index, result
    finally:
        workers.stopped.set()
        deadline = time.monotonic() + workers.grace_s
        for thread in started:
            thread.join(max(0.0, deadline - time.monotonic()))


def _next(
    done: queue.Queue[tuple[int, Result | BaseException]], on_wait: Callable[[], None]
) -> tuple[int, Result | BaseException]:
    while True:
        try:
            return done.get(timeout=_POLL_S)
        except queue.Empty:
            on_wait()
