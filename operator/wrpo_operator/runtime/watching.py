"""Watches through kopf: one callback receives every change of a watched object.

kopf runs in this process's event loop, through its public interface only. It assumes in three ways that it owns the
loop, which this module reverts:

- It replaces the loop's handlers of SIGTERM and SIGINT. `restore_signals` sets the owner's again before a signal can be
  handled.
- `kopf.operator` cancels every task of the loop that is younger than itself when it ends. Its tasks are therefore
  spawned by `kopf.spawn_tasks` and stopped here; each of them stops the tasks that it started.
- It kills a process that takes long to stop. That is disabled.

A session must be able to end: a watched resource whose CRD disappears is fatal to kopf, and a CRD that appears later is
only seen by a new session. Only `on.event` handlers are used, so kopf writes nothing. It does not report objects that
were deleted while a watch was lost; the audits of `informer` find them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import kopf

from wrpo_operator.api import names
from wrpo_operator.runtime.resources import EXPERIMENTS, SWEEPS, JsonObject, Resource
from wrpo_operator.runtime.tolerant import TolerantResponse

log = logging.getLogger(__name__)
CHILD_SELECTOR = f"{names.LABEL_MANAGED_BY}={names.MANAGER}"
STOP_TIMEOUT_S = 15.0
LOGIN_PAUSE_S = 2.0
"""Minimum seconds between two logins, because kopf requests one at each 401."""
ERROR_BACKOFFS_S: tuple[float, ...] = (0.5, 1, 2, 2)
"""Pauses within one request. A list or watch that is refused after the last one is retried half a second later."""
Sink = Callable[[Resource, str | None, JsonObject], None]
"""(resource, ADDED | MODIFIED | DELETED | None for an item of a list, object)"""
Login = Callable[[], Awaitable[Mapping[str, Any]]]
"""Returns the arguments of kopf.ConnectionInfo; called again whenever the server replies 401."""


def selector_of(resource: Resource) -> str:
    """Return the label selector a resource is watched and listed with: children and pods only of this operator."""
    return "" if resource in {EXPERIMENTS, SWEEPS} else CHILD_SELECTOR


class _NoDiffs(kopf.DiffBaseStorage):  # type: ignore[misc]
    """Keeps no object's last state: only kopf's other handlers need it, and it costs a copy of every object."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):  # type: ignore[misc]
    """Keeps no handler's progress: `on.event` handlers have none, and looking for it costs a copy of every object."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """Scope of the watches, and functions that kopf's session calls."""

    namespace: str | None
    """None: the whole cluster."""
    login: Login
    on_cut: Callable[[str], None] = lambda _resource: None
    """Called with the plural of a resource of which something cannot be read."""
    restore_signals: Callable[[], None] = lambda: None
    """Called when kopf has replaced the loop's signal handlers."""


class WatchSession:
    """One run of kopf over a fixed set of resources. It ends by `stop` or by an error, and is never reused."""

    def __init__(self, resources: tuple[Resource, ...], settings: WatchSettings, sink: Sink) -> None:
        self._resources = resources
        self._settings = settings
        self._sink = sink
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start kopf in a task of the running event loop."""
        self._task = asyncio.create_task(self._run(), name="kopf")

    async def wait_ended(self) -> BaseException | None:
        """Wait until kopf has stopped; return the error that stopped it, or None."""
        if self._task is None:
            return None
        await asyncio.wait({self._task})
        return asyncio.CancelledError() if self._task.cancelled() else self._task.exception()

    async def stop(self) -> None:
        """End the session; after STOP_TIMEOUT_S its tasks are abandoned."""
        self._stop.set()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.wait_ended()
        except TimeoutError:
            log.warning("kopf did not stop within %g s; its tasks are abandoned", STOP_TIMEOUT_S)
            if self._task is not None:
                self._task.cancel()

    async def _run(self) -> None:
        sessions: list[aiohttp.ClientSession] = []
        namespace = self._settings.namespace
        scope: dict[str, Any] = {"namespaces": [namespace]} if namespace else {"clusterwide": True}
        try:
            tasks = await kopf.spawn_tasks(
                registry=self._registry(sessions),
                settings=_settings(self._resources),
                standalone=True,
                memo=(),  # copied for each object
                stop_flag=self._stop,
                **scope,
            )
            # Nothing is awaited before this, so no signal can have been handled yet.
            self._settings.restore_signals()
            await self._until_ended(tasks)
        finally:
            for session in sessions:
                await session.close()

    async def _until_ended(self, tasks: Collection[asyncio.Task[None]]) -> None:
        """Wait until one of kopf's root tasks ends, which it does when kopf stops or fails; raise its error."""
        done: set[asyncio.Task[None]] = set()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Setting it ends the task that waits for it, and marks the end of the others as intended.
            self._stop.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    def _registry(self, sessions: list[aiohttp.ClientSession]) -> Any:
        """`sessions` receives those that are opened; kopf closes the ones that it has used."""
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)  # type: ignore[untyped-decorator]
        async def login(**_: Any) -> Any:
            if sessions:
                await asyncio.sleep(LOGIN_PAUSE_S)
            sessions[:] = [session for session in sessions if not session.closed]
            found = tolerant_session(kopf.ConnectionInfo(**await self._settings.login()), self._settings.on_cut)
            sessions.append(found.aiohttp_session)
            return found

        for resource in self._resources:
            kopf.on.event(resource.group, resource.version, resource.plural, id=resource.plural, registry=registry)(
                self._handler(resource)
            )
        return registry

    def _handler(self, resource: Resource) -> Callable[..., Any]:
        # kopf logs an exception of a handler and continues with the next event.
        async def hand_over(event: Mapping[str, Any], **_: Any) -> None:
            self._sink(
                resource, event["type"], {**event["object"], "apiVersion": resource.api_version, "kind": resource.kind}
            )

        return hand_over


def _settings(resources: tuple[Resource, ...]) -> Any:
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    settings.posting.enabled = False
    settings.process.ultimate_exiting_timeout = None
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.server_timeout = 290
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 0.5
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = ERROR_BACKOFFS_S
    settings.queueing.idle_timeout = 2
    for resource in resources:
        selector = selector_of(resource)
        if selector:
            settings.watching.label_selectors[resource.group, resource.version, resource.plural] = selector
    return settings


def tolerant_session(info: Any, on_cut: Callable[[str], None]) -> Any:
    """Return kopf's ConnectionInfo as an AiohttpSession that is safe to watch through; the caller closes it."""

    class Response(TolerantResponse):
        pass

    Response.on_cut = staticmethod(on_cut)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        proxy=info.proxy_url,
        trust_env=info.trust_env,
        response_class=Response,
    )
    return kopf.AiohttpSession(server=info.server, default_namespace=info.default_namespace, aiohttp_session=session)
