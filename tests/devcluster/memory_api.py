"""Small API server in memory for tests of controllers and kubelet: storage and watches, no validation."""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Unpack

from wrpo_devcluster.client import (
    PODS,
    ApiError,
    DeletionOptions,
    JsonObject,
    PatchOptions,
    Resource,
    Selection,
    WatchEvent,
)
from wrpo_devcluster.clock import Clock, SystemClock, timestamp
from wrpo_devcluster.objects import BUILTIN_KINDS, is_terminal, random_suffix

KINDS = {resource: kind for (_, kind), resource in BUILTIN_KINDS.items()}
Key = tuple[Resource, str, str]


def failure(code: int, reason: str, message: str) -> ApiError:
    return ApiError({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message})


def merge(base: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(base) if isinstance(base, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif name == "conditions" and isinstance(value, list):
            kept = {c["type"]: c for c in result.get(name, [])}
            for entry in value:
                kept[entry["type"]] = {**kept.get(entry["type"], {}), **entry}
            result[name] = list(kept.values())
        else:
            result[name] = merge(result.get(name), value)
    return result


def _field(obj: JsonObject, path: str) -> str:
    at: Any = obj
    for name in path.split("."):
        at = at.get(name, "")
    return str(at)


class MemoryClient:
    """Implementation of `wrpo_devcluster.client.Client`."""

    def __init__(self, clock: Clock | None = None, *, seed: int = 0) -> None:
        self.clock = clock or SystemClock()
        self.objects: dict[Key, JsonObject] = {}
        self._revision = itertools.count(1)
        self._random = random.Random(seed)
        self._watchers: dict[Resource, list[asyncio.Queue[WatchEvent]]] = defaultdict(list)
        self.refuse_create: dict[Resource, str] = {}

    def _stamp(self, body: JsonObject) -> None:
        body["metadata"]["resourceVersion"] = str(next(self._revision))

    def _tell(self, kind: Any, resource: Resource, obj: JsonObject) -> None:
        for queue in self._watchers[resource]:
            queue.put_nowait(WatchEvent(kind, resource, obj))

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        found = self.objects.get((resource, namespace or "", name))
        if found is None:
            raise failure(404, "NotFound", f'{resource.plural} "{name}" not found')
        return found

    async def list(
        self, resource: Resource, namespace: str | None = None, **selection: Unpack[Selection]
    ) -> list[JsonObject]:
        """Return the objects by name, as the API server does."""
        wanted = dict(part.split("=") for part in selection.get("label_selector", "").split(",") if part)
        fields = dict(part.split("=") for part in selection.get("field_selector", "").split(",") if part)
        return [
            obj
            for (kind, place, _), obj in sorted(self.objects.items(), key=lambda item: item[0][1:])
            if kind == resource
            and (namespace is None or place == namespace)
            and wanted.items() <= (obj["metadata"].get("labels") or {}).items()
            and all(_field(obj, path) == value for path, value in fields.items())
        ]

    async def create(self, resource: Resource, body: JsonObject, namespace: str | None = None) -> JsonObject:
        obj = copy.deepcopy(body)
        meta = obj["metadata"]
        if "name" not in meta:
            meta["name"] = meta["generateName"] + random_suffix(self._random)
        if resource in self.refuse_create:
            raise failure(
                403, "Forbidden", f'{resource.plural} "{meta["name"]}" is forbidden: {self.refuse_create[resource]}'
            )
        if namespace:
            meta["namespace"] = namespace
        key = (resource, meta.get("namespace", ""), meta["name"])
        if key in self.objects:
            raise failure(409, "AlreadyExists", f'{resource.plural} "{meta["name"]}" already exists')
        meta |= {
            "uid": f"00000000-0000-0000-0000-{self._random.getrandbits(48):012x}",
            "creationTimestamp": timestamp(self.clock.now()),
            "generation": 1,
        }
        if resource in KINDS:
            obj.setdefault("kind", KINDS[resource])
        if resource == PODS:
            obj.setdefault("status", {"phase": "Pending", "qosClass": "BestEffort"})
        self._stamp(obj)
        self.objects[key] = obj
        self._tell("ADDED", resource, obj)
        return obj

    async def update(self, resource: Resource, body: JsonObject, *, subresource: str = "") -> JsonObject:
        meta = body["metadata"]
        current = await self.get(resource, meta["name"], meta.get("namespace"))
        if subresource == "binding":
            entry = {"type": "PodScheduled", "status": "True", "lastProbeTime": None}
            patch = {"spec": {"nodeName": body["target"]["name"]}, "status": {"conditions": [entry]}}
            return self._replace(resource, merge(current, patch))
        if meta.get("resourceVersion") not in {None, current["metadata"]["resourceVersion"]}:
            raise failure(409, "Conflict", "the object has been modified")
        if subresource == "status":
            return self._replace(resource, {**current, "status": copy.deepcopy(body["status"])})
        return self._replace(resource, copy.deepcopy(body))

    async def patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        patch: Any,
        **options: Unpack[PatchOptions],
    ) -> JsonObject:
        current = await self.get(resource, name, namespace)
        return self._replace(resource, merge(current, patch))

    def _replace(self, resource: Resource, obj: JsonObject) -> JsonObject:
        meta = obj["metadata"] = dict(obj["metadata"])
        self._stamp(obj)
        key = (resource, meta.get("namespace", ""), meta["name"])
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and not meta.get("deletionGracePeriodSeconds"):
            del self.objects[key]
            self._tell("DELETED", resource, obj)
        else:
            self.objects[key] = obj
            self._tell("MODIFIED", resource, obj)
        return obj

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        **options: Unpack[DeletionOptions],
    ) -> None:
        current = await self.get(resource, name, namespace)
        uid, grace_period_s = options.get("uid"), options.get("grace_period_s")
        if uid is not None and current["metadata"]["uid"] != uid:
            raise failure(409, "Conflict", "the UID in the precondition does not match")
        grace = 0
        if resource == PODS and current["spec"].get("nodeName") and not is_terminal(current):
            grace = current["spec"].get("terminationGracePeriodSeconds", 30)
            grace = grace if grace_period_s is None else grace_period_s
        finalizers = list(current["metadata"].get("finalizers") or [])
        for policy, finalizer in (("Foreground", "foregroundDeletion"), ("Orphan", "orphan")):
            if options.get("propagation") == policy and finalizer not in finalizers:
                finalizers.append(finalizer)
        deleted = timestamp(self.clock.now() + timedelta(seconds=grace))
        meta = {"deletionTimestamp": deleted, "deletionGracePeriodSeconds": grace, "finalizers": finalizers or None}
        self._replace(resource, merge(current, {"metadata": meta}))

    async def watch(self, resource: Resource) -> AsyncIterator[WatchEvent]:
        queue: asyncio.Queue[WatchEvent] = asyncio.Queue()
        for (kind, _, _), obj in tuple(self.objects.items()):
            if kind == resource:
                queue.put_nowait(WatchEvent("ADDED", resource, obj))
        self._watchers[resource].append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers[resource].remove(queue)
