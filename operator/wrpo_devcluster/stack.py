"""Deep stack for recursion: the API server's functions follow the nesting of the objects that they handle."""

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
"""Python's recursion limit. Functions of the server need up to four frames a level. A patch may double the depth."""
_BYTES = 256 * 1024 * 1024
"""Bytes of the C stack, where Python's JSON encoder and comparisons recurse. Memory is allocated on use."""
_LOOK_S = 1.0


def call_with_deep_stack(function: Callable[[], T]) -> T:
    """Run `function` in a thread with a deep stack; return its result or raise its exception.

    Meanwhile the recursion limit is raised for the whole process, and signal handlers run in the calling thread.
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
            # A signal that another thread received is handled when this thread resumes.
            thread.join(_LOOK_S)
    finally:
        sys.setrecursionlimit(limit)
    return result.result()
