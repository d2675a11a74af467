"""One piece of work in another thread, and how it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs a function in a daemon thread: a process that fails elsewhere does not wait for it."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._value: T | None = None
        self.error: Exception | None = None
        """What the function raised; to be read when `done`."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except Exception as error:  # noqa: BLE001 (raised again in the thread that asks)
            self.error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    @property
    def value(self) -> T | None:
        """None before it is done and after an error."""
        return self._value

    def wait(self, timeout_s: float | None = None) -> None:
        self._thread.join(timeout_s)
