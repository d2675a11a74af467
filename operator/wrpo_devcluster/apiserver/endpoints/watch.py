"""Watches: the stream of JSON lines of a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.apiserver.storage.store import Change, Feed, Record, Store, encode
from wrpo_devcluster.client import JsonObject

BOOKMARK_EVERY_S = 60.0
Matches = Callable[[JsonObject], bool] | None
Transform = Callable[[JsonObject], JsonObject] | None
"""Converts each object to the requested form (a Table, metadata only)."""


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """Parsed query of a watch."""

    namespace: str | None
    resource_version: str
    matches: Matches
    transform: Transform
    timeout_s: float
    bookmarks: bool
    initial_events: bool


def parse_version(text: str) -> int:
    """Return the number of a resourceVersion, 0 for an empty one; raise 500, as kube-apiserver, for no number."""
    if not text:
        return 0
    if not text.isdigit():
        raise errors.internal(
            f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        )
    return int(text)


def parse_past_version(text: str, current: int) -> int:
    """Return the least version that a read requires; raise 504 for a future one, like a server that waited for it."""
    wanted = parse_version(text)
    if wanted > current:
        cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        why = f"Timeout: Too large resource version: {wanted}, current: {current}"
        raise errors.error(504, "Timeout", why, {"retryAfterSeconds": 1, "causes": [cause]})
    return wanted


def _line(kind: str, text: bytes) -> bytes:
    return b'{"type":"' + kind.encode() + b'","object":' + text + b"}\n"


class Watch:
    """An open watch."""

    def __init__(self, store: Store, kind: Kind, request: WatchRequest) -> None:
        self._store = store
        self._kind = kind
        self._request = request
        self._since = parse_version(request.resource_version)

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield event lines until the timeout, a lost history, or the feed's end."""
        request = self._request
        from_now = request.initial_events or not self._since
        since = self._store.rv if from_now else self._since
        try:
            feed = self._store.open_feed(self._kind.storage_key, request.namespace, since)
        except LookupError as problem:
            yield _line("ERROR", encode(errors.expired(str(problem)).status))
            return
        try:
            if from_now:
                for record in self._store.list(self._kind.storage_key, request.namespace):
                    if request.matches is None or request.matches(record.obj):
                        yield _line("ADDED", self._text(record))
                if request.initial_events and request.bookmarks:
                    yield self._bookmark(since, initial=True)
            async for line in self._follow(feed, max(since, self._since)):
                yield line
        finally:
            self._store.close_feed(self._kind.storage_key, feed)

    async def _follow(self, feed: Feed, last: int) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._request.timeout_s
        while True:
            if lines := self._take(feed, last):
                # Changes that arrive together are sent in one write to the socket.
                yield b"".join(lines)
                continue
            if feed.closed:
                if feed.gone:
                    yield _line("ERROR", encode(errors.expired("too old resource version").status))
                return
            feed.wake.clear()
            left = deadline - loop.time()
            if left <= 0:
                return
            try:
                await asyncio.wait_for(feed.wake.wait(), min(left, BOOKMARK_EVERY_S))
            except TimeoutError:
                if loop.time() >= deadline:
                    return
                if self._request.bookmarks:
                    yield self._bookmark(self._store.rv, initial=False)

    def _take(self, feed: Feed, last: int) -> list[bytes]:
        """Return the lines of all changes after version `last` that wait in the feed."""
        lines = []
        while feed.pending:
            change = feed.pending.popleft()
            line = self._event(change) if change.rv > last else None
            if line is not None:
                lines.append(line)
        return lines

    def _text(self, record: Record) -> bytes:
        transform = self._request.transform
        return record.text if transform is None else encode(transform(record.obj))

    def _event(self, change: Change) -> bytes | None:
        matches = self._request.matches
        if matches is None:
            return _line(change.type, self._text(change.record))
        now = change.type != "DELETED" and matches(change.record.obj)
        before = change.previous is not None and matches(change.previous)
        if now:
            return _line("MODIFIED" if before else "ADDED", self._text(change.record))
        if not before:
            return None
        if change.type == "DELETED":
            return _line("DELETED", self._text(change.record))
        # It left the selection: report its last selected state, at the version of the change.
        assert change.previous is not None
        meta = {**change.previous["metadata"], "resourceVersion": str(change.rv)}
        gone = {**change.previous, "metadata": meta}
        return _line("DELETED", self._text(Record(gone, encode(gone), change.rv)))

    def _bookmark(self, version: int, *, initial: bool) -> bytes:
        meta: JsonObject = {"resourceVersion": str(version)}
        if initial:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        body = {"kind": self._kind.kind, "apiVersion": self._kind.api_version, "metadata": meta}
        if self._request.transform is not None:
            body = self._request.transform(body)
        return _line("BOOKMARK", encode(body))
