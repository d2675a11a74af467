"""One run of kopf in a loop that it does not own, and what is used of kopf."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path

import kopf
import pytest
from support.patience import LIMIT_S
from support.watched_server import WatchedServer, event, stored

from wrpo_operator.runtime import watching
from wrpo_operator.runtime.resources import EXPERIMENTS, JsonObject, Resource, name_of
from wrpo_operator.runtime.watching import WatchSession, WatchSettings

ROOT = Path(__file__).resolve().parents[3]
Script = Callable[[WatchSession], Awaitable[None]]


class World:
    """A server, and the names that a session has handed over of it."""

    def __init__(self) -> None:
        self.server = WatchedServer([stored("healthy", 2)], [event("ADDED", stored("new", 13))])
        self.seen: list[str] = []
        self.restore_signals: Callable[[], None] = lambda: None

    def receive(self, _resource: Resource, _kind: str | None, obj: JsonObject) -> None:
        self.seen.append(name_of(obj))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def run(self, script: Script) -> None:
        async def main() -> None:
            async with self.server.running():
                settings = WatchSettings(namespace=None, login=self.server.login, restore_signals=self.restore_signals)
                session = WatchSession((EXPERIMENTS,), settings, self.receive)
                session.start()
                try:
                    await script(session)
                finally:
                    await session.stop()

        asyncio.run(main())


def test_a_session_ends_its_own_tasks_and_leaves_those_of_the_loops_owner_alone() -> None:
    world = World()

    async def script(session: WatchSession) -> None:
        before = asyncio.all_tasks()
        await world.until(lambda: "new" in world.seen)
        younger = asyncio.create_task(asyncio.Event().wait(), name="the owner's")
        await session.stop()
        assert await session.wait_ended() is None
        left = {task.get_name() for task in asyncio.all_tasks() - before}
        # The test server's own connections may still be closing.
        assert {name for name in left if not name.startswith("Task-")} == {"the owner's"}
        assert not younger.done()
        younger.cancel()

    world.run(script)


def test_a_session_whose_resource_is_gone_ends_with_the_error_and_leaves_the_owners_tasks_alone() -> None:
    world = World()
    world.server.refusals = [(404, b'{"kind": "Status", "code": 404, "message": "no such resource"}')]

    async def script(session: WatchSession) -> None:
        younger = asyncio.create_task(asyncio.Event().wait())
        error = await session.wait_ended()
        assert "no such resource" in str(error)
        assert not younger.done()
        younger.cancel()

    world.run(script)


def test_a_signal_reaches_the_loops_owner_and_does_not_end_the_session() -> None:
    world = World()
    received: list[str] = []

    def restore() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, received.append, "TERM")

    world.restore_signals = restore

    async def script(session: WatchSession) -> None:
        await world.until(lambda: "healthy" in world.seen)
        os.kill(os.getpid(), signal.SIGTERM)
        await world.until(lambda: received)
        world.server.lines.append(event("ADDED", stored("later", 14)))
        ended = asyncio.create_task(session.wait_ended())
        await world.until(lambda: "later" in world.seen or ended.done())
        assert not ended.done()
        ended.cancel()

    world.run(script)
    assert received == ["TERM"]


def test_an_error_of_the_receiver_is_logged_and_loses_no_other_event(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    receive = world.receive

    def fail(resource: Resource, kind: str | None, obj: JsonObject) -> None:
        receive(resource, kind, obj)
        if name_of(obj) == "healthy":
            raise ValueError("broken")

    world.receive = fail  # type: ignore[assignment,method-assign] # the names of its parameters differ

    async def script(_session: WatchSession) -> None:
        await world.until(lambda: "new" in world.seen)

    world.run(script)
    assert world.seen[:2] == ["healthy", "new"]
    assert "ValueError: broken" in caplog.text


def test_kopf_never_kills_the_process_that_it_shares() -> None:
    assert watching._settings((EXPERIMENTS,)).process.ultimate_exiting_timeout is None


def test_kopf_is_used_by_the_names_that_it_exports() -> None:
    tree = ast.parse(Path(watching.__file__).read_text("utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {getattr(node, "module", None) or node.names[0].name for node in imported}
    assert [module for module in sorted(modules) if module.startswith("kopf")] == ["kopf"]
    assert not [node for node in imported if isinstance(node, ast.ImportFrom) and node.module == "kopf"]
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "kopf"
    }
    assert used
    assert used <= set(kopf.__all__)


def test_kopf_is_bound_to_the_minor_release_that_was_tested() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    (bound,) = [line for line in extras["operator"] if line.startswith("kopf")]
    major, minor = kopf.__version__.split(".")[:2]
    assert bound.endswith(f",<{major}.{int(minor) + 1}")
