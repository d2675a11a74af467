"""When a stage may send its next request to a judge: requests a minute, pauses of the server, and the budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from wrpo_engine.errors import ConfigError, Interrupted, TemporaryError
from wrpo_engine.judging.section import ANY_JUDGE

QUOTA_PATIENCE_S = 300.0
"""Longest time in which the server refuses all requests with 429."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Limits of a stage's requests to its judge."""

    section: str = ANY_JUDGE
    """Of the spec: the judge."""
    per_minute: int | None = None
    """Spread evenly."""
    max_requests: int | None = None
    """Those of earlier attempts included."""
    quota_patience_s: float = QUOTA_PATIENCE_S


class Pacer:
    """Shared by all threads of a stage. `used`: requests of earlier attempts; `on_request` notes each one."""

    def __init__(
        self,
        limits: RequestLimits = RequestLimits(),
        *,
        used: int = 0,
        on_request: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._interval_s = 60.0 / limits.per_minute if limits.per_minute else 0.0
        self.used = used
        self._on_request = on_request
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._not_before_s = 0.0
        self._refused_since_s: float | None = None

    def turn(self, stopped: threading.Event) -> None:
        """Wait until a request may be sent, and count it. Raises Interrupted, or ConfigError at the budget's end."""
        while True:
            with self._lock:
                pause = self._not_before_s - self._monotonic()
                if pause <= 0:
                    self._count()
                    self._not_before_s = max(self._not_before_s, self._monotonic()) + self._interval_s
                    return
            if stopped.wait(pause):
                raise Interrupted

    def _count(self) -> None:
        limit = self._limits.max_requests
        if limit is not None and self.used >= limit:
            raise budget_exceeded(limit, self.used, 1, section=self._limits.section)
        self.used += 1
        self._on_request()

    def answered(self) -> None:
        """Note a reply: the server accepts requests."""
        with self._lock:
            self._refused_since_s = None

    def refused(self, asked_s: float | None, backoff_s: float, shown: str, *, is_final: bool) -> None:
        """Note a 429: no request leaves for the time that the server asks for.

        Raises TemporaryError if the server has refused, or would refuse, all requests for longer than its limit.
        """
        patience_s = self._limits.quota_patience_s
        with self._lock:
            now = self._monotonic()
            if self._refused_since_s is None:
                self._refused_since_s = now
            pause = backoff_s if asked_s is None else asked_s + backoff_s
            if is_final or max(now, now + (asked_s or 0.0)) - self._refused_since_s > patience_s:
                raise TemporaryError(
                    f"the judge refuses all requests because of its quota for {patience_s:g} s or more: {shown}",
                    code="JudgeQuotaExceeded",
                    field=f"{self._limits.section}.endpoint",
                    hint="Lower requestsPerMinute or concurrency, or raise the quota of the account. The stage is "
                    "retried; replies are kept.",
                )
            self._not_before_s = max(self._not_before_s, now + pause)


def budget_exceeded(limit: int, used: int, needed: int, *, section: str) -> ConfigError:
    """Return the error of a stage that needs more requests than it may send; `section` of the spec is its judge."""
    return ConfigError(
        f"{section}.maxRequests",
        limit,
        f"{used} requests were sent and at least {needed} more are needed",
        "Raise maxRequests; replies are kept and not asked for again.",
        code="JudgeBudgetExceeded",
    )
