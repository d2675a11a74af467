"""A call with room for recursion: the API server's functions follow the nesting of the objects that they handle."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
MAX_DEPTH = 10_000
"""Levels of objects and lists that a real server reads; it refuses a JSON text that nests deeper."""
_FRAMES = 8 * MAX_DEPTH + 1000
"""Of Python: no function of the server needs more than four for a level; a patch may double the depth."""
_BYTES = 256 * 1024 * 1024
"""Of the C stack, where Python's JSON encoder and comparisons recurse. Memory is taken when it is used."""
_LOOK_S = 1.0


def call_with_deep_stack(function: Callable[[], T]) -> T:
    """Return what `function` returns, or raise what it raises. It runs in a thread with a deep stack.

    Meanwhile the limit of recursion is raised for the whole process, and signal handlers run in the calling thread.
    """
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # noqa: BLE001  (the caller raises it)
            result.set_exception(error)

    limit, size = sys.getrecursionlimit(), threading.stack_size(_BYTES)
    thread = threading.Thread(target=work, name="deep-stack")
    sys.setrecursionlimit(_FRAMES)
    try:
        thread.start()
        threading.stack_size(size)
        while thread.is_alive():
            # A signal that another thread received is handled when this one wakes up.
            thread.join(_LOOK_S)
    finally:
        sys.setrecursionlimit(limit)
    return result.result()
