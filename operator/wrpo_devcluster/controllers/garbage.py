"""Garbage collector: deletes objects without living owners, and carries out foreground and orphan deletion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from typing_extensions import override

from wrpo_devcluster.client import CRDS, NAMESPACES, ApiError, Client, JsonObject, Resource, WatchEvent
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.base import Controller, Watched, WatchHub, get_or_none
from wrpo_devcluster.objects import BUILTIN_KINDS, crd_resources, is_deleting

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"


class OwnerState(StrEnum):
    """Whether an owner still keeps its dependents."""

    SOLID = "solid"
    ABSENT = "absent"
    WAITING = "waiting"
    """State of an owner that is deleted in the foreground: it waits for its dependents."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Decision to keep the object and drop the references to absent owners."""

    drop_uids: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Remove:
    """Decision to delete the object, in the foreground if its own dependents must go first."""

    foreground: bool


def decide_dependent(owners: dict[str, OwnerState], *, has_dependents: bool) -> Keep | Remove:
    """Decide about an object with owners, given the state of each owner by uid.

    Invariant: an object with a living owner is never deleted.
    """
    if not owners:
        return Keep()
    if OwnerState.SOLID in owners.values():
        return Keep(frozenset(uid for uid, state in owners.items() if state is not OwnerState.SOLID))
    return Remove(foreground=OwnerState.WAITING in owners.values() and has_dependents)


@dataclass(slots=True)
class _Node:
    resource: Resource
    namespace: str
    name: str
    uid: str
    owners: tuple[JsonObject, ...]
    finalizers: tuple[str, ...]
    is_deleting: bool


class GarbageCollector(Controller):
    """Collector whose keys are uids. Watches of every resource type maintain the graph of owners."""

    name = "garbage-collector-controller"
    workers = 4

    def __init__(self, client: Client, clock: Clock) -> None:
        super().__init__(client, clock)
        self._nodes: dict[str, _Node] = {}
        self._dependents: dict[str, set[str]] = defaultdict(set)
        self._kinds: dict[tuple[str, str], Resource] = dict(BUILTIN_KINDS)
        self._custom: dict[str, Resource] = {}
        self._hub: WatchHub | None = None

    @override
    def watched(self) -> Sequence[Watched]:
        return ()

    @override
    def attach(self, hub: WatchHub) -> None:
        self._hub = hub
        for resource in BUILTIN_KINDS.values():
            hub.subscribe(resource, self._observe)
        hub.subscribe(CRDS, self._observe_crd)

    def _observe_crd(self, event: WatchEvent) -> None:
        name = event.object["metadata"]["name"]
        for kind, resource in crd_resources(event.object):
            if event.type == "DELETED":
                self._kinds.pop(kind, None)
            else:
                self._kinds[kind] = resource
        served = next(iter(crd_resources(event.object)), None)
        if self._hub is None or served is None:
            return
        if event.type == "DELETED":
            gone = self._custom.pop(name, None)
            if gone is not None:
                self._hub.drop(gone, self._observe)
        elif name not in self._custom:
            self._custom[name] = served[1]
            self._hub.join(served[1], self._observe)

    def _observe(self, event: WatchEvent) -> None:
        meta = event.object["metadata"]
        uid = meta["uid"]
        before = self._nodes.get(uid)
        for owner in before.owners if before else ():
            self._dependents[owner["uid"]].discard(uid)
        if event.type == "DELETED":
            self._nodes.pop(uid, None)
            for dependent in self._dependents.get(uid, ()):
                self.queue.add(dependent)
            for owner in before.owners if before else ():
                self.queue.add(owner["uid"])
            return
        node = _Node(
            resource=event.resource,
            namespace=meta.get("namespace", ""),
            name=meta["name"],
            uid=uid,
            owners=tuple(meta.get("ownerReferences") or ()),
            finalizers=tuple(meta.get("finalizers") or ()),
            is_deleting=is_deleting(event.object),
        )
        self._nodes[uid] = node
        for owner in node.owners:
            self._dependents[owner["uid"]].add(uid)
        is_held = node.is_deleting and {FOREGROUND, ORPHAN} & set(node.finalizers)
        if is_held or (node.owners and not node.is_deleting):
            self.queue.add(uid)
        if node.is_deleting:
            for owner in node.owners:
                self.queue.add(owner["uid"])

    @override
    async def reconcile(self, key: str) -> float | None:
        node = self._nodes.get(key)
        if node is None:
            return None
        if node.is_deleting:
            if ORPHAN in node.finalizers:
                await self._orphan(node)
            elif FOREGROUND in node.finalizers:
                return await self._finish_foreground(node)
            return None
        if not node.owners:
            return None
        owners = {owner["uid"]: await self._state(node, owner) for owner in node.owners}
        match decide_dependent(owners, has_dependents=bool(self._dependents.get(key))):
            case Keep(drop_uids=drop):
                if drop:
                    await self._drop_owners(node, drop)
            case Remove(foreground=foreground):
                await self.client.delete(
                    node.resource,
                    node.name,
                    node.namespace or None,
                    propagation="Foreground" if foreground else "Background",
                    uid=node.uid,
                )
        return None

    async def _state(self, node: _Node, owner: JsonObject) -> OwnerState:
        known = self._nodes.get(owner["uid"])
        if known is None:
            return await self._ask(node, owner)
        if known.is_deleting and FOREGROUND in known.finalizers:
            return OwnerState.WAITING
        return OwnerState.SOLID

    async def _ask(self, node: _Node, owner: JsonObject) -> OwnerState:
        """Read an owner that the graph does not know. It is absent only if the API server reports so."""
        resource = self._kinds.get((owner["apiVersion"], owner["kind"])) or self._other_version(owner)
        if resource is None:
            return OwnerState.SOLID
        is_cluster_scoped = resource == NAMESPACES or resource.plural == "nodes"
        found = await get_or_none(self.client, resource, owner["name"], None if is_cluster_scoped else node.namespace)
        if found is None or found["metadata"]["uid"] != owner["uid"]:
            return OwnerState.ABSENT
        return OwnerState.SOLID

    def _other_version(self, owner: JsonObject) -> Resource | None:
        group = owner["apiVersion"].rpartition("/")[0]
        for (api_version, kind), resource in self._kinds.items():
            if kind == owner["kind"] and api_version.rpartition("/")[0] == group:
                return resource
        return None

    async def _finish_foreground(self, owner: _Node) -> float | None:
        blocking = False
        for uid in tuple(self._dependents.get(owner.uid, ())):
            dependent = self._nodes.get(uid)
            if dependent is None:
                continue
            reference = next(r for r in dependent.owners if r["uid"] == owner.uid)
            blocking = blocking or bool(reference.get("blockOwnerDeletion"))
            if not dependent.is_deleting:
                self.queue.add(uid)
        if blocking:
            return None
        await self._remove_finalizer(owner, FOREGROUND)
        return None

    async def _orphan(self, owner: _Node) -> None:
        for uid in tuple(self._dependents.get(owner.uid, ())):
            dependent = self._nodes.get(uid)
            if dependent is not None:
                await self._drop_owners(dependent, frozenset({owner.uid}))
        await self._remove_finalizer(owner, ORPHAN)

    async def _drop_owners(self, node: _Node, uids: frozenset[str]) -> None:
        found = await get_or_none(self.client, node.resource, node.name, node.namespace or None)
        if found is None or found["metadata"]["uid"] != node.uid:
            return
        rest = [r for r in found["metadata"].get("ownerReferences") or [] if r["uid"] not in uids]
        await self._patch(node, {"metadata": {"uid": node.uid, "ownerReferences": rest or None}})

    async def _remove_finalizer(self, node: _Node, finalizer: str) -> None:
        found = await get_or_none(self.client, node.resource, node.name, node.namespace or None)
        if found is None or found["metadata"]["uid"] != node.uid:
            return
        rest = [f for f in found["metadata"].get("finalizers") or [] if f != finalizer]
        await self._patch(node, {"metadata": {"uid": node.uid, "finalizers": rest or None}})

    async def _patch(self, node: _Node, patch: JsonObject) -> None:
        try:
            await self.client.patch(node.resource, node.name, node.namespace or None, patch, kind="merge")
        except ApiError as error:
            if error.code != 404:
                raise
