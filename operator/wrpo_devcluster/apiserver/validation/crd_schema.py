"""Validation of a CRD's OpenAPI schema: structure, defaults, lists, maps and rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wrpo_devcluster.apiserver.apis.errors import (
    Cause,
    forbidden_field,
    invalid_field,
    required_field,
    unsupported_field,
)
from wrpo_devcluster.apiserver.schema import codec, schema
from wrpo_devcluster.apiserver.schema.serializer import Findings
from wrpo_devcluster.apiserver.validation import crd_rules, custom
from wrpo_devcluster.apiserver.values import go_regex
from wrpo_devcluster.client import JsonObject

TYPES = ("array", "boolean", "integer", "number", "object", "string")
_UNSUPPORTED = {
    "id": "id", "additionalItems": "additionalItems", "patternProperties": "patternProperties",
    "definitions": "definitions", "dependencies": "dependencies", "$ref": "$ref",
}  # fmt: skip
_NOT_STRUCTURAL = (
    "type", "additionalProperties", "default", "title", "description", "nullable", "externalDocs",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource", "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-map-type", schema.RULES,
)  # fmt: skip
"""Keywords that are forbidden below anyOf, oneOf, allOf and not."""
_INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]
_META = ("metadata", "apiVersion", "kind")
_EMPTY: tuple[Any, ...] = (None, "", False, [], {})


def validate(raw: JsonObject, path: str) -> list[Cause]:
    """Return every fault of a version's schema, in the order of the real server's checks."""
    causes = [forbidden_field(f"{path}.nullable", "nullable cannot be true at the root")] if raw.get("nullable") else []
    general = [cause for place in places(raw, path) for cause in _general(place)]
    causes += general
    if any(cause.field.endswith(tuple(f".{name}" for name in _UNSUPPORTED)) for cause in general):
        return causes  # Such a schema cannot even be read as a structural one.
    faults = _structural(raw, path, level="root") + _incomplete(raw, path) or list(_defaults(raw, path))
    if not general and not faults:
        # Rules can only be checked against a valid schema.
        faults = crd_rules.validate(raw, path)
    return causes + faults


class Place:
    """A schema within another: its place, and the consequences of the place."""

    def __init__(self, raw: JsonObject, path: str, *, is_root: bool = False, in_meta: bool = False) -> None:
        self.raw, self.path, self.is_root, self.in_meta = raw, path, is_root, in_meta
        self.no_default = ""
        """Why no default is allowed here; empty if one is."""


def places(raw: JsonObject, path: str) -> Iterator[Place]:
    """Yield a schema and all below it, alternatives included."""
    yield from _below(Place(raw, path, is_root=True))


def _below(place: Place) -> Iterator[Place]:
    yield place
    for child, at in children(place.raw, place.path):
        found = Place(child, at, in_meta=place.in_meta)
        name = at.rsplit("[", 1)[-1].rstrip("]") if at.startswith(f"{place.path}.properties[") else ""
        if name in _META and (place.is_root or place.raw.get("x-kubernetes-embedded-resource")):
            found.in_meta = True
        found.no_default = place.no_default or (f"in top-level {name}" if place.is_root and found.in_meta else "")
        if at == f"{place.path}.additionalProperties" and found.in_meta:
            found.no_default = "inside additionalProperties applying to object metadata"
        yield from _below(found)
    for name in ("allOf", "anyOf", "oneOf"):
        for index, part in enumerate(place.raw.get(name) or ()):
            yield from _below(Place(part, f"{place.path}.{name}[{index}]"))
    if isinstance(place.raw.get("not"), dict):
        yield from _below(Place(place.raw["not"], f"{place.path}.not"))


def children(raw: JsonObject, path: str) -> Iterator[tuple[JsonObject, str]]:
    """Yield the schemas of fields, items and values."""
    for name, child in (raw.get("properties") or {}).items():
        yield child, f"{path}.properties[{name}]"
    for name in ("items", "additionalProperties"):
        if isinstance(raw.get(name), dict):
            yield raw[name], f"{path}.{name}"


# First checks of the server


def _general(place: Place) -> list[Cause]:
    raw, path = place.raw, place.path
    causes = [
        forbidden_field(f"{path}.{name}", f"{shown} is not supported")
        for name, shown in _UNSUPPORTED.items()
        if raw.get(name) not in _EMPTY
    ]
    kind = raw.get("type") or ""
    if kind == "null":
        causes.append(forbidden_field(f"{path}.type", "type cannot be set to null, use nullable as an alternative"))
    if kind and kind not in TYPES:
        causes.append(unsupported_field(f"{path}.type", kind, TYPES))
    if isinstance(raw.get("items"), list):
        causes.append(forbidden_field(f"{path}.items", "items must be a schema object and not an array"))
    if place.no_default and raw.get("default") is not None:
        causes.append(forbidden_field(f"{path}.default", f"must not be set {place.no_default}"))
    if place.in_meta and raw.get("x-kubernetes-embedded-resource"):
        causes.append(
            forbidden_field(f"{path}.x-kubernetes-embedded-resource", "must not be used inside of resource meta")
        )
    if raw.get("uniqueItems"):
        why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        causes.append(forbidden_field(f"{path}.uniqueItems", why))
    if (
        raw.get("properties")
        and raw.get("additionalProperties") is not None
        and raw["additionalProperties"] is not True
    ):
        why = "additionalProperties and properties are mutual exclusive"
        causes.append(forbidden_field(f"{path}.additionalProperties", why))
    if raw.get("x-kubernetes-preserve-unknown-fields") is False:
        field = f"{path}.x-kubernetes-preserve-unknown-fields"
        causes.append(invalid_field(field, value=False, why="must be true or undefined"))
    return causes + _map_type(raw, path) + _list_type(raw, path) + crd_rules.form(raw, path)


def _needs_type(raw: JsonObject, path: str, wanted: str, keyword: str) -> list[Cause]:
    kind = raw.get("type") or ""
    if raw.get(keyword) is None or kind == wanted:
        return []
    why = f"must be {wanted} if {keyword} is specified"
    return [invalid_field(f"{path}.type", kind, why) if kind else required_field(f"{path}.type", why)]


def _map_type(raw: JsonObject, path: str) -> list[Cause]:
    causes = _needs_type(raw, path, "object", "x-kubernetes-map-type")
    kind = raw.get("x-kubernetes-map-type")
    if kind not in {None, "atomic", "granular"}:
        causes.append(unsupported_field(f"{path}.x-kubernetes-map-type", kind, ("atomic", "granular")))
    return causes


def _list_type(raw: JsonObject, path: str) -> list[Cause]:
    kind, keys = raw.get("x-kubernetes-list-type"), raw.get("x-kubernetes-list-map-keys") or []
    causes = _needs_type(raw, path, "array", "x-kubernetes-list-type")
    items = raw.get("items") if isinstance(raw.get("items"), dict) else None
    if kind == "set" and items is not None and not causes:
        causes += _set_items(items, f"{path}.items")
    if kind not in {None, "atomic", "set", "map"}:
        causes.append(unsupported_field(f"{path}.x-kubernetes-list-type", kind, ("atomic", "map", "set")))
    if keys and kind != "map":
        why, at = "must be map if x-kubernetes-list-map-keys is non-empty", f"{path}.x-kubernetes-list-type"
        causes.append(required_field(at, why) if kind is None else invalid_field(at, kind, why))
    if kind == "map":
        causes += _keys(items, keys, path)
    if kind in {"set", "map"} and items is not None and items.get("nullable"):
        causes.append(
            forbidden_field(f"{path}.items.nullable", f"cannot be nullable when x-kubernetes-list-type is {kind}")
        )
    return causes


def _set_items(items: JsonObject, path: str) -> list[Cause]:
    why = "must be atomic as item of a list with x-kubernetes-list-type=set"
    if items.get("type") == "array" and items.get("x-kubernetes-list-type") not in {None, "atomic"}:
        return [invalid_field(f"{path}.x-kubernetes-list-type", items["x-kubernetes-list-type"], why)]
    if items.get("type") == "object" and items.get("x-kubernetes-map-type") != "atomic":
        return [invalid_field(f"{path}.x-kubernetes-map-type", items.get("x-kubernetes-map-type"), why)]
    return []


def _keys(items: JsonObject | None, keys: list[str], path: str) -> list[Cause]:
    causes: list[Cause] = []
    at = f"{path}.x-kubernetes-list-map-keys"
    if not keys:
        causes.append(required_field(at, "must not be empty if x-kubernetes-list-type is map"))
    if items is None:
        return [*causes, required_field(f"{path}.items", "must have a schema if x-kubernetes-list-type is map")]
    if items.get("type") != "object":
        why = "must be object if parent array's x-kubernetes-list-type is map"
        return [*causes, invalid_field(f"{path}.items.type", items.get("type", ""), why)]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            causes.append(invalid_field(at, keys, "must not contain duplicate entries"))
        causes += _key(items, key, keys, path)
    return causes


def _key(items: JsonObject, key: str, keys: list[str], path: str) -> list[Cause]:
    found = (items.get("properties") or {}).get(key)
    if found is None:
        why = "entries must all be names of item properties"
        return [invalid_field(f"{path}.x-kubernetes-list-map-keys", keys, why)]
    at, causes = f"{path}.items.properties[{key}]", []
    if found.get("type") in {"array", "object"}:
        why = "must be a scalar type if parent array's x-kubernetes-list-type is map"
        causes.append(invalid_field(f"{at}.type", found["type"], why))
    told = "this property is in x-kubernetes-list-map-keys, so it"
    if key not in (items.get("required") or ()) and found.get("default") is None:
        causes.append(required_field(f"{at}.default", f"{told} must have a default or be a required property"))
    if found.get("nullable"):
        causes.append(forbidden_field(f"{at}.nullable", f"{told} cannot be nullable"))
    return causes


# Structural schemas


def _structural(raw: JsonObject, path: str, *, level: str) -> list[Cause]:
    causes: list[Cause] = []
    kind = raw.get("type") or ""
    if kind == "array" and not isinstance(raw.get("items"), dict):
        causes.append(required_field(f"{path}.items", "must be specified"))
    extra = raw.get("additionalProperties")
    if extra is not None:
        if level == "root":
            causes.append(forbidden_field(f"{path}.additionalProperties", "must not be used at the root"))
        if raw.get("x-kubernetes-embedded-resource"):
            why = "must not be used if x-kubernetes-embedded-resource is set"
            causes.append(forbidden_field(f"{path}.additionalProperties", why))
    causes += _extensions(raw, path) + _types(raw, path, kind, level) + _meta(raw, path, level)
    is_loose = raw.get("anyOf") == _INT_OR_STRING
    first = (raw.get("allOf") or [{}])[0].get("anyOf") == _INT_OR_STRING
    causes += _values(raw, path, loose=is_loose, loose_first=first)
    for child, at in children(raw, path):
        causes += _structural(child, at, level="item" if at == f"{path}.items" else "field")
    return causes


def _extensions(raw: JsonObject, path: str) -> list[Cause]:
    causes = []
    if raw.get("x-kubernetes-int-or-string"):
        for name in ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"):
            if raw.get(name):
                why = "must be false if x-kubernetes-int-or-string is true"
                causes.append(invalid_field(f"{path}.{name}", value=True, why=why))
    is_embedded = raw.get("x-kubernetes-embedded-resource")
    if is_embedded and not raw.get("x-kubernetes-preserve-unknown-fields") and not raw.get("properties"):
        why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"
        causes.append(required_field(f"{path}.properties", why))
    return causes


def _types(raw: JsonObject, path: str, kind: str, level: str) -> list[Cause]:
    if raw.get("x-kubernetes-embedded-resource") and kind != "object":
        why = "must be object if x-kubernetes-embedded-resource is true"
        return [invalid_field(f"{path}.type", kind, why) if kind else required_field(f"{path}.type", why)]
    if not kind and not raw.get("x-kubernetes-int-or-string") and not raw.get("x-kubernetes-preserve-unknown-fields"):
        where = {"root": "at the root", "item": "for specified array items", "field": "for specified object fields"}
        return [required_field(f"{path}.type", f"must not be empty {where[level]}")]
    if level == "root" and kind and kind != "object":
        return [invalid_field(f"{path}.type", kind, "must be object at the root")]
    return []


def _meta(raw: JsonObject, path: str, level: str) -> list[Cause]:
    if level != "root" and not raw.get("x-kubernetes-embedded-resource"):
        return []
    causes = []
    for name, wanted in (("kind", "string"), ("apiVersion", "string"), ("metadata", "object")):
        found = (raw.get("properties") or {}).get(name)
        if found is not None and found.get("type") != wanted:
            causes.append(invalid_field(f"{path}.properties[{name}].type", found.get("type", ""), f"must be {wanted}"))
    meta = (raw.get("properties") or {}).get("metadata")
    if level == "root" and meta is not None:
        rest = {key for key, value in meta.items() if value not in _EMPTY} - {"type", "properties"}
        if rest or set(meta.get("properties") or ()) - {"name", "generateName"}:
            why = "must not specify anything other than name and generateName, but metadata is implicitly specified"
            causes.append(forbidden_field(f"{path}.properties[metadata]", why))
    return causes


def _values(raw: JsonObject, path: str, *, loose: bool = False, loose_first: bool = False) -> list[Cause]:
    """Return the faults of restrictions of values. `loose`: anyOf is the one that int-or-string may have."""
    causes: list[Cause] = []
    for name in ("anyOf", "allOf", "oneOf"):
        for index, part in enumerate(raw.get(name) or ()):
            if name == "anyOf" and loose:
                continue
            is_loose = name == "allOf" and index == 0 and loose_first
            causes += _nested(part, f"{path}.{name}[{index}]", loose=is_loose)
    if isinstance(raw.get("not"), dict):
        causes += _nested(raw["not"], f"{path}.not")
    if raw.get("pattern"):
        try:
            go_regex.compile_pattern(raw["pattern"])
        except go_regex.PatternError as problem:
            why = f"must be a valid regular expression, but isn't: {problem}"
            causes.append(invalid_field(f"{path}.pattern", raw["pattern"], why))
    return causes


def _nested(raw: JsonObject, path: str, *, loose: bool = False) -> list[Cause]:
    causes = _values(raw, path, loose=loose)
    for name in _NOT_STRUCTURAL:
        if raw.get(name) not in _EMPTY:
            word = "undefined" if name in {"additionalProperties", "default", "externalDocs"} else "empty"
            causes.append(forbidden_field(f"{path}.{name}", f"must be {word} to be structural"))
    if isinstance(raw.get("items"), dict):
        causes += _nested(raw["items"], f"{path}.items")
    for name, child in (raw.get("properties") or {}).items():
        causes += _nested(child, f"{path}.properties[{name}]")
    if "metadata" in (raw.get("properties") or {}):
        at = f"{path}.properties[metadata]"
        causes.append(forbidden_field(at, "must not be specified in a nested context"))
    return causes


def _incomplete(raw: JsonObject, path: str) -> list[Cause]:
    """Return the fields and items that only an alternative declares."""
    causes = _undeclared(raw, raw, path, path)
    for child, at in children(raw, path):
        causes += _incomplete(child, at)
    return causes


def _undeclared(value: JsonObject, raw: JsonObject | None, path: str, at: str) -> list[Cause]:
    if raw is None:
        return [required_field(path, f"because it is defined in {at}")]
    causes: list[Cause] = []
    parts = [
        (part, f"{at}.{name}[{index}]")
        for name in ("allOf", "anyOf", "oneOf")
        for index, part in enumerate(value.get(name) or ())
    ]
    if isinstance(value.get("not"), dict):
        parts.append((value["not"], f"{at}.not"))
    for part, where in parts:
        causes += _undeclared(part, raw, path, where)
        if isinstance(part.get("items"), dict):
            items = raw.get("items") if isinstance(raw.get("items"), dict) else None
            causes += _undeclared(part["items"], items, f"{path}.items", f"{where}.items")
        for name, child in (part.get("properties") or {}).items():
            declared = (raw.get("properties") or {}).get(name)
            causes += _undeclared(child, declared, f"{path}.properties[{name}]", f"{where}.properties[{name}]")
    return causes


# Defaults


def _defaults(raw: JsonObject, path: str) -> Iterator[Cause]:
    """Yield the faults of defaults. The real server does not check those below additionalProperties."""
    default = raw.get("default")
    if default is not None:
        yield from default_faults(raw, default, f"{path}.default")
    for child, at in children(raw, path):
        if at != f"{path}.additionalProperties":
            yield from _defaults(child, at)


def default_faults(raw: JsonObject, default: Any, path: str) -> list[Cause]:
    """Return the faults of a default under its schema: what would be pruned, and what does not validate."""
    node, findings = schema.structural(raw), Findings()
    codec.prune(node, codec.copy_json(default), findings)
    causes = [invalid_field(path, default, "must not have unknown fields")] if findings.unknown else []
    for fault in custom.validate(raw, default):
        below = "" if fault.field in {"", custom.NOWHERE} else fault.field.lstrip(".")
        dot = "" if not below or below.startswith("[") else "."
        causes.append(Cause(fault.reason, f"{path}{dot}{below}", fault.message))
    return causes
