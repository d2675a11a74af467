"""Object store of the operator: the newest seen version of every watched object.

It receives watch events and the replies to the operator's writes, so a reconcile after a write sees it before the watch
does. An older version never replaces a newer one, and a late event does not restore a deleted object. `retain` removes
objects that a list lacks, whose deletion a lost watch did not report.

Objects are kept trimmed and packed, and found by the labels in INDEXED as well as by name: the cost of one experiment
does not depend on the number of others. Packed, a Job with its pod takes 2.5 KiB instead of 6; unpacking takes
microseconds, and callers may modify the returned object. Large objects, which result only from long texts of users, are
compressed as well: they are read rarely, and every user may store many.
"""

from __future__ import annotations

import marshal
import zlib
from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass

from wrpo_operator.api import names
from wrpo_operator.runtime.resources import (
    JsonObject,
    Resource,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
    version_of,
)
from wrpo_operator.runtime.trim import differs, trim

Key = tuple[str, str]
"""(namespace, name)"""
REMEMBERED_DELETIONS = 4096
LARGE_BYTES = 32 * 1024
INDEXED = (names.LABEL_EXPERIMENT_UID, names.LABEL_ARTIFACT_KEY, names.LABEL_SWEEP_UID)


@dataclass(frozen=True, slots=True)
class _Packed:
    """A packed object, and its most used fields."""

    uid: str
    version: int | None
    data: bytes
    """Encoded by `marshal`, the interpreter's format: fast and small, and no other process reads it."""
    is_compressed: bool

    @classmethod
    def of(cls, obj: JsonObject) -> _Packed:
        data = marshal.dumps(obj)
        is_large = len(data) >= LARGE_BYTES
        return cls(uid_of(obj), version_of(obj), zlib.compress(data, 1) if is_large else data, is_large)

    def unpack(self) -> JsonObject:
        data = zlib.decompress(self.data) if self.is_compressed else self.data
        obj: JsonObject = marshal.loads(data)  # noqa: S302  # bytes that this process made
        return obj


class ObjectStore:
    """Objects by resource, namespace and name. Not thread-safe: used from one event loop."""

    def __init__(self) -> None:
        self._objects: dict[Resource, dict[Key, _Packed]] = {}
        self._by_label: dict[tuple[Resource, str, str], dict[Key, None]] = {}
        """(resource, label, value) -> keys of the objects that carry it."""
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self.revision = 0
        """Counter of changes: equal revisions mean equal contents."""

    def upsert(self, resource: Resource, obj: JsonObject) -> bool:
        """Store `obj` unless a newer version is stored or it is known to be deleted; return whether it was stored."""
        if uid_of(obj) in self._deleted:
            return False
        key = _key(obj)
        known = self._objects.get(resource, {}).get(key)
        if known is not None and known.uid == uid_of(obj) and not _newer(obj, known):
            return False
        if known is not None and known.uid != uid_of(obj) and _older(obj, known):
            return False
        self._put(resource, key, trim(resource, obj), known)
        return True

    def delete(self, resource: Resource, obj: JsonObject) -> None:
        """Remove `obj` permanently: later events about the same uid are outdated."""
        uid = uid_of(obj)
        if uid:
            self._deleted[uid] = None
            if len(self._deleted) > REMEMBERED_DELETIONS:
                self._deleted.popitem(last=False)
        known = self._objects.get(resource, {}).get(_key(obj))
        if known is not None and (not uid or known.uid == uid):
            self._remove(resource, _key(obj), known)

    def retain(self, resource: Resource, listed: Container[Key], list_version: str) -> list[JsonObject]:
        """Remove the objects that a list lacks, and return them.

        An object that is newer than the list (written after it was created) is kept.
        """
        at = int(list_version) if list_version.isdecimal() else None
        gone = [
            known.unpack()
            for key, known in self._objects.get(resource, {}).items()
            if key not in listed and (at is None or known.version is None or known.version <= at)
        ]
        for obj in gone:
            self.delete(resource, obj)
        return gone

    def drop(self, resource: Resource) -> None:
        """Forget every object of a resource that is no longer served."""
        for key, known in list(self._objects.get(resource, {}).items()):
            self._remove(resource, key, known)

    def get(self, resource: Resource, namespace: str, name: str) -> JsonObject | None:
        """Return a copy of an object; None if it is not stored."""
        found = self._objects.get(resource, {}).get((namespace, name))
        return None if found is None else found.unpack()

    def keys(self, resource: Resource) -> list[Key]:
        """Return namespace and name of every object of a resource."""
        return list(self._objects.get(resource, {}))

    def items(self, resource: Resource, namespace: str | None = None) -> Iterator[JsonObject]:
        """Yield the objects of a resource, of one namespace or of all."""
        for (where, _), packed in list(self._objects.get(resource, {}).items()):
            if namespace is None or where == namespace:
                yield packed.unpack()

    def labelled(self, resource: Resource, label: str, value: str, namespace: str) -> Iterator[JsonObject]:
        """Yield a namespace's objects with a label, one of INDEXED, of this value."""
        objects = self._objects.get(resource, {})
        for key in list(self._by_label.get((resource, label, value), ())):
            if key[0] == namespace:
                yield objects[key].unpack()

    def versions(
        self, resource: Resource, label: str, value: str, namespace: str
    ) -> Iterator[tuple[Key, str, int | None]]:
        """Yield key, uid and version of a namespace's objects with an indexed label, without unpacking them."""
        objects = self._objects.get(resource, {})
        for key in list(self._by_label.get((resource, label, value), ())):
            if key[0] == namespace:
                yield key, objects[key].uid, objects[key].version

    def _put(self, resource: Resource, key: Key, obj: JsonObject, known: _Packed | None) -> None:
        before = None if known is None else known.unpack()
        if before is None or differs(before, obj):
            self.revision += 1
        if before is not None:
            self._unindex(resource, key, before)
        self._objects.setdefault(resource, {})[key] = _Packed.of(obj)
        for label, value in _indexed(obj):
            self._by_label.setdefault((resource, label, value), {})[key] = None

    def _remove(self, resource: Resource, key: Key, known: _Packed) -> None:
        self.revision += 1
        self._unindex(resource, key, known.unpack())
        del self._objects[resource][key]

    def _unindex(self, resource: Resource, key: Key, obj: JsonObject) -> None:
        for label, value in _indexed(obj):
            keys = self._by_label[resource, label, value]
            del keys[key]
            if not keys:
                del self._by_label[resource, label, value]


def _key(obj: JsonObject) -> Key:
    return namespace_of(obj), name_of(obj)


def _indexed(obj: JsonObject) -> list[tuple[str, str]]:
    labels = labels_of(obj)
    return [(label, labels[label]) for label in INDEXED if labels.get(label)]


def _newer(obj: JsonObject, known: _Packed) -> bool:
    new = version_of(obj)
    return new is None or known.version is None or new > known.version


def _older(obj: JsonObject, known: _Packed) -> bool:
    new = version_of(obj)
    return new is not None and known.version is not None and new < known.version
