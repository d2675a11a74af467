"""Leader election."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wrpo_operator.runtime.kube import KubeError
from wrpo_operator.runtime.lease import LeaderElection, LeaseSettings
from wrpo_operator.runtime.resources import LEASES


def election(kube: Any, clock: Any, identity: str) -> LeaderElection:
    return LeaderElection(kube, LeaseSettings("default", "wrpo", identity), monotonic=clock)


def holder(kube: Any) -> str:
    return str(kube.objects[LEASES, "default", "wrpo"]["spec"]["holderIdentity"])


def test_the_first_takes_the_lease_and_the_second_stands_by(kube: Any, clock: Any) -> None:
    first, second = election(kube, clock, "one"), election(kube, clock, "two")
    asyncio.run(first.step())
    asyncio.run(second.step())
    assert (first.is_leader, second.is_leader, holder(kube)) == (True, False, "one")


def test_the_second_takes_over_only_after_the_record_stood_still_for_the_whole_duration(kube: Any, clock: Any) -> None:
    first, second = election(kube, clock, "one"), election(kube, clock, "two")
    asyncio.run(first.step())
    asyncio.run(second.step())
    clock.at += 14.9
    asyncio.run(second.step())
    assert not second.is_leader
    clock.at += 0.2
    asyncio.run(second.step())
    assert second.is_leader
    assert kube.objects[LEASES, "default", "wrpo"]["spec"]["leaseTransitions"] == 1


def test_a_leader_that_cannot_renew_stops_acting_before_another_may_start(kube: Any, clock: Any) -> None:
    first = election(kube, clock, "one")
    asyncio.run(first.step())
    kube.fail["get", "leases"] = KubeError(0, "Unreachable", "gone")
    clock.at += 9
    asyncio.run(first.step())
    assert first.is_leader
    clock.at += 1.1
    assert not first.is_leader


def slow(kube: Any, clock: Any, verb: str, seconds: float) -> None:
    """Let the answers of a verb take so long."""
    at_once = getattr(kube, verb)

    async def late(*arguments: Any) -> Any:
        answer = await at_once(*arguments)
        clock.at += seconds
        return answer

    setattr(kube, verb, late)


def test_a_renewal_counts_from_when_it_was_asked_for_however_late_its_answer_is(kube: Any, clock: Any) -> None:
    changes: list[bool] = []
    first = LeaderElection(kube, LeaseSettings("default", "wrpo", "one"), monotonic=clock, on_change=changes.append)
    asyncio.run(first.step())
    slow(kube, clock, "replace", 9)
    asyncio.run(first.step())
    assert first.is_leader
    clock.at += 1.1
    assert not first.is_leader
    asyncio.run(first.step())
    assert first.is_leader
    slow(kube, clock, "replace", 9)
    asyncio.run(first.step())
    assert not first.is_leader
    assert changes == [True, False]


def test_a_candidate_counts_from_when_it_was_told_of_the_record(kube: Any, clock: Any) -> None:
    """The record may have been written at any time until the answer came."""
    asyncio.run(election(kube, clock, "one").step())
    second = election(kube, clock, "two")
    slow(kube, clock, "get", 9)
    asyncio.run(second.step())
    clock.at += 14.9
    asyncio.run(second.step())
    assert not second.is_leader


def test_a_renewal_without_an_answer_is_given_up_at_the_deadline(kube: Any, clock: Any, caplog: Any) -> None:
    settings = LeaseSettings("default", "wrpo", "one", duration_s=0.3, renew_deadline_s=0.2, retry_s=0.1)
    first = LeaderElection(kube, settings, monotonic=clock)
    asyncio.run(first.step())

    async def never(*_: Any) -> None:
        clock.at += 0.2
        await asyncio.Event().wait()

    kube.replace = never
    asyncio.run(first.step())
    assert not first.is_leader
    assert "lease wrpo cannot be renewed: no response within 0.2 s" in caplog.text


def test_a_leader_whose_lease_was_taken_steps_down(kube: Any, clock: Any) -> None:
    changes: list[bool] = []
    first = LeaderElection(kube, LeaseSettings("default", "wrpo", "one"), monotonic=clock, on_change=changes.append)
    asyncio.run(first.step())
    lease = kube.objects[LEASES, "default", "wrpo"]
    kube.put(LEASES, {**lease, "spec": {**lease["spec"], "holderIdentity": "two"}})
    clock.at += 11
    asyncio.run(first.step())
    assert not first.is_leader
    assert changes == [True, False]


def test_a_race_for_the_lease_has_one_winner(kube: Any, clock: Any) -> None:
    kube.put(LEASES, {"metadata": {"name": "wrpo"}, "spec": {"holderIdentity": ""}})
    first, second = election(kube, clock, "one"), election(kube, clock, "two")

    async def race() -> None:
        await asyncio.gather(first.step(), second.step())

    asyncio.run(race())
    assert [first.is_leader, second.is_leader].count(True) == 1
    assert holder(kube) == ("one" if first.is_leader else "two")


def test_stopping_gives_the_lease_back(kube: Any, clock: Any) -> None:
    first = election(kube, clock, "one")

    async def run_and_stop() -> None:
        task = asyncio.create_task(first.run())
        while not first.is_leader:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run_and_stop())
    assert holder(kube) == ""


def test_times_that_would_allow_two_leaders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"retry 2 s < renew deadline 20 s < duration 15 s must hold"):
        LeaseSettings("ns", "wrpo", "one", renew_deadline_s=20)
