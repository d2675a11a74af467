"""The one retry loop: when it pauses, for how long, and what ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.errors import ConfigError
from wrpo_engine.retrying import Backoff, Tries, retry, seconds_of


class BusyError(Exception):
    """May pass."""


@dataclass
class World:
    """A clock that moves when somebody waits, and requests with given outcomes."""

    outcomes: list[Exception | str]
    limit_s: float = 10.0
    now: float = 0.0
    pauses: list[float] = field(default_factory=list)
    seen: list[Tries] = field(default_factory=list)

    def request(self) -> str:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def next_pause(self, error: Exception, tries: Tries) -> float:
        self.seen.append(tries)
        pause = 2.0**tries.failed
        if not isinstance(error, BusyError) or tries.waited_s + pause > self.limit_s:
            raise error
        return pause

    def wait(self, _: Exception, pause: float) -> None:
        self.pauses.append(pause)
        self.now += pause

    def run(self, progress: Callable[[], int] = lambda: 0) -> str:
        return retry(
            self.request, next_pause=self.next_pause, wait=self.wait, progress=progress, monotonic=lambda: self.now
        )


def test_a_request_is_repeated_until_it_succeeds() -> None:
    world = World([BusyError(), BusyError(), "done"])
    assert (world.run(), world.pauses) == ("done", [1.0, 2.0])
    assert world.seen == [Tries(0, 0.0), Tries(1, 1.0)]


def test_an_error_that_does_not_pass_ends_the_loop_at_once() -> None:
    final = ValueError("no")
    world = World([final, "never"])
    with pytest.raises(ValueError, match="no") as caught:
        world.run()
    assert (caught.value, world.pauses) == (final, [])


def test_the_limit_is_the_time_since_the_first_try() -> None:
    world = World([BusyError(str(number)) for number in range(9)])
    with pytest.raises(BusyError, match="3"):
        world.run()
    assert world.pauses == [1.0, 2.0, 4.0]


def test_progress_starts_the_count_and_the_time_from_zero() -> None:
    world = World([BusyError(), BusyError(), BusyError(), "done"])
    done = iter([0, 0, 1, 1])
    assert world.run(lambda: next(done)) == "done"
    assert world.seen == [Tries(0, 0.0), Tries(0, 0.0), Tries(1, 1.0)]


def test_a_wait_that_raises_ends_the_loop() -> None:
    def stop(_: Exception, __: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retry(World([BusyError()]).request, next_pause=lambda *_: 1.0, wait=stop)


@given(failed=st.integers(0, 10**6), jitter=st.floats(0, 1))
def test_pauses_stay_between_a_share_of_the_ceiling_and_the_longest(failed: int, jitter: float) -> None:
    backoff = Backoff(first_s=0.5, longest_s=20.0)
    ceiling = min(20.0, 0.5 * 2 ** min(failed, 10))
    assert ceiling / 2 <= backoff.pause(failed, lambda: jitter) <= ceiling


@pytest.mark.parametrize(("text", "seconds"), [("", 300.0), ("0", 0.0), ("1.5", 1.5), ("inf", float("inf"))])
def test_seconds_come_from_the_environment_or_the_default(text: str, seconds: float) -> None:
    assert seconds_of({"WAIT": text}, "WAIT", 300.0) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "-inf", "5 min"])
def test_a_limit_that_is_no_number_of_seconds_is_a_bad_configuration(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        seconds_of({"WAIT": text}, "WAIT", 300.0)
    assert str(error.value) == f"WAIT is {text!r}: it must be a number of seconds"
    assert error.value.hint == "Unset it, or write e.g. 300."
