"""Keeping the picture equal to the cluster, with kopf replaced by a session that says what it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from support.patience import LIMIT_S

from wrpo_operator.runtime import informer as module
from wrpo_operator.runtime.cluster import Cluster
from wrpo_operator.runtime.informer import Informer, InformerListener, InformerSettings
from wrpo_operator.runtime.kube import KubeError
from wrpo_operator.runtime.resources import CHILD_RESOURCES, EXPERIMENTS, JOBS, Resource, name_of
from wrpo_operator.runtime.store import ObjectStore
from wrpo_operator.runtime.watching import Sink, WatchSettings

OURS = {"app.kubernetes.io/managed-by": "wrpo-operator"}
PYTORCHJOBS = CHILD_RESOURCES["PyTorchJob"]


class Session:
    """Stands for one run of kopf."""

    made: list[Session] = []  # noqa: RUF012

    def __init__(self, resources: tuple[Resource, ...], settings: WatchSettings, sink: Sink) -> None:
        self.resources, self.settings, self.sink = resources, settings, sink
        self.over: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        Session.made.append(self)

    def start(self) -> None:
        pass

    async def wait_ended(self) -> BaseException | None:
        return await asyncio.shield(self.over)

    async def stop(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class World:
    def __init__(self, kube: Any) -> None:
        self.kube, self.store = kube, ObjectStore()
        self.served = {EXPERIMENTS, JOBS, PYTORCHJOBS}
        self.changed: list[str] = []
        self.trusted = 0
        self.cuts: list[str] = []
        """Resources of which something could not be read."""
        kube.served = self._is_served
        self.informer: Informer

    def _on_trusted(self) -> None:
        self.trusted += 1

    async def _is_served(self, resource: Resource) -> bool:
        return resource in self.served or resource.plural == "pods"

    def run(self, script: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            settings = InformerSettings(
                discovery_s=0.01, first_audit_s=0.02, audit_s=0.02, grace_s=0.02, restart_s=0.01
            )
            self.informer = Informer(
                Cluster(client=self.kube, store=self.store, now=lambda: datetime.now(UTC), monotonic=loop.time),
                settings,
                WatchSettings(namespace=None, login=dict, on_cut=self.cuts.append),  # type: ignore[arg-type]
                InformerListener(
                    on_change=lambda _resource, obj: self.changed.append(name_of(obj)), on_trusted=self._on_trusted
                ),
            )
            task = asyncio.create_task(self.informer.run())
            try:
                async with asyncio.timeout(LIMIT_S):
                    await script()
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

        asyncio.run(main())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


@pytest.fixture
def world(kube: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    Session.made = []
    monkeypatch.setattr(module, "WatchSession", Session)
    return World(kube)


def test_what_exists_is_known_before_watching_begins(world: World) -> None:
    world.kube.put(EXPERIMENTS, {"metadata": {"name": "fusion"}})

    async def script() -> None:
        await until(lambda: world.informer.synced)
        assert world.store.get(EXPERIMENTS, "default", "fusion") is not None
        assert world.informer.training_backends == {"PyTorchJob"}

    world.run(script)
    assert world.changed == ["fusion"]


def test_without_its_crd_it_waits_and_says_so_and_begins_when_it_is_there(world: World) -> None:
    world.served.discard(EXPERIMENTS)

    async def script() -> None:
        await until(lambda: "not installed" in world.informer.problem)
        assert not world.informer.synced
        assert Session.made == []
        world.served.add(EXPERIMENTS)
        await until(lambda: world.informer.synced)
        assert world.informer.problem == ""

    world.run(script)


def test_a_training_crd_that_comes_or_goes_begins_a_new_session(world: World) -> None:
    world.served.discard(PYTORCHJOBS)

    async def script() -> None:
        await until(lambda: world.informer.synced)
        assert world.informer.training_backends == frozenset()
        world.served.add(PYTORCHJOBS)
        await until(lambda: world.informer.training_backends)
        world.kube.put(PYTORCHJOBS, {"metadata": {"name": "t", "labels": OURS}})
        await until(lambda: world.store.get(PYTORCHJOBS, "default", "t"))
        world.served.discard(PYTORCHJOBS)
        await until(lambda: not world.informer.training_backends)
        assert world.store.get(PYTORCHJOBS, "default", "t") is None

    world.run(script)


def test_what_is_distrusted_counts_as_unknown_until_it_was_listed(world: World) -> None:
    async def script() -> None:
        world.informer.invalidate()
        assert world.trusted == 0
        await until(lambda: world.informer.synced)
        world.kube.put(EXPERIMENTS, {"metadata": {"name": "made-by-another"}})
        world.informer.invalidate()
        assert not world.informer.synced
        await until(lambda: world.informer.synced)
        assert world.store.get(EXPERIMENTS, "default", "made-by-another") is not None
        assert world.trusted == 1
        assert len(Session.made) == 1

    world.run(script)


def test_a_version_that_says_nothing_new_is_told_to_nobody(world: World) -> None:
    obj = {"metadata": {"name": "j", "namespace": "default", "uid": "u", "resourceVersion": "900", "labels": OURS}}

    async def script() -> None:
        await until(lambda: world.informer.synced)
        (session,) = Session.made
        session.sink(JOBS, "ADDED", {**obj, "status": {"active": 1}})
        touched = {**obj["metadata"], "resourceVersion": "901"}
        session.sink(JOBS, "MODIFIED", {"metadata": touched, "status": {"active": 1, "ready": 1}})
        assert world.changed == ["j"]
        ended = {**touched, "resourceVersion": "902"}
        session.sink(JOBS, "MODIFIED", {"metadata": ended, "status": {"succeeded": 1}})
        assert world.changed == ["j", "j"]

    world.run(script)


def test_a_session_that_dies_is_begun_anew(world: World) -> None:
    async def script() -> None:
        await until(lambda: Session.made)
        Session.made[0].over.set_result(RuntimeError("kopf: 404"))
        await until(lambda: len(Session.made) == 2 and world.informer.synced)

    world.run(script)


def test_an_audit_finds_what_was_deleted_while_the_watch_was_lost(world: World) -> None:
    world.kube.put(JOBS, {"metadata": {"name": "j", "labels": OURS}})

    async def script() -> None:
        await until(lambda: world.informer.synced)
        world.kube.objects.clear()
        await until(lambda: world.store.get(JOBS, "default", "j") is None)

    world.run(script)
    assert world.changed == ["j", "j"]
    assert len(Session.made) == 1


def test_a_watch_that_does_not_deliver_is_found_out_and_replaced(world: World) -> None:
    async def script() -> None:
        await until(lambda: world.informer.synced)
        world.kube.put(JOBS, {"metadata": {"name": "unseen", "labels": OURS}})
        await until(lambda: len(Session.made) == 2)
        assert world.store.get(JOBS, "default", "unseen") is not None

    world.run(script)


def test_an_unreachable_server_is_tried_again(world: World) -> None:
    world.kube.fail["list", "jobs"] = KubeError(0, "Unreachable", "GET /jobs: gone")

    async def script() -> None:
        await until(lambda: world.informer.problem == "GET /jobs: gone")
        world.kube.fail.clear()
        await until(lambda: world.informer.synced)

    world.run(script)


def test_an_audit_rests_between_pages_and_the_first_list_does_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        is_rest = seconds == module.LONGEST_REST_S
        pauses.extend([seconds] * is_rest)
        await sleep(0 if is_rest else seconds)

    monkeypatch.setattr(module, "REST", 1e9)
    monkeypatch.setattr(asyncio, "sleep", counted)
    for name in ("a", "b"):
        world.kube.put(JOBS, {"metadata": {"name": name, "labels": OURS}})

    async def script() -> None:
        await until(lambda: world.informer.synced)
        assert not pauses
        await until(lambda: len(pauses) >= 2)

    world.run(script)


def test_what_takes_long_to_list_is_audited_seldomer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def pause(_self: Informer, seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0.001)

    monkeypatch.setattr(Informer, "_sleep_until_audit", pause)
    monkeypatch.setattr(module, "PAUSE", 1e9)

    async def script() -> None:
        await until(lambda: len(pauses) >= 2)
        monkeypatch.setattr(module, "PAUSE", 0.0)
        await until(lambda: pauses[-1] == 0.02)

    world.run(script)
    assert pauses[:2] == [0.02, module.LONGEST_PAUSE_S]


def test_what_is_left_out_of_the_informers_own_lists_is_counted_by_resource(world: World) -> None:
    world.kube.cut = {"wrpoexperiments": 2}

    async def script() -> None:
        await until(lambda: len(world.cuts) >= 4)

    world.run(script)
    assert set(world.cuts) == {"wrpoexperiments"}
