"""Indexes of one resource type: objects by the value of a label or a field."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from wrpo_devcluster.apiserver.storage.selectors import field_value, parse_fields, parse_labels
from wrpo_devcluster.client import JsonObject

Key = tuple[str, str]
"""(namespace, name)"""


@dataclass(frozen=True, slots=True)
class By:
    """Key of an index: a label or a field."""

    what: str
    """`label` or `field`."""
    name: str

    def value(self, obj: JsonObject) -> str | None:
        """Return the value that a selector compares; None for an object without the label."""
        if self.what == "field":
            return field_value(obj, self.name)
        return (obj["metadata"].get("labels") or {}).get(self.name)


@dataclass(frozen=True, slots=True)
class Equals:
    """Condition that an index can evaluate."""

    by: By
    value: str


class Indexes:
    """Indexes of every label and field by which a list has selected.

    Invariant: `find` returns exactly the keys of the objects that have the value, as reported to `changed`.
    """

    def __init__(self) -> None:
        self._keys: dict[By, dict[str | None, set[Key]]] = {}

    def __contains__(self, by: By) -> bool:
        return by in self._keys

    def build(self, by: By, objects: Collection[tuple[Key, JsonObject]]) -> None:
        """Start an index with all existing objects."""
        self._keys[by] = {}
        for key, obj in objects:
            self._keys[by].setdefault(by.value(obj), set()).add(key)

    def find(self, condition: Equals) -> Collection[Key]:
        """Return the keys of the objects that meet a condition; KeyError without an index, which `build` starts."""
        return self._keys[condition.by].get(condition.value, ())

    def changed(self, key: Key, before: JsonObject | None, after: JsonObject | None) -> None:
        """Note a write; None means no object."""
        for by, keys in self._keys.items():
            old, new = (None if obj is None else by.value(obj) for obj in (before, after))
            if before is not None and after is not None and old == new:
                continue
            if before is not None:
                keys[old].discard(key)
                if not keys[old]:
                    del keys[old]
            if after is not None:
                keys.setdefault(new, set()).add(key)


def indexed_condition(labels: str, fields: str, supported: frozenset[str]) -> Equals | None:
    """Return a condition that all selected objects meet; None if the selectors have none that an index evaluates."""
    for requirement in parse_labels(labels):
        if requirement.operator == "in" and len(requirement.values) == 1:
            return Equals(By("label", requirement.key), next(iter(requirement.values)))
    for path, value, equal in parse_fields(fields, supported):
        # There are as many names as objects, so an index is useless.
        if equal and path != "metadata.name":
            return Equals(By("field", path), value)
    return None
