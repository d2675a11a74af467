"""A function in a background thread, with its result or error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs a function in a daemon thread, so that a process that fails elsewhere does not wait for it."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._value: T | None = None
        self.error: Exception | None = None
        """The exception of the function; valid once `done` is true."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except Exception as error:  # noqa: BLE001 (raised again in the waiting thread)
            self.error = error

    @property
    def done(self) -> bool:
        """True once the function has returned or raised."""
        return not self._thread.is_alive()

    @property
    def value(self) -> T | None:
        """The result of the function; None before `done` and after an error."""
        return self._value

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until `done`, at most `timeout_s` seconds; a timeout raises nothing."""
        self._thread.join(timeout_s)
