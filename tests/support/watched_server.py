"""An API server of one resource over HTTP, to be watched by kopf."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from wrpo_operator.runtime.resources import JsonObject

GROUP = "/apis/wrpo.ai/v1alpha1"
DISCOVERY: JsonObject = {
    "kind": "APIResourceList",
    "groupVersion": "wrpo.ai/v1alpha1",
    "resources": [
        {
            "name": "wrpoexperiments",
            "singularName": "wrpoexperiment",
            "namespaced": True,
            "kind": "WRPOExperiment",
            "verbs": ["list", "watch", "patch"],
        }
    ],
}

CORE: JsonObject = {
    "kind": "APIResourceList",
    "groupVersion": "v1",
    "resources": [{"name": "namespaces", "singularName": "", "namespaced": False, "kind": "Namespace", "verbs": []}],
}


def stored(name: str, version: int, spec: str = "{}") -> str:
    metadata = {"name": name, "namespace": "ns", "uid": name, "resourceVersion": str(version)}
    return f'{{"metadata":{json.dumps(metadata)},"spec":{spec}}}'


class WatchedServer:
    """One resource: a list of what is stored, and watches that are sent `lines`."""

    def __init__(self, items: list[str], lines: list[str]) -> None:
        self.items, self.lines = items, lines
        self.refusals: list[tuple[int, bytes]] = []
        """Answers to the next requests for the collection."""
        self.lists = 0
        self.tokens: set[str] = set()
        self.url = ""
        self.cuts: list[str] = []
        """Resources of which something could not be read."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.tokens.add(request.headers.get("Authorization", ""))
        if request.path.endswith("/wrpoexperiments"):
            return await self._collection(request)
        if request.path == GROUP:
            return web.json_response(DISCOVERY)
        if request.path == "/api/v1":
            return web.json_response(CORE)
        versions = {"groupVersion": "wrpo.ai/v1alpha1", "version": "v1alpha1"}
        group = {"name": "wrpo.ai", "versions": [versions], "preferredVersion": versions}
        return web.json_response({"versions": ["v1"], "groups": [group], "resources": []})

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        if self.refusals:
            code, body = self.refusals.pop(0)
            return web.Response(status=code, body=body, content_type="application/json")
        if "watch" not in request.query:
            self.lists += 1
            text = f'{{"metadata":{{"resourceVersion":"10"}},"items":[{",".join(self.items)}]}}'
            return web.Response(text=text, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while self.lines:
            await response.write(self.lines.pop(0).encode())
        await asyncio.sleep(0.05)
        return response

    async def login(self) -> dict[str, Any]:
        """Return what kopf connects with, once the server runs."""
        return {"server": self.url, "scheme": "Bearer", "token": "secret"}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self.handle)
        async with TestServer(app) as running:
            self.url = f"http://127.0.0.1:{running.port}"
            yield


def event(kind: str, obj: str) -> str:
    return f'{{"type":"{kind}","object":{obj}}}\n'
