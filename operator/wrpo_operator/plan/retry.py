"""Retry policy: the next attempt after a failure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.lifecycle import Retries
from wrpo_operator.api.status import Attempt, AttemptState, from_time
from wrpo_operator.plan.classify import ENDED, OUT_OF_MEMORY
from wrpo_operator.plan.model import FailureKind

MAX_PAUSE = timedelta(hours=1)
MAX_DOUBLINGS = 12
"""Enough for a delay from one second to more than an hour."""
JITTER = 0.25
"""Delays grow by up to this share, so that stages that failed together do not restart together."""


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Start the attempt of this number now."""

    number: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Start no attempt before this moment."""

    until: datetime


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not retry: the failure is final."""

    reason: Reason


RetryDecision: TypeAlias = StartAttempt | Wait | GiveUp


@dataclass(frozen=True, slots=True)
class History:
    """The attempts of a stage, oldest first, and their counters."""

    attempts: Sequence[Attempt]
    forgiven: int = 0
    """Number of the last attempt that no longer counts."""
    failures: int = 0
    """Later attempts that used up a retry."""
    disruptions: int = 0
    """Consecutive attempts so far that the cluster terminated."""


def decide_next(
    history: History, policy: Retries, now: datetime, *, seed: str = "", room: bool = False
) -> RetryDecision:
    """Decide the next attempt if no child is live and none has succeeded.

    `seed` varies the jitter between stages, so that their retries do not coincide; empty: no jitter. `room`: the
    operator can give the next attempt more accelerator memory, so that OutOfMemory uses up no retry.
    Invariants: a disruption never uses up a retry; a bad config is never retried; an attempt that was recorded as
    active but has no child (deleted manually, or not yet observed) keeps its number, so it never runs twice.
    """
    if not history.attempts:
        return StartAttempt(1)
    last = history.attempts[-1]
    if last.state not in ENDED:
        return StartAttempt(last.number)
    if last.state is AttemptState.DISRUPTED and history.disruptions > 1:
        return _after_pause(last, history.disruptions - 1, policy, now, seed)
    if last.state is not AttemptState.FAILED or last.number <= history.forgiven:
        return StartAttempt(last.number + 1)
    if room and last.reason == OUT_OF_MEMORY:
        return StartAttempt(last.number + 1)
    if last.reason == Reason.PENDING_TOO_LONG:
        return GiveUp(Reason.PENDING_TOO_LONG)
    if last.failure == FailureKind.CONFIG:
        return GiveUp(Reason.STAGE_FAILED)
    if same_error_again(history.attempts, history.forgiven):
        return GiveUp(Reason.SAME_ERROR)
    if history.failures > policy.limit:
        return GiveUp(Reason.RETRIES_EXHAUSTED)
    return _after_pause(last, history.failures, policy, now, seed)


def _after_pause(last: Attempt, nth: int, policy: Retries, now: datetime, seed: str) -> RetryDecision:
    """Wait for the delay before the `nth` retry, from the end of the last attempt."""
    pause = timedelta(seconds=policy.backoff_seconds) * 2 ** min(max(0, nth - 1), MAX_DOUBLINGS)
    if seed:
        pause *= 1 + JITTER * share_of(f"{seed}-{last.number}")
    pause = min(MAX_PAUSE, pause)
    retry_at = (from_time(last.finished_at) if last.finished_at else now) + pause
    return Wait(retry_at) if now < retry_at else StartAttempt(last.number + 1)


def same_error_again(attempts: Sequence[Attempt], forgiven: int) -> bool:
    """Return whether the last two failures of a training stage are the same error at the same step."""
    failed = [attempt for attempt in attempts if attempt.state is AttemptState.FAILED and attempt.number > forgiven][
        -2:
    ]
    if len(failed) < 2 or any(attempt.step is None for attempt in failed):
        return False
    first, second = failed
    return (first.reason, first.step) == (second.reason, second.step)


def share_of(text: str) -> float:
    """Return a pseudo-random number in [0, 1) that depends only on the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
