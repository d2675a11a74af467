"""Sets of field paths as managedFields hold them (fieldsV1), with the algebra server-side apply needs."""

from __future__ import annotations

import json
from typing import Any

from wrpo_devcluster.client import JsonObject

_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


class FieldSet:
    """Path elements (`f:name`, `k:{...}`, `v:...`, `i:0`) owned here, and sets below them.

    Results of the algebra may share their children with its operands: a set that is built is not changed any more.
    No child set of a built one is empty, so that emptiness shows without a search of the children.
    """

    __slots__ = ("children", "members")

    def __init__(self, members: set[str] | None = None, children: dict[str, FieldSet] | None = None) -> None:
        # Created in great numbers: a dataclass with default factories takes twice as long.
        self.members: set[str] = set() if members is None else members
        self.children: dict[str, FieldSet] = {} if children is None else children

    @classmethod
    def parse(cls, fields: JsonObject) -> FieldSet:
        """Return the set that a fieldsV1 describes."""
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
        """Return the set as fieldsV1, in the server's order."""
        out: JsonObject = {}
        for key in sorted(self.members | self.children.keys()):
            below = self.children.get(key)
            out[key] = below.dump() if below else {}
            if key in self.members and out[key]:
                out[key] = {".": {}, **out[key]}
        return out

    def __bool__(self) -> bool:
        return bool(self.members or self.children)

    def at(self, key: str) -> FieldSet:
        """Return the child set of one element, created if missing."""
        return self.children.setdefault(key, FieldSet())

    def union(self, other: FieldSet) -> FieldSet:
        """Return the paths of either set."""
        children = {**self.children, **other.children}
        for key in self.children.keys() & other.children.keys():
            children[key] = self.children[key].union(other.children[key])
        return FieldSet(self.members | other.members, children)

    def intersection(self, other: FieldSet) -> FieldSet:
        """Return the paths of both sets."""
        keys = self.children.keys() & other.children.keys()
        return FieldSet(
            self.members & other.members,
            _kept({key: self.children[key].intersection(other.children[key]) for key in keys}),
        )

    def difference(self, other: FieldSet) -> FieldSet:
        """Return the paths of this set that are not in `other`. Paths below those stay."""
        children = dict(self.children)
        for key in self.children.keys() & other.children.keys():
            children[key] = self.children[key].difference(other.children[key])
        return FieldSet(self.members - other.members, _kept(children))

    def paths(self, prefix: str = "") -> list[str]:
        """Return every path, in the form of conflict messages: `.spec.sources[name="one"].model`."""
        found = [prefix + _shown(key) for key in sorted(self.members)]
        for key in sorted(self.children):
            found += self.children[key].paths(prefix + _shown(key))
        return found


def _kept(children: dict[str, FieldSet]) -> dict[str, FieldSet]:
    return {key: child for key, child in children.items() if child}


def names_any(owned: JsonObject, fields: FieldSet) -> bool:
    """Return whether a fieldsV1 names any path of `fields`, so that their intersection is not empty."""
    for key in fields.members:
        if key in owned and (not owned[key] or "." in owned[key]):
            return True
    return any(key in owned and names_any(owned[key], child) for key, child in fields.children.items())


def names_all(owned: JsonObject, fields: FieldSet) -> bool:
    """Return whether a fieldsV1 names every path of `fields`."""
    for key in fields.members:
        if key not in owned or (owned[key] and "." not in owned[key]):
            return False
    return all(key in owned and names_all(owned[key], child) for key, child in fields.children.items())


def _shown(key: str) -> str:
    kind, text = key.split(":", 1)
    if kind == "f":
        return f".{text}"
    if kind == "k":
        pairs = ",".join(f"{name}={_compact(value)}" for name, value in json.loads(text).items())
        return f"[{pairs}]"
    return f"[={text}]" if kind == "v" else f"[{text}]"


def _compact(value: Any) -> str:
    return _JSON.encode(value)


def key_element(keys: tuple[str, ...], item: JsonObject, defaults: dict[str, Any]) -> str:
    """Return the path element of an associative list's item."""
    pairs = {key: item.get(key, defaults.get(key)) for key in sorted(keys)}
    return "k:" + _compact({key: value for key, value in pairs.items() if value is not None})


def value_element(value: Any) -> str:
    """Return the path element of a set's item."""
    return "v:" + _compact(value)
