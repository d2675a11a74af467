"""In-process client: the protocol of `wrpo_devcluster.client` on the request pipeline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Unpack

from typing_extensions import override

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import Context, User
from wrpo_devcluster.apiserver.auth.rbac import Attributes
from wrpo_devcluster.apiserver.endpoints import subresources
from wrpo_devcluster.apiserver.registry.deletion import DeleteOptions
from wrpo_devcluster.apiserver.schema.kinds import Kind, Target
from wrpo_devcluster.apiserver.services import Services
from wrpo_devcluster.apiserver.storage.indexes import indexed_condition
from wrpo_devcluster.apiserver.storage.selectors import SelectorError, matcher
from wrpo_devcluster.client import (
    ApiError,
    Client,
    DeletionOptions,
    JsonObject,
    PatchOptions,
    Resource,
    Selection,
    WatchEvent,
)


@dataclass(frozen=True, slots=True)
class _Call:
    """Verb of RBAC, and the object that it addresses; `name` is empty for all objects of the namespace."""

    verb: str
    resource: Resource
    namespace: str | None
    name: str = ""
    subresource: str = ""


class LocalClient(Client):
    """Client of one identity. Calls are authorized, logged and fault-injected like requests over HTTP."""

    def __init__(self, services: Services, user: User, manager: str) -> None:
        self._services = services
        self._user = user
        self._manager = manager

    def _context(self) -> Context:
        return Context(self._user, self._manager, field_validation="Ignore")

    async def _run(self, call: _Call, action: Callable[[Target], Any]) -> Any:
        kind = self._services.registry.find(call.resource.group, call.resource.version, call.resource.plural)
        if kind is None:
            raise errors.error(404, "NotFound", "the server could not find the requested resource", {})
        place = (call.namespace or "") if kind.namespaced else ""
        asked = Attributes(call.verb, kind.group, kind.plural, call.subresource, place, call.name)
        code = 200
        try:
            await self._services.apply_faults(self._user, asked)
            self._services.authorize(self._user, asked)
            return action(Target(kind, call.namespace, call.name, call.subresource))
        except ApiError as problem:
            code = problem.code
            raise
        finally:
            self._services.log(self._user, asked, code)

    @override
    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        found: JsonObject = await self._run(
            _Call("get", resource, namespace, name),
            lambda target: self._services.pipeline.get(target.kind, namespace, name),
        )
        return found

    @override
    async def list(
        self, resource: Resource, namespace: str | None = None, **selection: Unpack[Selection]
    ) -> list[JsonObject]:
        def action(target: Target) -> list[JsonObject]:
            kind = target.kind
            label_selector, field_selector = selection.get("label_selector", ""), selection.get("field_selector", "")
            try:
                matches = matcher(label_selector, field_selector, kind.fields)
                condition = indexed_condition(label_selector, field_selector, kind.fields)
            except SelectorError as problem:
                raise errors.bad_request(str(problem)) from problem
            records = self._services.store.list(kind.storage_key, namespace, condition)
            return [record.obj for record in records if matches is None or matches(record.obj)]

        found: list[JsonObject] = await self._run(_Call("list", resource, namespace), action)
        return found

    @override
    async def create(self, resource: Resource, body: JsonObject, namespace: str | None = None) -> JsonObject:
        place = namespace or body.get("metadata", {}).get("namespace")
        found: JsonObject = await self._run(
            _Call("create", resource, place),
            lambda target: self._services.pipeline.create(target, body, self._context()),
        )
        return found

    @override
    async def update(self, resource: Resource, body: JsonObject, *, subresource: str = "") -> JsonObject:
        meta = body["metadata"]
        namespace, name = meta.get("namespace"), meta["name"]
        if subresource == "binding":
            return await self._bind(resource, namespace, name, body)
        found: JsonObject = await self._run(
            _Call("update", resource, namespace, name, subresource),
            lambda target: self._services.pipeline.update(target, body, self._context())[0],
        )
        return found

    async def _bind(self, resource: Resource, namespace: str | None, name: str, body: JsonObject) -> JsonObject:
        found: JsonObject = await self._run(
            _Call("create", resource, namespace, name, "binding"),
            lambda target: subresources.bind(self._services, target, body, self._context()),
        )
        return found

    @override
    async def patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        patch: Any,
        **options: Unpack[PatchOptions],
    ) -> JsonObject:
        context = self._context()
        context.force = options.get("force", False)
        found: JsonObject = await self._run(
            _Call("patch", resource, namespace, name, options.get("subresource", "")),
            lambda target: self._services.pipeline.patch(target, patch, context, style=options.get("kind", "merge"))[0],
        )
        return found

    @override
    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        **options: Unpack[DeletionOptions],
    ) -> None:
        wanted = DeleteOptions(options.get("propagation"), options.get("grace_period_s"), options.get("uid"))
        await self._run(
            _Call("delete", resource, namespace, name),
            lambda target: self._services.deleter.delete(target.kind, namespace, name, wanted, self._context()),
        )

    @override
    async def watch(self, resource: Resource) -> AsyncIterator[WatchEvent]:
        """Yield every object, then every change, also across restarts of the watch and of the resource's CRD."""
        while True:
            kind = await self._services.registry.wait_for(resource)
            known: dict[tuple[str, str], JsonObject] = {}
            async for event in self._one_watch(resource, kind, known):
                yield event
            for obj in known.values():
                # The resource type was removed, or the watch broke: start again with all objects.
                if self._services.registry.find(resource.group, resource.version, resource.plural) is None:
                    yield WatchEvent("DELETED", resource, obj)

    async def _one_watch(
        self, resource: Resource, kind: Kind, known: dict[tuple[str, str], JsonObject]
    ) -> AsyncIterator[WatchEvent]:
        store = self._services.store
        feed = store.open_feed(kind.storage_key, None, store.rv)
        try:
            for record in store.list(kind.storage_key, None):
                _remember(known, record.obj)
                yield WatchEvent("ADDED", resource, record.obj)
            while not feed.closed or feed.pending:
                while feed.pending:
                    change = feed.pending.popleft()
                    if change.type == "DELETED":
                        known.pop(_key(change.record.obj), None)
                    else:
                        _remember(known, change.record.obj)
                    yield WatchEvent(change.type, resource, change.record.obj)
                if feed.closed:
                    return
                feed.wake.clear()
                await feed.wake.wait()
        finally:
            store.close_feed(kind.storage_key, feed)


def _key(obj: JsonObject) -> tuple[str, str]:
    return (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])


def _remember(known: dict[tuple[str, str], JsonObject], obj: JsonObject) -> None:
    known[_key(obj)] = obj
