"""Every call of a whole experiment fails or is the operator's last; the end is the same, and nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from support.fault_cluster import ExitCodes, Fault, FaultyClient, Operator, Server, drive, name_of, outcome

from wrpo_operator.runtime.lease import LeaderElection, LeaseSettings
from wrpo_operator.runtime.resources import JsonObject

NAME = "fusion"
FAILING = "a stage fails for good while another runs"
SHORT: Mapping[str, Any] = {
    "sources": [{"name": "a", "model": "org/a"}],
    "training": {"objective": "SFTOnly"},
    "evaluation": {"enabled": False},
    "report": {"enabled": False},
    "modelCache": {"enabled": False},
    "retries": {"limit": 1, "backoffSeconds": 1},
}


@dataclass(frozen=True)
class Scenario:
    """An experiment, what its pods do, and how it ends."""

    phase: str
    exit_codes: ExitCodes = lambda _child: 0
    changes: Mapping[str, Any] = field(default_factory=dict)


def fails_once(child: JsonObject) -> int:
    name = name_of(child)
    return int("-sample-a-" in name and name.endswith("-a1"))


def fails_while_another_runs(child: JsonObject) -> int | None:
    name = name_of(child)
    return 65 if "-sample-a-" in name else None if "-sample-b-" in name else 0


SCENARIOS = {
    "all goes well": Scenario("Succeeded"),
    "a stage fails once": Scenario("Succeeded", fails_once),
    FAILING: Scenario(
        "Failed",
        fails_while_another_runs,
        {"sources": [{"name": "a", "model": "org/a"}, {"name": "b", "model": "org/b"}]},
    ),
}


def world(scenario: Scenario) -> Server:
    server = Server()
    server.exit_codes = scenario.exit_codes
    server.add(NAME, **{**SHORT, **scenario.changes})
    return server


def run(scenario: Scenario, faults: Mapping[int, Fault], **more: Any) -> tuple[Server, FaultyClient]:
    server = world(scenario)

    def finished() -> bool:
        return bool(server.status(NAME).get("phase") == scenario.phase)

    client = asyncio.run(drive(server, faults, finished=finished, **more))
    return server, client


@cache
def undisturbed(title: str) -> tuple[JsonObject, tuple[tuple[str, str], ...]]:
    server, client = run(SCENARIOS[title], {})
    return outcome(server, NAME), tuple(client.calls)


CRASHES = {"before the request": Fault("crash before"), "after it was carried out": Fault("crash after")}
ERRORS = {
    "conflict": Fault("error", 409),
    "gone": Fault("error", 410),
    "too many requests": Fault("error", 429),
    "server error": Fault("error", 500),
    "time-out, not carried out": Fault("error", 0),
    "time-out, carried out": Fault("lost answer"),
}


def assert_same_end(title: str, faults: Mapping[int, Fault], **more: Any) -> None:
    expected, calls = undisturbed(title)
    server, _ = run(SCENARIOS[title], faults, **more)
    assert outcome(server, NAME) == expected, (faults, [calls[number] for number in faults if number < len(calls)])


@pytest.mark.parametrize("title", SCENARIOS)
def test_undisturbed_nothing_is_made_twice_and_the_outcome_is_told(title: str) -> None:
    end, calls = undisturbed(title)
    assert end["phase"] == SCENARIOS[title].phase
    assert set(end["made"].values()) == {1}
    assert {verb for verb, _ in calls} >= {"list", "apply", "patch/status", "create"}
    assert (("delete", "jobs") in calls) is (SCENARIOS[title].phase == "Failed")
    assert any(name.endswith("-a2") for name in end["made"]) is (title == "a stage fails once")


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("title", SCENARIOS)
def test_an_operator_that_is_killed_at_any_call_goes_on_where_it_stopped(title: str, crash: str) -> None:
    _, calls = undisturbed(title)
    for number in range(len(calls)):
        assert_same_end(title, {number: CRASHES[crash]})


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_at_any_call_changes_nothing(error: str) -> None:
    _, calls = undisturbed("all goes well")
    for number in range(len(calls)):
        assert_same_end("all goes well", {number: ERRORS[error]})


LAGS = {"one change": 1, "a few": 4, "more than one stage": 30}


@pytest.mark.parametrize("behind", LAGS.values(), ids=LAGS.keys())
@pytest.mark.parametrize("title", SCENARIOS)
def test_watches_that_lag_behind_change_nothing(title: str, behind: int) -> None:
    assert_same_end(title, {}, lag=lambda number: behind if number % 4 else 0)


@pytest.mark.parametrize("title", SCENARIOS)
def test_an_operator_that_is_killed_while_its_watches_lag_changes_nothing(title: str) -> None:
    _, calls = undisturbed(title)
    for number in range(0, len(calls), 3):
        assert_same_end(title, {number: Fault("crash after")}, lag=lambda at: 5 if at % 3 else 0)


@pytest.mark.parametrize("seconds", [-60, 60])
@pytest.mark.parametrize("title", SCENARIOS)
def test_clocks_that_differ_change_nothing(title: str, seconds: int) -> None:
    assert_same_end(title, {}, skew=timedelta(seconds=seconds))


@pytest.mark.parametrize("title", SCENARIOS)
def test_stages_that_go_on_while_the_api_takes_its_time_change_nothing(title: str) -> None:
    """Children run and end between a request and its answer."""
    server = world(SCENARIOS[title])

    async def during(number: int) -> None:
        if number % 3 == 0:
            server.step(seconds=1)

    def finished() -> bool:
        return bool(server.status(NAME).get("phase") == SCENARIOS[title].phase)

    asyncio.run(drive(server, {}, finished=finished, during=during))
    expected, _ = undisturbed(title)
    assert outcome(server, NAME) == expected


def test_what_a_lost_watch_has_not_told_is_found_by_the_next_list() -> None:
    server = world(SCENARIOS["all goes well"])
    operator = Operator(server, FaultyClient(server, {}, calls=[]))

    async def story() -> None:
        await operator.look()
        for _ in range(2):
            server.step()
        operator.seen = len(server.changes)  # never delivered
        await operator.look()
        assert len(server.children()) == 1
        await operator.relist()
        await operator.look()
        assert len(server.children()) == 2

    asyncio.run(story())


class Replica:
    """An operator with a lease of its own on the server's clock."""

    def __init__(self, server: Server, identity: str) -> None:
        self.server = server
        self.client = FaultyClient(server, {}, calls=[])
        settings = LeaseSettings("system", "wrpo-operator", identity)
        self.lease = LeaderElection(
            FaultyClient(server, {}, calls=[]),
            settings,
            monotonic=server.elapsed_s,
            now=lambda: server.now,
            on_change=self._on_change,
        )
        self.operator = Operator(server, self.client, identity, may_act=lambda: self.lease.is_leader)
        self.is_last_look = False

    def _on_change(self, leading: bool) -> None:
        if leading:
            self.operator.seen = -1  # everything is listed anew before anything is done

    async def work(self, finished: Callable[[], bool]) -> None:
        for _ in range(200):
            await self.lease.step()
            await self.operator.look()
            if finished() or self.is_last_look:
                return
            self.server.step()
        raise AssertionError("not finished")


ASKED_BESIDE = {("list", "events"), ("list", "workloads")}


def writes_of(client: FaultyClient) -> list[tuple[str, str]]:
    return [call for call in client.calls if call[0] not in {"get", "list", "served"}]


@pytest.mark.parametrize("title", SCENARIOS)
def test_a_leader_that_was_paused_at_any_call_writes_nothing_once_another_leads(title: str) -> None:
    expected, calls = undisturbed(title)

    async def story(number: int) -> None:
        server = world(SCENARIOS[title])
        first, second = Replica(server, "op-1"), Replica(server, "op-2")
        paused, wake = asyncio.Event(), asyncio.Event()

        async def during(at: int) -> None:
            # A reconcile does not wait for what it asks beside its work: a pause there would pause no process.
            if at == number and first.client.calls[at] not in ASKED_BESIDE:
                paused.set()
                await wake.wait()

        def finished() -> bool:
            return bool(server.status(NAME).get("phase") == SCENARIOS[title].phase)

        first.client.during = during
        working = asyncio.create_task(first.work(finished))
        waiting = asyncio.create_task(paused.wait())
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        before = writes_of(first.client)
        if paused.is_set():
            first.is_last_look = True
            await second.work(lambda: finished() and second.lease.is_leader)
        wake.set()
        await working
        assert writes_of(first.client) == before
        end = outcome(server, NAME)
        if title == FAILING:
            # What had not been started when the first stage failed never is.
            assert end["phase"] == expected["phase"]
            assert end["made"].items() <= expected["made"].items()
            return
        assert end == expected, f"paused at {calls[number]}"

    for number in range(len(calls)):
        asyncio.run(story(number))
