"""Test rig of the API server on a temporary directory, used in-process or over HTTP in one event loop."""

from __future__ import annotations

import io
import json
from collections.abc import Awaitable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from wrpo_devcluster.apiserver.server import ApiServer
from wrpo_devcluster.client import CRDS, ApiError, Client, Resource

ADMIN = "admin"
WIDGETS = Resource("test.example", "v1", "widgets")
WIDGET_CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.test.example"},
    "spec": {
        "group": "test.example",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'}
                ],
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "x-kubernetes-validations": [
                                    {"rule": "self.min <= self.max", "message": "min must not exceed max"},
                                    {"rule": "self.max >= oldSelf.max", "message": "max may only grow"},
                                ],
                                "properties": {
                                    "min": {"type": "integer", "default": 0},
                                    "max": {"type": "integer", "default": 10},
                                    "size": {"x-kubernetes-int-or-string": True},
                                    "tags": {
                                        "type": "array",
                                        "items": {"type": "string"},
                                        "x-kubernetes-list-type": "set",
                                    },
                                    "parts": {
                                        "type": "array",
                                        "x-kubernetes-list-type": "map",
                                        "x-kubernetes-list-map-keys": ["name"],
                                        "items": {
                                            "type": "object",
                                            "required": ["name"],
                                            "properties": {
                                                "name": {"type": "string"},
                                                "count": {"type": "integer", "default": 1},
                                            },
                                        },
                                    },
                                },
                            },
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}


def widget(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "test.example/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}


def pod(name: str, **spec: Any) -> dict[str, Any]:
    containers = [{"name": "c", "image": "img:1"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": containers, **spec},
    }


class Rig:
    """Server with the namespace `ns`, its default ServiceAccount and the Widget CRD."""

    def __init__(self, server: ApiServer, http: TestClient[Any, Any]) -> None:
        self.server = server
        self.client: Client = server.client("system:tests")
        self.http = http

    async def request(
        self, method: str, path: str, body: Any = None, *, token: str = ADMIN, content: str = "application/json"
    ) -> tuple[int, Any]:
        text = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        data = None if text is None else io.BytesIO(text)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": content}
        async with self.http.request(method, path, data=data, headers=headers) as response:
            found = await response.text()
            return response.status, json.loads(found) if found.startswith(("{", "[")) else found


async def refusal(awaitable: Awaitable[Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await awaitable
    return caught.value


__all__ = ["ADMIN", "CRDS", "WIDGETS", "WIDGET_CRD", "Rig", "pod", "refusal", "widget"]
