"""Watching through kopf: every change of a watched object is handed to one callback on our event loop.

kopf runs in a thread of its own with its own event loop, because it takes over signals and cancels every task that
was started after it when it ends, and it must be able to end: a watched resource whose CRD disappears is fatal to it,
and a CRD that appears later is only seen by a new session. Only `on.event` handlers are used: kopf writes nothing.
kopf does not tell of objects that were deleted while a watch was lost; `informer` lists now and then for that.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import kopf
from kopf._core.reactor.inventory import ResourceMemories  # kopf.operator takes it, but does not export it

from wrpo_operator.api import names
from wrpo_operator.runtime.resources import EXPERIMENTS, JsonObject, Resource
from wrpo_operator.runtime.tolerant import TolerantResponse

log = logging.getLogger(__name__)
CHILD_SELECTOR = f"{names.LABEL_MANAGED_BY}={names.MANAGER}"
STOP_TIMEOUT_S = 15.0
LOGIN_PAUSE_S = 2.0
"""Between two logins: kopf asks for one at each 401, however soon."""
ERROR_BACKOFFS_S: tuple[float, ...] = (0.5, 1, 2, 2)
"""Pauses within one request. A list or watch that is refused after the last one begins again half a second later."""
Sink = Callable[[Resource, str | None, JsonObject], None]
"""(resource, ADDED | MODIFIED | DELETED | None for an item of a list, object)"""
Login = Callable[[], Awaitable[Mapping[str, Any]]]
"""Returns the arguments of kopf.ConnectionInfo; called on kopf's event loop, again whenever the server answers 401."""


def selector_of(resource: Resource) -> str:
    """Return the label selector a resource is watched and listed with: children and pods only if they are ours."""
    return "" if resource == EXPERIMENTS else CHILD_SELECTOR


class _NoDiffs(kopf.DiffBaseStorage):  # type: ignore[misc]
    """No object's last state is kept: changes are not told apart here, and kopf would copy every object for it."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):  # type: ignore[misc]
    """No handler's progress is kept: `on.event` handlers have none, and kopf would copy every object to look for it."""

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


class _NoMemories(ResourceMemories):  # type: ignore[misc]
    """Nothing of an object is kept between its events: only kopf's other kinds of handlers would find something there,
    and it is 2 KiB for each child and each pod, as long as they exist.
    """

    async def recall(self, raw_body: Any, **settings: Any) -> Any:
        return await super().recall(raw_body, **{**settings, "ephemeral": True})


class Handover:
    """Calls made by one thread and carried out in their order on the event loop of another, woken once for many.

    Waking the loop costs more than most of the calls; a busy loop finds all that came meanwhile at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._is_awake = False

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Carry it out soon; RuntimeError if the loop is closed."""
        self._calls.append((function, arguments))
        if not self._is_awake:
            self._is_awake = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        # Before the calls: one that is added after the last look must wake the loop again.
        self._is_awake = False
        while self._calls:
            function, arguments = self._calls.popleft()
            try:
                function(*arguments)
            except Exception:
                log.exception("an event was lost to an error")


class WatchSession:
    """One run of kopf over a fixed set of resources. Ends by `stop` or by an error; it is never reused."""

    def __init__(
        self,
        resources: tuple[Resource, ...],
        *,
        namespace: str | None,
        login: Login,
        sink: Sink,
        on_cut: Callable[[str], None] = lambda _resource: None,
    ) -> None:
        """`on_cut` is called, in kopf's thread, with the plural of a resource of which something cannot be read."""
        self._resources = resources
        self._namespace = namespace
        self._login = login
        self._sink = sink
        self._on_cut = on_cut
        self._stop = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._handover = Handover(self._loop)
        self._ended: asyncio.Future[BaseException | None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def wait_ended(self) -> BaseException | None:
        """Wait until kopf is gone; return the error that ended it, or None."""
        return await asyncio.shield(self._ended)

    async def stop(self) -> None:
        self._stop.set()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.wait_ended()
        except TimeoutError:
            log.warning("kopf did not stop within %g s; its thread is left behind", STOP_TIMEOUT_S)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._operate())
        except BaseException as caught:  # noqa: BLE001  # whatever ended kopf is reported to the loop that owns it
            error = caught
        self._call(self._set_ended, error)

    async def _operate(self) -> None:
        scope: dict[str, Any] = {"namespaces": [self._namespace]} if self._namespace else {"clusterwide": True}
        sessions: list[aiohttp.ClientSession] = []
        try:
            await kopf.operator(
                registry=self._registry(sessions),
                settings=_settings(self._resources),
                standalone=True,
                memories=_NoMemories(),
                stop_flag=self._stop,
                **scope,
            )
        finally:
            for session in sessions:
                await session.close()

    def _registry(self, sessions: list[aiohttp.ClientSession]) -> Any:
        """`sessions` takes up those that are opened; kopf closes the ones that it has used."""
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)  # type: ignore[untyped-decorator]
        async def login(**_: Any) -> Any:
            if sessions:
                await asyncio.sleep(LOGIN_PAUSE_S)
            sessions[:] = [session for session in sessions if not session.closed]
            found = tolerant_session(kopf.ConnectionInfo(**await self._login()), self._on_cut)
            sessions.append(found.aiohttp_session)
            return found

        for resource in self._resources:
            kopf.on.event(resource.group, resource.version, resource.plural, id=resource.plural, registry=registry)(
                self._handler(resource)
            )
        return registry

    def _handler(self, resource: Resource) -> Callable[..., Any]:
        async def hand_over(event: Mapping[str, Any], **_: Any) -> None:
            obj = {**event["object"], "apiVersion": resource.api_version, "kind": resource.kind}
            self._call(self._sink, resource, event["type"], obj)

        return hand_over

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._handover.call(function, *arguments)
        except RuntimeError:  # the owning loop is closed: nobody listens any more
            self._stop.set()

    def _set_ended(self, error: BaseException | None) -> None:
        if not self._ended.done():
            self._ended.set_result(error)


def _settings(resources: tuple[Resource, ...]) -> Any:
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    settings.posting.enabled = False
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
    """Return kopf's ConnectionInfo as an AiohttpSession that is safe to watch through; whoever asks closes it."""

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
