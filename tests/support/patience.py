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
LEAST_PAUSE_S, MOST_PAUSE_S, PAUSE_SHARE = 0.1, 1.0, 0.1


def wait_until(
    what: str, condition: Callable[[], Any], *, timeout_s: float = LIMIT_S, every_s: float | None = None
) -> Any:
    """Return the condition's first true value; raise AssertionError after `timeout_s`.

    Without `every_s` (seconds) the pauses grow with the time waited, because one look with kubectl costs a tenth of a
    second of a processor that the awaited work needs. State the pause where the condition holds only for a while.
    """
    begun = time.monotonic()
    while not (value := condition()):
        waited_s = time.monotonic() - begun
        if waited_s >= timeout_s:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(pause_s(waited_s) if every_s is None else every_s)
    return value


def pause_s(waited_s: float) -> float:
    """Return the pause before the next look, in seconds."""
    return min(max(LEAST_PAUSE_S, PAUSE_SHARE * waited_s), MOST_PAUSE_S)
