"""Controller runtime: shared watches feed keys into queues, and each key is reconciled from live state."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wrpo_devcluster.client import ApiError, Client, JsonObject, Resource, WatchEvent
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.queue import WorkQueue
from wrpo_devcluster.objects import controller_of, key_of

log = logging.getLogger(__name__)

ToKeys = Callable[[JsonObject], Iterable[str]]
Handler = Callable[[WatchEvent], None]


def own_key(obj: JsonObject) -> Iterable[str]:
    """Map an object to its own key."""
    return (key_of(obj),)


def controller_key(kind: str) -> ToKeys:
    """Map an object to the key of its controlling owner of that kind."""

    def to_keys(obj: JsonObject) -> Iterable[str]:
        owner = controller_of(obj)
        if owner is not None and owner["kind"] == kind:
            yield f"{obj['metadata'].get('namespace', '')}/{owner['name']}"

    return to_keys


@dataclass(frozen=True, slots=True)
class Watched:
    """A resource type, and the keys to reconcile after a change of an object of it."""

    resource: Resource
    to_keys: ToKeys


class WatchHub:
    """Shared watches, one per resource type."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._handlers: dict[Resource, list[Handler]] = defaultdict(list)
        self._tasks: dict[Resource, asyncio.Task[None]] = {}
        self._is_running = False

    def subscribe(self, resource: Resource, handler: Handler) -> None:
        """Subscribe to every change. Call it before the hub starts: a later subscriber would miss existing objects."""
        if self._is_running:
            raise RuntimeError(f"the hub has started; join {resource.plural} instead of subscribing")
        self._handlers[resource].append(handler)

    def join(self, resource: Resource, handler: Handler) -> None:
        """Subscribe while the hub runs. The type's watch restarts, so that the handler receives existing objects."""
        self._handlers[resource].append(handler)
        if self._is_running:
            self._restart(resource)

    def drop(self, resource: Resource, handler: Handler) -> None:
        """Unsubscribe `handler` from a type that was removed."""
        if handler in self._handlers.get(resource, []):
            self._handlers[resource].remove(handler)
        if not self._handlers.get(resource) and resource in self._tasks:
            self._tasks.pop(resource).cancel()

    def start(self) -> None:
        """Start the watch of every type that has subscribers."""
        self._is_running = True
        for resource in tuple(self._handlers):
            self._restart(resource)

    def _restart(self, resource: Resource) -> None:
        running = self._tasks.get(resource)
        if running is not None:
            running.cancel()
        self._tasks[resource] = asyncio.create_task(self._watch(resource), name=f"watch-{resource.plural}")

    async def close(self) -> None:
        """Stop all watches and wait for their end."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        await cancel_all(tasks)

    async def _watch(self, resource: Resource) -> None:
        while True:
            try:
                async for event in self._client.watch(resource):
                    for handler in tuple(self._handlers.get(resource, ())):
                        handler(event)
            except ApiError as error:
                log.warning("watch of %s ended: %s", resource.plural, error)
            except Exception:
                log.exception("watch of %s failed unexpectedly; it is restarted", resource.plural)
            # A watch that ends is restarted. It then reports all existing objects, so that nothing is missed.
            await self._clock.sleep(0.2)


class Controller:
    """Level-triggered controller: `reconcile` gets only the key of an object, and reads everything else itself."""

    name: str = ""
    workers: int = 2

    def __init__(self, client: Client, clock: Clock) -> None:
        self.client = client
        self.clock = clock
        self.queue = WorkQueue(clock)

    def watched(self) -> Sequence[Watched]:
        """Return the types whose changes the controller follows."""
        raise NotImplementedError

    async def reconcile(self, key: str) -> float | None:
        """Bring one object nearer to its desired state; return the seconds until the next reconciliation, if any."""
        raise NotImplementedError

    def attach(self, hub: WatchHub) -> None:
        """Subscribe to the watched types; call it before the hub starts."""
        for watched in self.watched():
            hub.subscribe(watched.resource, self._handler(watched.to_keys))

    def _handler(self, to_keys: ToKeys) -> Handler:
        def handle(event: WatchEvent) -> None:
            for key in to_keys(event.object):
                self.queue.add(key)

        return handle

    async def run(self) -> None:
        """Reconcile keys as they come, `workers` at a time, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                requeue_after = await self.reconcile(key)
            except ApiError as error:
                if error.code not in {404, 409}:
                    log.warning("%s %s: %s", self.name, key, error)
                self.queue.add_failed(key)
            except Exception:
                log.exception("%s failed to reconcile %s; it will be retried", self.name, key)
                self.queue.add_failed(key)
            else:
                self.queue.forget(key)
                if requeue_after is not None:
                    self.queue.add_after(key, max(requeue_after, 0.01))
            finally:
                self.queue.done(key)
            # Calls of an in-process client may never wait; requests over HTTP must get their turn.
            await asyncio.sleep(0)


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait for them. A cancellation of the caller meanwhile is not lost."""
    pending = list(tasks)
    for task in pending:
        task.cancel()
    for outcome in await asyncio.gather(*pending, return_exceptions=True):
        if isinstance(outcome, Exception):
            log.error("a task had failed before it was cancelled", exc_info=outcome)


async def get_or_none(client: Client, resource: Resource, name: str, namespace: str | None = None) -> JsonObject | None:
    """Return an object; None if it, or its type, does not exist."""
    try:
        return await client.get(resource, name, namespace)
    except ApiError as error:
        if error.code == 404:
            return None
        raise


async def list_or_empty(
    client: Client, resource: Resource, namespace: str | None = None, *, label_selector: str = ""
) -> list[JsonObject]:
    """Return the items of a type; an empty list if the type is not installed."""
    try:
        return await client.list(resource, namespace, label_selector=label_selector)
    except ApiError as error:
        if error.code == 404:
            return []
        raise


async def delete_if_exists(
    client: Client,
    resource: Resource,
    obj: JsonObject,
    *,
    grace_period_s: int | None = None,
    propagation: Literal["Background", "Foreground"] = "Background",
) -> bool:
    """Delete exactly this object (by uid). Return False if it was gone already or another object has its name."""
    meta = obj["metadata"]
    try:
        await client.delete(
            resource,
            meta["name"],
            meta.get("namespace"),
            propagation=propagation,
            grace_period_s=grace_period_s,
            uid=meta["uid"],
        )
    except ApiError as error:
        if error.code in {404, 409}:
            return False
        raise
    return True
