"""Replay of a record's requests against a server, with the required state set up between them."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from support.patience import LIMIT_S

MERGE, JSON_PATCH, APPLY = (
    f"application/{name}" for name in ("merge-patch+json", "json-patch+json", "apply-patch+yaml")
)
Entry = dict[str, Any]
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_AGE = re.compile(r"^(\d+[smhdy])+$|^<age>$")
_VERSION = re.compile(r'resourceVersion: "\d+"')
_UNORDERED = {"managedFields", "items", "rows"}
_PLACEHOLDERS = {"uid": "<uid>", "resourceVersion": "<rv>", "continue": "<continue>", "token": "<token>"}


def normal(value: Any, key: str = "") -> Any:
    """Return `value` without differences between runs, and sorted where the record has no order."""
    if isinstance(value, dict):
        return {_UID.sub("<uid>", name): normal(item, name) for name, item in value.items()}
    if isinstance(value, list):
        items = [normal(item, key) for item in value]
        if key in _UNORDERED and all(isinstance(item, dict) for item in items):
            items.sort(key=lambda item: _sort_key(item, key))
        return items
    if isinstance(value, str):
        return _normal_text(value, key)
    return value


def _sort_key(item: Entry, key: str) -> str:
    parts = [item.get("manager"), item.get("subresource"), item.get("operation")] if key == "managedFields" else item
    return json.dumps(parts, sort_keys=True)


def _normal_text(text: str, key: str) -> str:
    if key in _PLACEHOLDERS or key.endswith("controller-uid"):
        return _PLACEHOLDERS.get(key, "<uid>") if text else text
    text = _VERSION.sub('resourceVersion: "<rv>"', _TIME.sub("<time>", _UID.sub("<uid>", text)))
    return _AGE.sub("<age>", text) if key == "cells" else text


class Replay:
    """A run of the story, which sends requests like the recorder and keeps values for later ones."""

    def __init__(self, url: str, token: str, session: aiohttp.ClientSession, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self.kept: dict[str, Any] = {}
        self._url, self._token, self._session = url, token, session

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """Send one request; return the status code, the body (JSON lines of a watch as a list) and the headers."""
        sent = {"User-Agent": "python-requests/2", "Authorization": f"Bearer {self._token}", "Accept": accept}
        if body is not None:
            sent["Content-Type"] = content_type
        text = body if isinstance(body, str) or body is None else json.dumps(body)
        data = io.BytesIO(text.encode()) if text is not None else None
        query = {name: str(value) for name, value in (params or {}).items()}
        async with self._session.request(
            method, self._url + path, data=data, params=query, headers={**sent, **(headers or {})}
        ) as response:
            content = _content(await response.text(), lines="watch" in query)
            return response.status, content, dict(response.headers)

    async def make(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Send a request that must succeed; return the body."""
        status, found, _ = await self.send(method, path, body, **options)
        assert status < 300, f"{method} {path}: {status} {found}"
        return found

    async def until(self, path: str, holds: Callable[[int, Any], Any], *, timeout_s: float = LIMIT_S) -> Any:
        """Repeat GET `path` until `holds(status, body)`; return the body."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            status, found, _ = await self.send("GET", path)
            if holds(status, found):
                return found
            assert asyncio.get_running_loop().time() < deadline, f"GET {path}: still {status} {found}"
            await asyncio.sleep(0.02)


def _content(text: str, *, lines: bool) -> Any:
    try:
        return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    except ValueError:
        return text


Step = Callable[[Replay], Awaitable[None]]
Amend = Callable[[Replay, Entry], Entry]
"""Puts values of this run into a recorded request, which has placeholders for them."""


async def replay(run: Replay, before: dict[str, Step], amend: dict[str, Amend]) -> dict[str, Entry]:
    """Carry out the entries in order; return a record of them in the recorder's form."""
    record = {}
    for name, entry in run.entries.items():
        if name in before:
            await before[name](run)
        asked = json.loads(json.dumps(entry["request"]))
        request = amend[name](run, asked) if name in amend else asked
        status, body, headers = await run.send(
            request["method"],
            request["path"],
            request["body"],
            content_type=request["contentType"] or "application/json",
            accept=request["accept"] or "application/json",
            params=request["params"],
            headers=request.get("headers"),
        )
        run.kept[name] = body
        kept = {key: headers[key] for key in ("Content-Type", "Warning", "Retry-After") if key in headers}
        record[name] = {**entry, "status": status, "headers": kept, "body": normal(body)}
    return record
