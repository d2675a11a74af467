"""Sets of field paths as managedFields hold them (fieldsV1), with the algebra server-side apply needs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from wrpo_devcluster.client import JsonObject


@dataclass(slots=True)
class FieldSet:
    """Path elements (`f:name`, `k:{...}`, `v:...`, `i:0`) owned here, and sets below them."""

    members: set[str] = field(default_factory=set)
    children: dict[str, FieldSet] = field(default_factory=dict)

    @classmethod
    def parse(cls, fields: JsonObject) -> FieldSet:
        found = cls()
        for key, below in fields.items():
            if key == ".":
                continue
            if not below or "." in below:
                found.members.add(key)
            if below and (child := cls.parse(below)):
                found.children[key] = child
        return found

    def dump(self) -> JsonObject:
        out: JsonObject = {}
        for key in sorted(self.members | self.children.keys()):
            below = self.children.get(key)
            out[key] = below.dump() if below else {}
            if key in self.members and out[key]:
                out[key] = {".": {}, **out[key]}
        return out

    def __bool__(self) -> bool:
        return bool(self.members) or any(self.children.values())

    def copy(self) -> FieldSet:
        return FieldSet(set(self.members), {key: child.copy() for key, child in self.children.items()})

    def at(self, key: str) -> FieldSet:
        """Return the child set of one element, made when missing."""
        return self.children.setdefault(key, FieldSet())

    def below(self, key: str) -> FieldSet:
        return self.children.get(key, _EMPTY)

    def union(self, other: FieldSet) -> FieldSet:
        keys = self.children.keys() | other.children.keys()
        return FieldSet(
            self.members | other.members, _kept({key: self.below(key).union(other.below(key)) for key in keys})
        )

    def intersection(self, other: FieldSet) -> FieldSet:
        keys = self.children.keys() & other.children.keys()
        return FieldSet(
            self.members & other.members, _kept({key: self.below(key).intersection(other.below(key)) for key in keys})
        )

    def difference(self, other: FieldSet) -> FieldSet:
        """Paths of this set that are not in `other`; paths below those stay."""
        return FieldSet(
            self.members - other.members,
            _kept({key: child.difference(other.below(key)) for key, child in self.children.items()}),
        )

    def without_subtrees(self, other: FieldSet) -> FieldSet:
        """Difference that also drops everything below the paths of `other`."""
        return FieldSet(
            self.members - other.members,
            _kept(
                {
                    key: child.without_subtrees(other.below(key))
                    for key, child in self.children.items()
                    if key not in other.members
                }
            ),
        )

    def paths(self, prefix: str = "") -> list[str]:
        """Every path, written as conflicts show it: `.spec.sources[name="one"].model`."""
        found = [prefix + _shown(key) for key in sorted(self.members)]
        for key in sorted(self.children):
            found += self.children[key].paths(prefix + _shown(key))
        return found


_EMPTY = FieldSet()


def _kept(children: dict[str, FieldSet]) -> dict[str, FieldSet]:
    return {key: child for key, child in children.items() if child}


def _shown(key: str) -> str:
    kind, text = key.split(":", 1)
    if kind == "f":
        return f".{text}"
    if kind == "k":
        pairs = ",".join(f"{name}={_compact(value)}" for name, value in json.loads(text).items())
        return f"[{pairs}]"
    return f"[={text}]" if kind == "v" else f"[{text}]"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def key_element(keys: tuple[str, ...], item: JsonObject, defaults: dict[str, Any]) -> str:
    """Path element of an associative list's item."""
    pairs = {key: item.get(key, defaults.get(key)) for key in sorted(keys)}
    return "k:" + _compact({key: value for key, value in pairs.items() if value is not None})


def value_element(value: Any) -> str:
    """Path element of a set's item."""
    return "v:" + _compact(value)
