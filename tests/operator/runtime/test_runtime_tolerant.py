"""kopf's watches over HTTP: what a server stores or answers ends none of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.patience import LIMIT_S
from support.watched_server import WatchedServer, event, stored

from wrpo_operator.runtime.resources import EXPERIMENTS, JsonObject, Resource, name_of
from wrpo_operator.runtime.watching import WatchSession, WatchSettings

DEEP = '{"a":' * 1_500 + "1" + "}" * 1_500


def watch(server: WatchedServer, until: Callable[[list[tuple[str | None, str]]], bool]) -> list[tuple[str | None, str]]:
    """Watch until the events satisfy a condition; return them. Fails if the session ends before."""
    events: list[tuple[str | None, str]] = []

    async def main() -> None:
        done = asyncio.Event()
        async with server.running():

            def receive(_resource: Resource, kind: str | None, obj: JsonObject) -> None:
                events.append((kind, name_of(obj)))
                if until(events):
                    done.set()

            settings = WatchSettings(namespace=None, login=server.login, on_cut=server.cuts.append)
            session = WatchSession((EXPERIMENTS,), settings, receive)
            session.start()
            try:
                await _first(done.wait(), session.wait_ended())
                assert done.is_set(), f"the session ended: {await session.wait_ended()!r}; events: {events}"
            finally:
                await session.stop()

    asyncio.run(main())
    return events


async def _first(*waits: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=LIMIT_S)
    for task in tasks:
        task.cancel()


def test_an_object_that_nests_1500_deep_ends_neither_list_nor_watch() -> None:
    lines = [event("MODIFIED", stored("deep", 12, DEEP)), event("ADDED", stored("new", 13))]
    server = WatchedServer([stored("deep", 1, DEEP), stored("healthy", 2)], lines)
    events = watch(server, lambda seen: ("ADDED", "new") in seen)
    assert sorted(name for kind, name in events if kind is None) == ["deep", "healthy"]
    assert events[-2:] == [("MODIFIED", "deep"), ("ADDED", "new")]
    assert server.tokens == {"Bearer secret"}
    assert server.cuts == ["wrpoexperiments"] * 2


def test_an_event_that_is_no_object_is_counted_and_a_healthy_one_is_not() -> None:
    lines = ["{\n", '{"object":7}\n', event("ADDED", stored("new", 13))]
    server = WatchedServer([stored("healthy", 2)], lines)
    watch(server, lambda seen: ("ADDED", "new") in seen)
    assert server.cuts == ["wrpoexperiments"] * 2


@pytest.mark.parametrize("code", [400, 403, 422, 429, 500, 503, 504])
def test_a_refused_list_or_watch_is_tried_again(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wrpo_operator.runtime.watching.ERROR_BACKOFFS_S", (0.01, 0.01))
    status = json.dumps({"kind": "Status", "code": code, "message": "cannot list: RBAC not loaded"}).encode()
    server = WatchedServer([stored("healthy", 2)], [event("ADDED", stored("new", 13))])
    server.refusals = [(code, status)] * 3 + [(code, b"<html>no gateway</html>")]
    assert watch(server, lambda seen: ("ADDED", "new") in seen) == [(None, "healthy"), ("ADDED", "new")]


def test_a_list_that_is_no_json_and_a_watch_that_breaks_off_are_begun_again() -> None:
    server = WatchedServer(
        [stored("healthy", 2)], ['{"type":"ADDED","object":{"meta', event("ADDED", stored("new", 13))]
    )
    server.refusals = [(200, b"<html>hello</html>")]
    events = watch(server, lambda seen: len(seen) >= 1)
    assert events[0] == (None, "healthy")


@pytest.mark.parametrize("code", [403, 410, 500])
def test_an_error_event_lists_again(code: int) -> None:
    error = f'{{"type":"ERROR","object":{{"kind":"Status","code":{code},"message":"storage is re-initializing"}}}}\n'
    server = WatchedServer([stored("healthy", 2)], [error])
    assert watch(server, lambda seen: len(seen) == 2) == [(None, "healthy"), (None, "healthy")]
    assert server.lists == 2


def test_refused_credentials_are_read_again_until_they_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wrpo_operator.runtime.watching.LOGIN_PAUSE_S", 0.01)
    server = WatchedServer([stored("healthy", 2)], [])
    server.refusals = [(401, b"{}")] * 12
    assert watch(server, bool) == [(None, "healthy")]
