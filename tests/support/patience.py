"""How long tests wait for what has to happen.

The speed of the machine decides no result: a wait ends as soon as its condition holds, and only a test that fails waits
for the whole limit. Waits for what must not happen, and measured times, have no place in a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 300.0
"""Seconds. A machine that is ten times slower than a developer's needs a minute for what takes seconds there."""
LONG_S = 1800.0
"""Seconds, for conditions that several minutes of computation precede."""


def wait_until(what: str, condition: Callable[[], Any], *, timeout_s: float = LIMIT_S, every_s: float = 0.2) -> Any:
    """Return the condition's first true value; raise AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)
    return value
