"""A bounded number of requests at a time, in threads, without waiting for a server that does not reply."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import TypeVar

Result = TypeVar("Result")
_POLL_S = 0.2


def in_flight(
    request: Callable[[int], Result],
    count: int,
    *,
    threads: int,
    stopped: threading.Event,
    on_wait: Callable[[], None] = lambda: None,
    grace_s: float = 0.0,
) -> Generator[tuple[int, Result]]:
    """Yield the number and the result of each of `count` requests as they complete; the first error ends them all.

    `on_wait` is called while nothing completes; an exception from it ends the requests, too. `stopped` is set at the
    end, and requests that have been sent get `grace_s` seconds to complete.
    """
    done: queue.Queue[tuple[int, Result | BaseException]] = queue.Queue()
    todo = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        while not stopped.is_set():
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
    workers = [
        threading.Thread(target=work, name=f"request-{number}", daemon=True) for number in range(min(threads, count))
    ]
    for worker in workers:
        worker.start()
    try:
        for _ in range(count):
            index, result = _next(done, on_wait)
            if isinstance(result, BaseException):
                raise result
            yield index, result
    finally:
        stopped.set()
        deadline = time.monotonic() + grace_s
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))


def _next(
    done: queue.Queue[tuple[int, Result | BaseException]], on_wait: Callable[[], None]
) -> tuple[int, Result | BaseException]:
    while True:
        try:
            return done.get(timeout=_POLL_S)
        except queue.Empty:
            on_wait()
