"""What follows a failure: what was tried so far, seconds since, what must follow."""

from __future__ import annotations

from datetime import timedelta
from itertools import takewhile

import pytest
from support.builders import NOON

from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.lifecycle import Retries
from wrpo_operator.api.status import Attempt, AttemptState, to_time
from wrpo_operator.plan.retry import GiveUp, History, RetryDecision, StartAttempt, Wait, decide_next, share_of

POLICY = Retries(limit=2, backoffSeconds=10)
CRASH = ("Failed", "Application")
BAD = ("Failed", "Config")
EVICTED = ("Disrupted", "Disruption")
STOPPED = ("Stopped", None)
RUNNING = ("Running", None)
LATE = ("Failed", "PendingTooLong")
Ends = list[tuple[str, str | None]]

CASES: dict[str, tuple[Ends, float, RetryDecision]] = {
    "nothing yet": ([], 0, StartAttempt(1)),
    "a bad spec is final": ([BAD], 999, GiveUp(Reason.STAGE_FAILED)),
    "first crash waits for the backoff": ([CRASH], 9, Wait(NOON + timedelta(seconds=10))),
    "first crash retries after it": ([CRASH], 10, StartAttempt(2)),
    "backoff doubles": ([CRASH, CRASH], 19, Wait(NOON + timedelta(seconds=20))),
    "third crash exhausts two retries": ([CRASH] * 3, 999, GiveUp(Reason.RETRIES_EXHAUSTED)),
    "an eviction restarts at once": ([EVICTED], 0, StartAttempt(2)),
    "evictions are free": ([CRASH, *[EVICTED] * 50], 3600, StartAttempt(52)),
    "a second eviction in a row waits for the backoff": ([EVICTED] * 2, 9, Wait(NOON + timedelta(seconds=10))),
    "and restarts after it": ([EVICTED] * 2, 10, StartAttempt(3)),
    "with each further one it doubles": ([EVICTED] * 4, 39, Wait(NOON + timedelta(seconds=40))),
    "up to an hour": ([EVICTED] * 5000, 3599, Wait(NOON + timedelta(hours=1))),
    "an eviction after a crash is the first in a row": ([EVICTED, CRASH, EVICTED], 0, StartAttempt(4)),
    "so is one after a suspension": ([EVICTED, EVICTED, STOPPED, EVICTED], 0, StartAttempt(5)),
    "a stopped attempt is free": ([CRASH, CRASH, STOPPED], 0, StartAttempt(4)),
    "a child that is gone keeps its number": ([CRASH, RUNNING], 0, StartAttempt(2)),
    "waiting too long is final": ([LATE], 999, GiveUp(Reason.PENDING_TOO_LONG)),
}


def attempts(history: Ends) -> list[Attempt]:
    ends = to_time(NOON)
    return [
        Attempt(
            number=number,
            child=f"c{number}",
            state=AttemptState(state),
            failure="Config" if failure == "PendingTooLong" else failure,
            reason=failure if failure == "PendingTooLong" else None,
            finished_at=None if state == "Running" else ends,
        )
        for number, (state, failure) in enumerate(history, start=1)
    ]


def decide(history: Ends, seconds: float, forgiven: int = 0) -> RetryDecision:
    failures = sum(state == "Failed" for state, _ in history[forgiven:])
    now = NOON + timedelta(seconds=seconds)
    in_a_row = len(list(takewhile(lambda end: end == EVICTED, reversed(history))))
    return decide_next(History(attempts(history), forgiven, failures, in_a_row), POLICY, now)


@pytest.mark.parametrize(("history", "seconds", "expected"), CASES.values(), ids=CASES.keys())
def test_decides_what_follows(history: Ends, seconds: float, expected: RetryDecision) -> None:
    assert decide(history, seconds) == expected


def test_forgiven_failures_count_no_more() -> None:
    assert decide([CRASH] * 3, 0, forgiven=3) == StartAttempt(4)
    assert decide([BAD], 0, forgiven=1) == StartAttempt(2)


def test_the_backoff_never_exceeds_an_hour() -> None:
    policy = Retries(limit=20, backoffSeconds=3600)
    decision = decide_next(History(attempts([CRASH] * 20), failures=20), policy, NOON)
    assert decision == Wait(NOON + timedelta(hours=1))


def test_no_retries_means_one_attempt() -> None:
    decision = decide_next(History(attempts([CRASH]), failures=1), Retries(limit=0), NOON)
    assert decision == GiveUp(Reason.RETRIES_EXHAUSTED)


def crash(number: int, step: int | None, reason: str = "NotFinite", state: str = "Failed") -> Attempt:
    return Attempt(
        number=number,
        child=f"c{number}",
        state=AttemptState(state),
        failure="Application",
        reason=reason,
        step=step,
        finished_at=to_time(NOON),
    )


REPEATED: dict[str, tuple[list[Attempt], int, bool]] = {
    "the same error at the same step": ([crash(1, 7), crash(2, 7)], 0, True),
    "at step 0, too": ([crash(1, 0), crash(2, 0)], 0, True),
    "with a disruption between": ([crash(1, 7), crash(2, 3, state="Disrupted"), crash(3, 7)], 0, True),
    "only the last two count": ([crash(1, 5), crash(2, 7), crash(3, 7)], 0, True),
    "an older one does not": ([crash(1, 7), crash(2, 5), crash(3, 7)], 0, False),
    "another step": ([crash(1, 7), crash(2, 8)], 0, False),
    "another error": ([crash(1, 7), crash(2, 7, reason="OOMKilled")], 0, False),
    "no step known": ([crash(1, None), crash(2, None)], 0, False),
    "the step of one is not known": ([crash(1, None), crash(2, 7)], 0, False),
    "one failure": ([crash(1, 7)], 0, False),
    "the first was forgiven": ([crash(1, 7), crash(2, 7)], 1, False),
}


@pytest.mark.parametrize(("history", "forgiven", "is_final"), REPEATED.values(), ids=REPEATED.keys())
def test_the_same_error_at_the_same_step_twice_is_final(history: list[Attempt], forgiven: int, is_final: bool) -> None:
    policy = Retries(limit=9, backoffSeconds=10)
    decision = decide_next(History(history, forgiven, failures=1), policy, NOON)
    assert decision == (GiveUp(Reason.SAME_ERROR) if is_final else Wait(NOON + timedelta(seconds=10)))


def test_a_seed_makes_the_pause_longer_by_up_to_a_quarter() -> None:
    assert share_of("") == 0xE3B0C442 / 2**32
    seed = "uid/train"
    decision = decide_next(History(attempts([CRASH]), failures=1), POLICY, NOON, seed=seed)
    assert decision == Wait(NOON + timedelta(seconds=10) * (1 + 0.25 * share_of("uid/train-1")))
    assert 0.05 < share_of("uid/train-1") < 1


def test_a_failure_without_a_recorded_end_waits_from_now_on() -> None:
    (failed,) = attempts([CRASH])
    endless = failed.model_copy(update={"finished_at": None})
    decision = decide_next(History([endless], failures=1), POLICY, NOON + timedelta(seconds=99))
    assert decision == Wait(NOON + timedelta(seconds=109))
