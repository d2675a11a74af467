"""Retries of requests to servers: one loop, one backoff, one reading of limits from the environment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from wrpo_engine.errors import ConfigError

T = TypeVar("T")
_MAX_DOUBLINGS = 64
"""More doublings exceed every longest pause, and eventually the range of a float."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Pauses between tries: doubling up to the longest, with jitter so that clients do not return together."""

    first_s: float
    longest_s: float
    least: float = 0.5
    """Smallest share of a pause that jitter leaves."""

    def pause(self, failed: int, jitter: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after `failed` earlier failures; `jitter` gives numbers from 0 to 1."""
        ceiling = min(self.longest_s, self.first_s * 2.0 ** min(failed, _MAX_DOUBLINGS))
        return ceiling * (self.least + (1.0 - self.least) * jitter())


@dataclass(frozen=True, slots=True)
class Tries:
    """What happened before a failure, counted from the last progress."""

    failed: int
    """Failures before this one."""
    waited_s: float
    """Since the first try."""


def retry(
    request: Callable[[], T],
    *,
    next_pause: Callable[[Exception, Tries], float],
    wait: Callable[[Exception, float], None],
    progress: Callable[[], int] = lambda: 0,
    monotonic: Callable[[], float] = time.monotonic,
) -> T:
    """Make a request until it succeeds; return what it returns.

    After a failure, `next_pause` returns the seconds until the next try, or raises what ends the loop; `wait` waits, or
    raises. A request that has progressed since the last failure, as `progress` shows, starts counting from zero.
    """
    failed, done, since = 0, progress(), monotonic()
    while True:
        try:
            return request()
        except Exception as error:  # noqa: BLE001 - next_pause decides which are tried again
            if (now_done := progress()) != done:
                failed, done, since = 0, now_done, monotonic()
            pause = next_pause(error, Tries(failed, monotonic() - since))
            failed += 1
            wait(error, pause)


def seconds_of(environ: Mapping[str, str], name: str, default: float) -> float:
    """Return a variable's seconds, 0 or more (`inf`: without limit); ConfigError if it is no such number."""
    text = environ.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise ConfigError(name, text, "it must be a number of seconds", f"Unset it, or write e.g. {default:g}.")
    return number
