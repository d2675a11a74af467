"""Namespace controllers: default content of new namespaces, and removal of the content of deleted ones."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from wrpo_devcluster.client import (
    CONFIG_MAPS,
    CRDS,
    EVENTS,
    NAMESPACES,
    SERVICE_ACCOUNTS,
    ApiError,
    Client,
    JsonObject,
    Resource,
)
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.base import Controller, Watched, get_or_none, list_or_empty, own_key
from wrpo_devcluster.objects import BUILTIN_KINDS, crd_resources, is_deleting, split_key

ROOT_CA = "kube-root-ca.crt"
_RECHECK_S = 0.5


class NamespaceController(Controller):
    """Controller that empties namespaces that are being deleted, and then lets them go."""

    name = "namespace-controller"

    def __init__(self, client: Client, clock: Clock) -> None:
        super().__init__(client, clock)
        self._seen_deleting: dict[str, str] = {}

    @override
    def watched(self) -> Sequence[Watched]:
        return (Watched(NAMESPACES, own_key),)

    @override
    async def reconcile(self, key: str) -> float | None:
        _, name = split_key(key)
        namespace = await get_or_none(self.client, NAMESPACES, name)
        if namespace is None or not is_deleting(namespace):
            return None
        # The first check comes after a pause, as with a real server: a client sees the namespace terminating.
        deleted = namespace["metadata"]["deletionTimestamp"]
        if key not in self._seen_deleting or self._seen_deleting[key] != deleted:
            self._seen_deleting[key] = deleted
            return _RECHECK_S
        remaining = await self._delete_content(name)
        if remaining:
            return _RECHECK_S
        spec = dict(namespace.get("spec") or {})
        spec["finalizers"] = [f for f in spec.get("finalizers") or [] if f != "kubernetes"]
        await self.client.update(NAMESPACES, {**namespace, "spec": spec}, subresource="finalize")
        self._seen_deleting.pop(key, None)
        return None

    async def _delete_content(self, namespace: str) -> int:
        """Request the deletion of everything; return how many objects still exist."""
        remaining = 0
        for resource in await self._namespaced():
            for item in await list_or_empty(self.client, resource, namespace):
                remaining += 1
                if is_deleting(item):
                    continue
                meta = item["metadata"]
                try:
                    await self.client.delete(
                        resource, meta["name"], namespace, propagation="Background", uid=meta["uid"]
                    )
                except ApiError as error:
                    if error.code not in {404, 409}:
                        raise
        return remaining

    async def _namespaced(self) -> list[Resource]:
        cluster_scoped = {"namespaces", "nodes"}
        builtin = [r for r in BUILTIN_KINDS.values() if r.plural not in cluster_scoped]
        custom = [
            resource
            for crd in await list_or_empty(self.client, CRDS)
            if crd["spec"].get("scope") == "Namespaced"
            for _, resource in list(crd_resources(crd))[:1]
        ]
        return [*custom, *builtin, EVENTS]


class DefaultContentController(Controller):
    """Controller that gives active namespaces the ServiceAccount `default` and the server's certificate authority."""

    name = "root-ca-certificate-publisher"

    def __init__(self, client: Client, clock: Clock, *, ca_pem: str) -> None:
        super().__init__(client, clock)
        self._ca_pem = ca_pem

    @override
    def watched(self) -> Sequence[Watched]:
        return (
            Watched(NAMESPACES, lambda o: (o["metadata"]["name"],)),
            Watched(SERVICE_ACCOUNTS, lambda o: _namespace_if(o, "default")),
            Watched(CONFIG_MAPS, lambda o: _namespace_if(o, ROOT_CA)),
        )

    @override
    async def reconcile(self, key: str) -> float | None:
        namespace = await get_or_none(self.client, NAMESPACES, key)
        if namespace is None or is_deleting(namespace):
            return None
        await self._ensure(
            SERVICE_ACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}, key
        )
        bundle = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": ROOT_CA},
            "data": {"ca.crt": self._ca_pem},
        }
        found = await self._ensure(CONFIG_MAPS, bundle, key)
        if found is not None and (found.get("data") or {}) != bundle["data"]:
            await self.client.patch(CONFIG_MAPS, ROOT_CA, key, {"data": bundle["data"]})
        return None

    async def _ensure(self, resource: Resource, body: JsonObject, namespace: str) -> JsonObject | None:
        found = await get_or_none(self.client, resource, body["metadata"]["name"], namespace)
        if found is not None:
            return found
        try:
            await self.client.create(resource, body, namespace)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
        return None


def _namespace_if(obj: JsonObject, name: str) -> tuple[str, ...]:
    meta = obj["metadata"]
    return (meta["namespace"],) if meta["name"] == name else ()
