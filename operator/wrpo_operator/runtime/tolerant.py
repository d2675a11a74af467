"""The HTTP session of kopf's watches: responses are safe to decode, and none ends a watch permanently.

kopf treats refusals other than 410 and 429 as fatal, but an API server may reply 403 while it starts. It also decodes
responses with Python's own reader, which raises RecursionError for a deeply nested object. Both would stop the watches
of all namespaces.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import aiohttp
from aiohttp.connector import Connection

from wrpo_operator.runtime.decode import UndecodableError, decode, decode_exactly, encode, is_object, objects_in

log = logging.getLogger(__name__)
FATAL = frozenset({401, 404, 410})
"""Statuses that kopf must handle: it reads credentials again, ends the session, or lists again."""
GONE = b'{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410,"reason":"Expired"}}'


class RefusedError(aiohttp.ClientConnectionError):
    """A refusal as a lost connection, after which kopf retries."""


def watch_line(line: bytes, on_cut: Callable[[], None] = lambda: None) -> bytes:
    """Return a watch event that any reader can decode; empty for a line that is not an event.

    `on_cut` is called for each skipped part of an event, and for each skipped event.
    An error within a watch becomes 410, so that the watch restarts with a list.
    """
    try:
        event, is_plain = decode_exactly(line, on_cut)
    except UndecodableError as error:
        log.warning("skipping a watch event because it is %s", error)
        on_cut()
        return b""
    kind, obj = (event.get("type"), event.get("object")) if isinstance(event, dict) else (None, None)
    if kind == "ERROR" and isinstance(obj, dict):
        if obj.get("code") != 410:
            log.warning("restarting a watch: %s", str(obj.get("message"))[:500])
        return GONE
    if not isinstance(kind, str) or not is_object(obj):
        log.warning("skipping a watch event because it has no type or no object")
        on_cut()
        return b""
    return line if is_plain else encode(event)


class _Lines:
    """A response's content whose lines are watch events."""

    def __init__(self, content: aiohttp.StreamReader, on_cut: Callable[[], None]) -> None:
        self._content = content
        self._on_cut = on_cut

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        rest = b""
        async for data in self._content.iter_chunked(size):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield _ended(watch_line(line, self._on_cut))
        if rest.strip():
            yield _ended(watch_line(rest, self._on_cut))


def _ended(line: bytes) -> bytes:
    return line + b"\n" if line else b""


class TolerantResponse(aiohttp.ClientResponse):
    """Refusals become lost connections, and content is decoded safely."""

    on_cut: Callable[[str], None] = staticmethod(lambda _resource: None)
    """Called with the plural of the resource when an object cannot be read as a whole."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Read the head of the response; RefusedError for statuses after which kopf would stop."""
        await super().start(connection)
        if self.status >= 400 and self.status not in FATAL | {429}:
            text = (await self.read())[:500].decode(errors="replace")
            raise RefusedError(f"{self.status} {self.reason}: {text}")
        if self.status < 400:
            self.content = cast("aiohttp.StreamReader", _Lines(self.content, self._cut))
        return self

    def _cut(self) -> None:
        self.on_cut(self.url.path.rsplit("/", 1)[-1])

    async def json(
        self,
        *,
        encoding: str | None = None,
        loads: Callable[[str], Any] = json.loads,
        content_type: str | None = "application/json",
    ) -> Any:
        """Decode a whole response, e.g. a list."""
        del encoding, loads, content_type
        try:
            answer = decode(await self.read(), self._cut)
        except UndecodableError as error:
            if self.status >= 400:
                raise json.JSONDecodeError(str(error), "", 0) from error
            raise RefusedError(f"the response to {self.url.path} is {error}") from error
        return {**answer, "items": objects_in(answer, self._cut)} if _is_list(answer) else answer


def _is_list(answer: Any) -> bool:
    return isinstance(answer, dict) and "items" in answer
