"""Service proxy: a TCP proxy on each clusterIP and port that forwards to ready endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable

from wrpo_devcluster.client import ENDPOINTS, SERVICES, JsonObject, WatchEvent
from wrpo_devcluster.controllers.base import WatchHub, cancel_all
from wrpo_devcluster.controllers.network import proxy_address
from wrpo_devcluster.objects import key_of

log = logging.getLogger(__name__)

_Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ServiceProxy:
    """Proxy of all Services, which follows them and their endpoints."""

    def __init__(self) -> None:
        self._servers: dict[str, dict[tuple[str, int], asyncio.Server]] = {}
        self._endpoints: dict[str, JsonObject] = {}
        self._services: dict[str, JsonObject] = {}
        self._turn = itertools.count()
        self._connections: set[asyncio.Task[None]] = set()
        self._syncs: asyncio.Queue[str] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def attach(self, hub: WatchHub) -> None:
        """Subscribe to Services and endpoints; call it before the hub starts."""
        hub.subscribe(SERVICES, self._observe_service)
        hub.subscribe(ENDPOINTS, self._observe_endpoints)

    def start(self) -> None:
        """Serve the Services as they are observed, until `close`."""
        self._task = asyncio.create_task(self._run(), name="service-proxy")

    async def close(self) -> None:
        """Stop listening, and end all connections."""
        if self._task is not None:
            await cancel_all([self._task])
        for servers in self._servers.values():
            for server in servers.values():
                server.close()
        await cancel_all(tuple(self._connections))

    def _observe_service(self, event: WatchEvent) -> None:
        key = key_of(event.object)
        if event.type == "DELETED":
            self._services.pop(key, None)
        else:
            self._services[key] = event.object
        self._syncs.put_nowait(key)

    def _observe_endpoints(self, event: WatchEvent) -> None:
        if event.type == "DELETED":
            self._endpoints.pop(key_of(event.object), None)
        else:
            self._endpoints[key_of(event.object)] = event.object

    async def _run(self) -> None:
        while True:
            await self._sync(await self._syncs.get())

    async def _sync(self, key: str) -> None:
        service = self._services.get(key)
        spec = service["spec"] if service else {}
        address = proxy_address(service) if service else None
        wanted: dict[tuple[str, int], JsonObject] = {}
        if address is not None:
            tcp = (p for p in spec.get("ports") or [] if p.get("protocol", "TCP") == "TCP")
            wanted = {(address, int(port["port"])): port for port in tcp}
        running = self._servers.setdefault(key, {})
        for place in [p for p in running if p not in wanted]:
            running.pop(place).close()
        for place, port in wanted.items():
            if place in running:
                continue
            try:
                running[place] = await asyncio.start_server(self._handler(key, port), *place)
            except OSError as error:
                log.warning("service %s: cannot listen on %s:%s: %s", key, *place, error)

    def _handler(self, key: str, port: JsonObject) -> _Serve:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections.add(task)
            try:
                await self._forward(key, port.get("name", ""), reader, writer)
            finally:
                self._connections.discard(task)
                writer.close()

        return handle

    async def _forward(
        self, key: str, port_name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        targets = ready_targets(self._endpoints.get(key), port_name)
        if not targets:
            return
        first = next(self._turn)
        for step in range(len(targets)):
            host, number = targets[(first + step) % len(targets)]
            try:
                up_reader, up_writer = await asyncio.open_connection(host, number)
            except OSError:
                continue
            try:
                await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))
            finally:
                up_writer.close()
            return


def ready_targets(endpoints: JsonObject | None, port_name: str) -> list[tuple[str, int]]:
    """Return (address, port) of the ready endpoints for a Service port."""
    targets = []
    for subset in (endpoints or {}).get("subsets") or []:
        ports = subset.get("ports") or []
        number = next((p["port"] for p in ports if p.get("name", "") == port_name), None)
        if number is not None:
            targets += [(address["ip"], int(number)) for address in subset.get("addresses") or []]
    return targets


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
