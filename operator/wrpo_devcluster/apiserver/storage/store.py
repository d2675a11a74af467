"""Store: objects in memory, every write durable in SQLite, and the history from which watches resume."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.schema.serializer import nests_deeper
from wrpo_devcluster.apiserver.storage.indexes import Equals, Indexes
from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.stack import MAX_DEPTH

MOST_BYTES = 1536 * 1024
"""Size of an object's text, in bytes, from which etcd refuses it."""
MOST_LEVELS = MAX_DEPTH + 8
"""Patches can make an object deeper than any body may be. managedFields has a few more levels than its paths."""
EventType = Literal["ADDED", "MODIFIED", "DELETED"]
HISTORY = 5000
"""Changes kept per resource type. A watch from before them fails with 410."""


@dataclass(frozen=True, slots=True)
class Record:
    """A stored object, never mutated, and its JSON text."""

    obj: JsonObject
    text: bytes
    rv: int


@dataclass(frozen=True, slots=True)
class Change:
    """A write, with the previous record."""

    type: EventType
    rv: int
    record: Record
    previous: JsonObject | None


class Feed:
    """Queue of changes of a watch. `closed` ends it; the server then ends the watch normally."""

    def __init__(self, namespace: str | None) -> None:
        self.namespace = namespace
        self.pending: deque[Change] = deque()
        self.wake = asyncio.Event()
        self.closed = False
        self.gone = False
        """Whether the watch ends with 410 Expired instead of normally."""

    def push(self, change: Change) -> None:
        """Add a change and wake the watch."""
        self.pending.append(change)
        self.wake.set()

    def close(self, *, gone: bool = False) -> None:
        """End the watch; with `gone` by 410 Expired."""
        self.closed = True
        self.gone = gone
        self.wake.set()


@dataclass
class Table:
    """All objects of one resource type."""

    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    by_namespace: dict[str, dict[str, Record]] = field(default_factory=dict)
    indexes: Indexes = field(default_factory=Indexes)
    history: deque[Change] = field(default_factory=lambda: deque(maxlen=HISTORY))
    compacted: int = 0
    """Changes up to here are forgotten."""
    feeds: set[Feed] = field(default_factory=set)


class Store:
    """Key-value store by (group/plural, namespace, name), for use in one thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # WAL with NORMAL: a killed process loses nothing; only a power cut may lose the last writes.
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS objects (resource TEXT, namespace TEXT, name TEXT, rv INTEGER, body BLOB,"
            " PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT)")
        self._tables: dict[str, Table] = {}
        row = self._db.execute("SELECT value FROM meta WHERE key = 'rv'").fetchone()
        self.rv = int(row[0]) if row else 1000
        self._load()

    def _load(self) -> None:
        for resource, namespace, name, rv, body in self._db.execute(
            "SELECT resource, namespace, name, rv, body FROM objects"
        ):
            self._put_memory(self.table(resource), namespace, name, Record(json.loads(body), bytes(body), rv))
            self.rv = max(self.rv, rv)
        for table in self._tables.values():
            table.compacted = self.rv

    def close(self) -> None:
        """End all watches and close the database."""
        for table in self._tables.values():
            for feed in table.feeds:
                feed.close()
        self._db.close()

    def set_meta(self, key: str, value: str) -> None:
        """Store a fact about the store itself, e.g. its latest version."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def table(self, resource: str) -> Table:
        """Return the table of a resource type, created on first use."""
        found = self._tables.get(resource)
        if found is None:
            found = self._tables[resource] = Table(compacted=self.rv)
        return found

    def get(self, resource: str, namespace: str, name: str) -> Record | None:
        """Return the record of an object; None if there is none."""
        return self.table(resource).records.get((namespace, name))

    def list(self, resource: str, namespace: str | None, condition: Equals | None = None) -> Iterator[Record]:
        """Return the records in key order that meet the condition, if any. A namespace of None means all."""
        table = self.table(resource)
        if condition is not None:
            keys = [key for key in self._find(table, condition) if namespace is None or key[0] == namespace]
            return iter([table.records[key] for key in sorted(keys)])
        if namespace is not None:
            names = table.by_namespace.get(namespace, {})
            return iter([names[name] for name in sorted(names)])
        return iter([table.records[key] for key in sorted(table.records)])

    def list_at(self, resource: str, namespace: str | None, version: int) -> Sequence[Record]:
        """Return the records as they were at `version`; raise LookupError if it is no longer known."""
        table = self.table(resource)
        if version < table.compacted:
            raise LookupError(f"too old resource version: {version} ({table.compacted})")
        records = dict(table.records)
        for change in reversed(table.history):
            if change.rv <= version:
                break
            meta = change.record.obj["metadata"]
            key = (meta.get("namespace", ""), meta["name"])
            records.pop(key, None)
            if change.previous is not None:
                before = change.previous
                records[key] = Record(before, encode(before), int(before["metadata"]["resourceVersion"]))
        return [records[key] for key in sorted(records) if namespace in {None, key[0]}]

    @staticmethod
    def _find(table: Table, condition: Equals) -> Collection[tuple[str, str]]:
        if condition.by not in table.indexes:
            table.indexes.build(condition.by, [(key, record.obj) for key, record in table.records.items()])
        return table.indexes.find(condition)

    def count(self, resource: str, namespace: str) -> int:
        """Return the number of objects of a type in a namespace."""
        return len(self.table(resource).by_namespace.get(namespace, ()))

    @staticmethod
    def _put_memory(table: Table, namespace: str, name: str, record: Record) -> None:
        before = table.records.get((namespace, name))
        table.indexes.changed((namespace, name), before.obj if before else None, record.obj)
        table.records[namespace, name] = record
        table.by_namespace.setdefault(namespace, {})[name] = record

    def put(self, resource: str, namespace: str, name: str, obj: JsonObject) -> Record:
        """Write `obj` and notify the watches. The store owns `obj` from then on and sets its resourceVersion."""
        table = self.table(resource)
        before = table.records.get((namespace, name))
        rv = self.rv + 1
        obj["metadata"]["resourceVersion"] = str(rv)
        text = encode(obj)
        if len(text) > MOST_BYTES:
            raise errors.internal("etcdserver: request is too large")
        if nests_deeper(text, MOST_LEVELS):
            raise errors.bad_request("the object would nest too deep: exceeded max depth")
        # One statement is one transaction; the version is in the row.
        self._db.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", (resource, namespace, name, rv, text))
        self.rv = rv
        record = Record(obj, text, rv)
        self._put_memory(table, namespace, name, record)
        kind: EventType = "MODIFIED" if before else "ADDED"
        self._publish(table, namespace, Change(kind, rv, record, before.obj if before else None))
        return record

    def delete(self, resource: str, namespace: str, name: str, last: JsonObject | None = None) -> JsonObject:
        """Remove an object. Watches get its last state with a new resourceVersion."""
        table = self.table(resource)
        before = table.records[namespace, name]
        rv = self.rv + 1
        final = dict(last or before.obj)
        final["metadata"] = {**final["metadata"], "resourceVersion": str(rv)}
        self._delete_row(rv, (resource, namespace, name))
        table.indexes.changed((namespace, name), before.obj, None)
        del table.records[namespace, name]
        names = table.by_namespace[namespace]
        del names[name]
        if not names:
            del table.by_namespace[namespace]
        self._publish(table, namespace, Change("DELETED", rv, Record(final, encode(final), rv), before.obj))
        return final

    def _delete_row(self, rv: int, key: tuple[str, str, str]) -> None:
        """Delete a row, and keep the version that no row has any more."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute("DELETE FROM objects WHERE resource = ? AND namespace = ? AND name = ?", key)
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('rv', ?)", (str(rv),))
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        self.rv = rv

    @staticmethod
    def _publish(table: Table, namespace: str, change: Change) -> None:
        if len(table.history) == table.history.maxlen:
            table.compacted = table.history[0].rv
        table.history.append(change)
        for feed in table.feeds:
            if feed.namespace is None or feed.namespace == namespace:
                feed.push(change)

    def open_feed(self, resource: str, namespace: str | None, since: int) -> Feed:
        """Return a feed of every change after `since`; raise LookupError if these are no longer known."""
        table = self.table(resource)
        if since < table.compacted:
            raise LookupError(f"too old resource version: {since} ({table.compacted})")
        feed = Feed(namespace)
        missed = []
        for change in reversed(table.history):
            if change.rv <= since:
                break
            missed.append(change)
        for change in reversed(missed):
            if namespace is None or (change.record.obj["metadata"].get("namespace") or "") == namespace:
                feed.push(change)
        table.feeds.add(feed)
        return feed

    def close_feed(self, resource: str, feed: Feed) -> None:
        """Stop feeding a watch that has ended."""
        self.table(resource).feeds.discard(feed)

    def break_feeds(self, matches: Callable[[str], bool], *, gone: bool) -> int:
        """End every watch on the matching resources. With `gone` also forget the history, so that resuming fails."""
        count = 0
        for resource, table in self._tables.items():
            if not matches(resource):
                continue
            if gone:
                table.history.clear()
                table.compacted = self.rv = self.rv + 1
                self.set_meta("rv", str(self.rv))
            for feed in table.feeds:
                feed.close(gone=gone)
                count += 1
        return count


_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False)


def encode(obj: object) -> bytes:
    """Return the JSON text of an object, without spaces."""
    return _JSON.encode(obj).encode()
