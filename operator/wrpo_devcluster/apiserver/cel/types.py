"""Types of CEL expressions, and declarations from structural schemas: types, sizes, names of fields."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from wrpo_devcluster.apiserver.cel.syntax import KEYWORDS, RESERVED
from wrpo_devcluster.client import JsonObject

MAX_REQUEST_BYTES = 3 * 1024 * 1024
"""Largest request that a server accepts, in bytes. It bounds sizes that no schema bounds."""
_STRING_BYTES, _NUMBER_BYTES, _BOOL_BYTES = 2, 1, 4
_SIZES = {"duration": (3, 32), "date": (12, 12), "date-time": (21, 32)}
"""Format -> least and greatest length as JSON."""
_UNSUPPORTED = re.compile(r"[^a-zA-Z0-9./_-]")
_ESCAPED = re.compile(r"__|[-./]")
_ESCAPES = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}


@dataclass(frozen=True, slots=True)
class Type:
    """A type. Two object types are the same if they come from the same place of a schema."""

    name: str
    params: tuple[Type, ...] = ()
    decl: Decl | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.params))})" if self.params else self.name


@dataclass(slots=True, eq=False)
class Decl:
    """Declaration of one place of a schema for rules."""

    type: Type
    min_size: int
    """Least bytes of a value as JSON."""
    max_elements: int = 0
    """Most characters, items or keys; 0 for scalars and objects, as in the real server."""
    fields: dict[str, Decl] | None = None
    """Fields of an object by escaped name."""
    names: dict[str, str] = field(default_factory=dict)
    """Escaped name -> name in the schema."""
    key: Decl | None = None
    elem: Decl | None = None
    list_type: str = ""
    list_keys: tuple[str, ...] = ()


def field_of(decl: Decl, name: str) -> str | None:
    """Return the escaped name of a rule's field `name`. A reserved word need not be escaped after a dot."""
    if decl.fields is None:
        return None
    return next(
        (one for one in (name, f"__{name}__") if one in decl.fields and (one == name or name in RESERVED)), None
    )


BOOL, INT, UINT, DOUBLE, STRING, BYTES, NULL, DYN, TIMESTAMP, DURATION = (
    Type(name)
    for name in ("bool", "int", "uint", "double", "string", "bytes", "null_type", "dyn", "timestamp", "duration")
)


def list_of(item: Type) -> Type:
    """Return the type of lists of such items."""
    return Type("list", (item,))


def map_of(key: Type, value: Type) -> Type:
    """Return the type of maps with such keys and values."""
    return Type("map", (key, value))


def optional_of(value: Type) -> Type:
    """Return the type of such values that may be absent."""
    return Type("optional_type", (value,))


@lru_cache(maxsize=4096)
def escape(name: str) -> str | None:
    """Return the name of a property in rules; None if rules cannot reach it."""
    if not name or name[0].isdigit() or _UNSUPPORTED.search(name):
        return None
    if name in RESERVED or name in KEYWORDS:
        return f"__{name}__"
    return _ESCAPED.sub(lambda match: _ESCAPES[match.group()], name)


def declare(raw: JsonObject, *, is_root: bool = False) -> Decl | None:
    """Return the declaration of a structural schema; None if rules cannot see it."""
    if raw.get("x-kubernetes-int-or-string"):
        most = raw["maxLength"] * 4 if "maxLength" in raw else MAX_REQUEST_BYTES - 2
        return Decl(DYN, 1, max(0, most))
    match raw.get("type"):
        case "array":
            return _array(raw)
        case "object":
            return _object(raw, is_root=is_root)
        case "string":
            return _string(raw)
        case "boolean":
            return Decl(BOOL, _BOOL_BYTES)
        case "number":
            return Decl(DOUBLE, _NUMBER_BYTES)
        case "integer":
            return Decl(INT, _NUMBER_BYTES)
        case _:
            return None


def _child(raw: JsonObject) -> Decl | None:
    return declare(raw, is_root=bool(raw.get("x-kubernetes-embedded-resource")))


def _array(raw: JsonObject) -> Decl | None:
    items = raw.get("items")
    elem = _child(items) if isinstance(items, dict) else None
    if elem is None:
        return None
    most = raw.get("maxItems", (MAX_REQUEST_BYTES - 2) // (elem.min_size + 1))
    return Decl(
        list_of(elem.type),
        2,
        max(0, most),
        elem=elem,
        list_type=raw.get("x-kubernetes-list-type", ""),
        list_keys=tuple(raw.get("x-kubernetes-list-map-keys") or ()),
    )


def _object(raw: JsonObject, *, is_root: bool) -> Decl | None:
    extra = raw.get("additionalProperties")
    if isinstance(extra, dict):
        elem = _child(extra)
        if elem is None:
            return None
        most = raw.get("maxProperties", (MAX_REQUEST_BYTES - 2) // (elem.min_size + 6))
        return Decl(map_of(STRING, elem.type), 2, max(0, most), key=Decl(STRING, _STRING_BYTES), elem=elem)
    properties = {**(raw.get("properties") or {}), **(_type_meta() if is_root else {})}
    found = Decl(DYN, 2, fields={})
    found.type = Type("object", decl=found)
    required = set(raw.get("required") or ())
    for name, schema in properties.items():
        decl, escaped = _child(schema), escape(name)
        if decl is None:
            continue
        if escaped is not None and found.fields is not None:
            found.fields[escaped] = decl
            found.names[escaped] = name
        if name in required and schema.get("default") is None:
            found.min_size += len(name) + decl.min_size + 4
    return found


def _type_meta() -> JsonObject:
    text = {"type": "string"}
    names = {"type": "object", "properties": {"name": text, "generateName": text}}
    return {"kind": text, "apiVersion": text, "metadata": names}


def _string(raw: JsonObject) -> Decl:
    form = raw.get("format", "")
    if form in _SIZES:
        least, most = _SIZES[form]
        return Decl(DURATION if form == "duration" else TIMESTAMP, least, most)
    if form == "byte":
        return Decl(BYTES, _STRING_BYTES, max(0, raw.get("maxLength", MAX_REQUEST_BYTES - 2)))
    if "maxLength" in raw:
        return Decl(STRING, _STRING_BYTES, max(0, raw["maxLength"]) * 4)
    if raw.get("enum"):
        longest = max((len(value.encode()) for value in raw["enum"] if isinstance(value, str)), default=0)
        return Decl(STRING, _STRING_BYTES, longest)
    return Decl(STRING, _STRING_BYTES, MAX_REQUEST_BYTES - 2)


def cardinality(decl: Decl) -> int:
    """Return how many values of a size one request can hold."""
    return MAX_REQUEST_BYTES // (decl.min_size + 1)
