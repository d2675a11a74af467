"""The operator's picture of the cluster: the newest version seen of every object it watches.

Watch events and the answers to the operator's own writes both land here, so a reconcile that follows a write sees
it even before the watch does. An older version never replaces a newer one, and a deleted object does not come back
by a late event. `replace` makes the picture equal to a list, which also removes what a lost watch forgot to delete.

Objects are kept trimmed, and found by the labels in INDEXED as well as by name: what one experiment needs costs the
same however many others there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

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
from wrpo_operator.runtime.trim import compact, differs, trim

Key = tuple[str, str]
"""(namespace, name)"""
REMEMBERED_DELETIONS = 4096
INDEXED = (names.LABEL_EXPERIMENT_UID, names.LABEL_ARTIFACT_KEY)


class ObjectStore:
    """Objects by resource, namespace and name. Not thread-safe: used from one event loop."""

    def __init__(self) -> None:
        self._objects: dict[Resource, dict[Key, JsonObject]] = {}
        self._by_label: dict[tuple[Resource, str, str], dict[Key, None]] = {}
        """(resource, label, value) -> keys of the objects that carry it."""
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self.revision = 0
        """Counts changes: equal revisions mean equal pictures."""

    def upsert(self, resource: Resource, obj: JsonObject) -> bool:
        """Keep `obj` unless a newer version of it is here or it is known to be deleted; return whether it was kept."""
        if uid_of(obj) in self._deleted:
            return False
        key = _key(obj)
        known = self._objects.get(resource, {}).get(key)
        if known is not None and uid_of(known) == uid_of(obj) and not _newer(obj, known):
            return False
        if known is not None and uid_of(known) != uid_of(obj) and _older(obj, known):
            return False
        self._put(resource, key, compact(trim(resource, obj)), known)
        return True

    def delete(self, resource: Resource, obj: JsonObject) -> None:
        """Forget `obj` for good: later events about the same uid are late ones."""
        uid = uid_of(obj)
        if uid:
            self._deleted[uid] = None
            if len(self._deleted) > REMEMBERED_DELETIONS:
                self._deleted.popitem(last=False)
        known = self._objects.get(resource, {}).get(_key(obj))
        if known is not None and (not uid or uid_of(known) == uid):
            self._remove(resource, _key(obj), known)

    def replace(self, resource: Resource, items: Iterable[JsonObject], list_version: str) -> list[JsonObject]:
        """Make the picture of one resource equal to a list; return every object that was stale, missing or gone.

        An object that is newer than the list (it was written after the list was made) stays.
        """
        listed = {_key(item): item for item in items}
        changed = [item for item in listed.values() if self.upsert(resource, item)]
        at = int(list_version) if list_version.isdecimal() else None
        for key, known in list(self._objects.get(resource, {}).items()):
            version = version_of(known)
            if key not in listed and (at is None or version is None or version <= at):
                self.delete(resource, known)
                changed.append(known)
        return changed

    def keep(self, resource: Resource, obj: JsonObject) -> JsonObject:
        """Return what to hold of a listed object: the very object that is here where it is of the same version."""
        known = self.get(resource, namespace_of(obj), name_of(obj))
        if known is not None and uid_of(known) == uid_of(obj) and version_of(known) == version_of(obj) is not None:
            return known
        kept: JsonObject = compact(trim(resource, obj))
        return kept

    def drop(self, resource: Resource) -> None:
        """Forget every object of a resource that is no longer served."""
        for key, known in list(self._objects.get(resource, {}).items()):
            self._remove(resource, key, known)

    def get(self, resource: Resource, namespace: str, name: str) -> JsonObject | None:
        return self._objects.get(resource, {}).get((namespace, name))

    def items(self, resource: Resource, namespace: str | None = None) -> Iterator[JsonObject]:
        """Yield the objects of a resource, of one namespace or of all."""
        for (where, _), obj in list(self._objects.get(resource, {}).items()):
            if namespace is None or where == namespace:
                yield obj

    def labelled(self, resource: Resource, label: str, value: str, namespace: str) -> Iterator[JsonObject]:
        """Yield a namespace's objects with a label, one of INDEXED, of this value."""
        objects = self._objects.get(resource, {})
        for key in list(self._by_label.get((resource, label, value), ())):
            if key[0] == namespace:
                yield objects[key]

    def _put(self, resource: Resource, key: Key, obj: JsonObject, known: JsonObject | None) -> None:
        if differs(known, obj):
            self.revision += 1
        if known is not None:
            self._unindex(resource, key, known)
        self._objects.setdefault(resource, {})[key] = obj
        for label, value in _indexed(obj):
            self._by_label.setdefault((resource, label, value), {})[key] = None

    def _remove(self, resource: Resource, key: Key, known: JsonObject) -> None:
        self.revision += 1
        self._unindex(resource, key, known)
        del self._objects[resource][key]

    def _unindex(self, resource: Resource, key: Key, known: JsonObject) -> None:
        for label, value in _indexed(known):
            keys = self._by_label[resource, label, value]
            del keys[key]
            if not keys:
                del self._by_label[resource, label, value]


def _key(obj: JsonObject) -> Key:
    return namespace_of(obj), name_of(obj)


def _indexed(obj: JsonObject) -> list[tuple[str, str]]:
    labels = labels_of(obj)
    return [(label, labels[label]) for label in INDEXED if labels.get(label)]


def _newer(obj: JsonObject, known: JsonObject) -> bool:
    new, old = version_of(obj), version_of(known)
    return new is None or old is None or new > old


def _older(obj: JsonObject, known: JsonObject) -> bool:
    new, old = version_of(obj), version_of(known)
    return new is not None and old is not None and new < old
