"""What follows a failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.spec import Retries
from wrpo_operator.api.status import Attempt, AttemptState, from_time
from wrpo_operator.plan.classify import ENDED
from wrpo_operator.plan.model import FailureKind

MAX_PAUSE = timedelta(hours=1)


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
    """The stage has failed for good."""

    reason: Reason


RetryDecision: TypeAlias = StartAttempt | Wait | GiveUp


def decide_next(
    attempts: Sequence[Attempt], *, forgiven: int, failures: int, policy: Retries, now: datetime
) -> RetryDecision:
    """Decide which attempt follows, when no child is live and none has succeeded.

    `attempts` are oldest first; `failures` counts those after number `forgiven` that used up a retry.
    Invariants: a disruption never uses up a retry; a bad config is never tried again; an attempt that was recorded as
    active but has no child (deleted by hand, or not yet seen) keeps its number, so it can never run twice at once.
    """
    if not attempts:
        return StartAttempt(1)
    last = attempts[-1]
    if last.state not in ENDED:
        return StartAttempt(last.number)
    if last.state is not AttemptState.FAILED or last.number <= forgiven:
        return StartAttempt(last.number + 1)
    if last.reason == Reason.PENDING_TOO_LONG:
        return GiveUp(Reason.PENDING_TOO_LONG)
    if last.failure == FailureKind.CONFIG:
        return GiveUp(Reason.STAGE_FAILED)
    if failures > policy.limit:
        return GiveUp(Reason.RETRIES_EXHAUSTED)
    pause = min(MAX_PAUSE, timedelta(seconds=policy.backoff_seconds) * 2 ** max(0, failures - 1))
    retry_at = (from_time(last.finished_at) if last.finished_at else now) + pause
    return Wait(retry_at) if now < retry_at else StartAttempt(last.number + 1)
