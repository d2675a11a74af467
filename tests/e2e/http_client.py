"""`wrpo_devcluster.client.Client` over HTTP: lets a controller of the embedded control plane work on any API server.

Lists and watches are of one namespace, so that nothing of others on a shared cluster is ever touched.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Unpack
from urllib.parse import quote

from wrpo_devcluster.client import (
    ApiError,
    DeletionOptions,
    JsonObject,
    Patch,
    PatchOptions,
    Resource,
    Selection,
    WatchEvent,
)
from wrpo_operator.runtime.kube import HttpKube, KubeError, Request

WATCH_S = 240
_PATCH_TYPES: dict[Patch, str] = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_MANAGER = {"fieldManager": "wrpo-e2e-controller"}


class HttpClient:
    """One identity, that of the kubeconfig, in one namespace."""

    def __init__(self, kube: HttpKube, namespace: str) -> None:
        self._kube = kube
        self._namespace = namespace

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        return await self._request("GET", path_of(resource, namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None = None, **selection: Unpack[Selection]
    ) -> list[JsonObject]:
        query = {
            "labelSelector": selection.get("label_selector", ""),
            "fieldSelector": selection.get("field_selector", ""),
        }
        answer = await self._request("GET", path_of(resource, namespace or self._namespace), query=query)
        return list(answer.get("items") or [])

    async def create(self, resource: Resource, body: JsonObject, namespace: str | None = None) -> JsonObject:
        return await self._request("POST", path_of(resource, namespace), body=body, query=_MANAGER)

    async def update(self, resource: Resource, body: JsonObject, *, subresource: str = "") -> JsonObject:
        meta = body["metadata"]
        path = path_of(resource, meta.get("namespace"), meta["name"], subresource)
        return await self._request("PUT", path, body={**_types(resource), **body}, query=_MANAGER)

    async def patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        patch: Any,
        **options: Unpack[PatchOptions],
    ) -> JsonObject:
        query = {**_MANAGER, **({"force": "true"} if options.get("force") else {})}
        path = path_of(resource, namespace, name, options.get("subresource", ""))
        content_type = _PATCH_TYPES[options.get("kind", "merge")]
        return await self._request("PATCH", path, body=patch, query=query, content_type=content_type)

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        **options: Unpack[DeletionOptions],
    ) -> None:
        grace_period_s, uid = options.get("grace_period_s"), options.get("uid")
        body: JsonObject = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": options.get("propagation") or "Background",
            **({} if grace_period_s is None else {"gracePeriodSeconds": grace_period_s}),
            **({"preconditions": {"uid": uid}} if uid else {}),
        }
        await self._request("DELETE", path_of(resource, namespace, name), body=body)

    async def watch(self, resource: Resource) -> AsyncIterator[WatchEvent]:
        """Yield what exists and then every change; ends when the server has forgotten where it was (410)."""
        path = path_of(resource, self._namespace)
        listed = await self._list_when_served(path)
        for item in listed.get("items") or []:
            yield WatchEvent("ADDED", resource, {**_types(resource), **item})
        version = str((listed.get("metadata") or {}).get("resourceVersion", ""))
        while True:
            query = {
                "watch": "true",
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(WATCH_S),
            }
            try:
                async for line in self._kube.stream_lines(path, query):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ApiError(event["object"])
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield WatchEvent(event["type"], resource, event["object"])
            except KubeError as error:
                if not error.unreachable:
                    raise _api_error(error) from error
            # However it ended: a server that ends watches at once is not asked in a tight loop.
            await asyncio.sleep(0.5)

    async def _list_when_served(self, path: str) -> JsonObject:
        while True:
            try:
                return await self._request("GET", path)
            except ApiError as error:
                if error.code != 404:
                    raise
                await asyncio.sleep(1)

    async def _request(self, method: str, path: str, **options: Any) -> JsonObject:
        try:
            # The name of the resource is for the client's metrics only.
            return await self._kube.ask(Request(_VERBS[method], path, path, **options))
        except KubeError as error:
            raise _api_error(error) from error


def path_of(resource: Resource, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
    group = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    place = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    parts = [group + place, resource.plural, quote(name, safe=""), subresource]
    return "/".join(part for part in parts if part)


def _types(resource: Resource) -> JsonObject:
    """Return apiVersion only: items of a list lack it, and a PUT needs it; the server knows the kind from the path."""
    return {"apiVersion": f"{resource.group}/{resource.version}" if resource.group else resource.version}


def _api_error(error: KubeError) -> ApiError:
    return ApiError({"code": error.code or 503, "reason": error.reason, "message": error.message})
