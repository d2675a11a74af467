"""Structural validation of custom resources, with the Status causes of the real server."""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from typing import Any

from wrpo_devcluster.apiserver import typed
from wrpo_devcluster.apiserver.errors import (
    Cause,
    duplicate_field,
    invalid_field,
    required_field,
    unsupported_field,
)
from wrpo_devcluster.apiserver.schema import Node
from wrpo_devcluster.client import JsonObject

_BLOCKING = {
    "FieldValueNotSupported",
    "FieldValueRequired",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
}
NOT_CHECKED = Cause(
    "FieldValueInvalid",
    "<nil>",
    "Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing"
    " errors to complete validation",
)


def is_blocking(causes: list[Cause]) -> bool:
    """Would the server skip CEL rules after these faults?"""
    return any(cause.reason in _BLOCKING for cause in causes)


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def validate(raw: JsonObject, value: Any, path: str = "", old: Any = typed.ABSENT) -> list[Cause]:
    """Faults of `value` under an OpenAPI v3 schema.

    Ratcheting, as in the real server: what is as in `old`, the stored value, is accepted as it is.
    """
    if (value is None and raw.get("nullable")) or (old is not typed.ABSENT and typed.same(value, old)):
        return []
    causes = _check_type(raw, value, path)
    if "enum" in raw and not any(typed.same(value, choice) for choice in raw["enum"]):
        causes.append(unsupported_field(path, value, raw["enum"]))
    if isinstance(value, str):
        causes += _check_string(raw, value, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        causes += _check_number(raw, value, path)
    elif isinstance(value, list):
        causes += _check_list(raw, value, path)
    elif isinstance(value, dict):
        causes += _check_object(raw, value, path, old)
    return causes + _check_combinations(raw, value, path)


def _check_type(raw: JsonObject, value: Any, path: str) -> list[Cause]:
    found = _json_type(value)
    if raw.get("x-kubernetes-int-or-string"):
        if found in {"integer", "string"}:
            return []
        return [_wrong_type(path, "integer,string", found)]
    wanted = raw.get("type")
    if not wanted or wanted == found or (wanted == "number" and found == "integer"):
        return []
    causes = [_wrong_type(path, wanted, found)]
    if wanted == "integer" and found == "number":
        name = raw.get("format", "default")
        why = f"Checked value must be of type integer ({name} format) in {path}"
        causes.append(Cause("FieldValueInvalid", "<nil>", f'Invalid value: "": {why}'))
    return causes


def _wrong_type(path: str, wanted: str, found: str) -> Cause:
    text = f'Invalid value: "{found}": {path} in body must be of type {wanted}: "{found}"'
    return Cause("FieldValueTypeInvalid", path, text)


def _check_string(raw: JsonObject, value: str, path: str) -> list[Cause]:
    causes = []
    if "maxLength" in raw and len(value) > raw["maxLength"]:
        causes.append(Cause("FieldValueTooLong", path, f"Too long: may not be more than {raw['maxLength']} bytes"))
    if "minLength" in raw and len(value) < raw["minLength"]:
        why = f"{path} in body should be at least {raw['minLength']} chars long"
        causes.append(invalid_field(path, value, why))
    if "pattern" in raw and not _matches(raw["pattern"], value):
        causes.append(invalid_field(path, value, f"{path} in body should match '{raw['pattern']}'"))
    checker = _FORMATS.get(raw.get("format", ""))
    if checker is not None and not checker(value):
        name = raw["format"]
        causes.append(invalid_field(path, value, f'{path} in body must be of type {name}: "{value}"'))
    return causes


def go_pattern(pattern: str) -> str:
    """Return a Go regular expression in Python's dialect: `$` means the very end, and ASCII classes."""
    return re.sub(r"(?<!\\)\$(?=\)|$|\|)", r"\\Z", pattern).replace(r"\z", r"\Z")


def _matches(pattern: str, value: str) -> bool:
    try:
        return re.search(go_pattern(pattern), value, re.ASCII) is not None
    except re.error:
        return True


def _is_time(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None and "T" in value.upper()
    except ValueError:
        return False


def _is_date(value: str) -> bool:
    return re.fullmatch(r"\d{4}-\d{2}-\d{2}", value) is not None


def _is_ip(version: int) -> Any:
    def check(value: str) -> bool:
        try:
            return ipaddress.ip_address(value).version == version
        except ValueError:
            return False

    return check


_FORMATS = {
    "date-time": _is_time,
    "date": _is_date,
    "ipv4": _is_ip(4),
    "ipv6": _is_ip(6),
    "uuid": lambda value: re.fullmatch(r"(?i)[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", value) is not None,
    "uri": lambda value: re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", value) is not None,
    "email": lambda value: re.fullmatch(r"[^@\s]+@[^@\s]+", value) is not None,
    "byte": lambda value: re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", value) is not None and len(value) % 4 == 0,
    "duration": lambda value: re.fullmatch(r"[-+]?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h|d|w))+|0", value) is not None,
}  # fmt: skip


def _check_number(raw: JsonObject, value: float, path: str) -> list[Cause]:
    causes = []
    if "maximum" in raw:
        bound, open_end = raw["maximum"], raw.get("exclusiveMaximum")
        if value > bound or (open_end and value == bound):
            word = "less than" if open_end else "less than or equal to"
            causes.append(invalid_field(path, value, f"{path} in body should be {word} {bound}"))
    if "minimum" in raw:
        bound, open_end = raw["minimum"], raw.get("exclusiveMinimum")
        if value < bound or (open_end and value == bound):
            word = "greater than" if open_end else "greater than or equal to"
            causes.append(invalid_field(path, value, f"{path} in body should be {word} {bound}"))
    if raw.get("multipleOf") and (value / raw["multipleOf"]) % 1:
        causes.append(invalid_field(path, value, f"{path} in body should be a multiple of {raw['multipleOf']}"))
    bits = {"int32": 31, "int64": 63}.get(raw.get("format", ""))
    if bits is not None and not -(2**bits) <= value < 2**bits:
        causes.append(invalid_field(path, value, f"{path} in body must be of type {raw['format']}"))
    return causes


def _check_list(raw: JsonObject, value: list[Any], path: str) -> list[Cause]:
    causes = []
    if "minItems" in raw and len(value) < raw["minItems"]:
        causes.append(invalid_field(path, len(value), f"{path} in body should have at least {raw['minItems']} items"))
    if "maxItems" in raw and len(value) > raw["maxItems"]:
        text = f"Too many: {len(value)}: must have at most {raw['maxItems']} items"
        causes.append(Cause("FieldValueTooMany", path, text))
    if raw.get("uniqueItems") and any(value[i] in value[:i] for i in range(len(value))):
        causes.append(invalid_field(path, value, f"{path} in body shouldn't contain duplicates"))
    if isinstance(raw.get("items"), dict):
        for index, item in enumerate(value):
            causes += validate(raw["items"], item, f"{path}[{index}]")
    return causes


def _check_object(raw: JsonObject, value: JsonObject, path: str, old: Any) -> list[Cause]:
    causes = []
    before = old if isinstance(old, dict) else {}
    if "minProperties" in raw and len(value) < raw["minProperties"]:
        why = f"{path} in body should have at least {raw['minProperties']} properties"
        causes.append(invalid_field(path, len(value), why))
    if "maxProperties" in raw and len(value) > raw["maxProperties"]:
        text = f"Too many: {len(value)}: must have at most {raw['maxProperties']} items"
        causes.append(Cause("FieldValueTooMany", path, text))
    causes += [required_field(_join(path, name)) for name in raw.get("required", ()) if name not in value]
    properties = raw.get("properties", {})
    extra = raw.get("additionalProperties")
    for name, item in value.items():
        if name in properties:
            causes += validate(properties[name], item, _join(path, name), before.get(name, typed.ABSENT))
        elif isinstance(extra, dict):
            causes += validate(extra, item, _join(path, name), before.get(name, typed.ABSENT))
    return causes


def _check_combinations(raw: JsonObject, value: Any, path: str) -> list[Cause]:
    causes: list[Cause] = []
    for part in raw.get("allOf", ()):
        causes += validate(part, value, path)
    if "anyOf" in raw and not any(not validate(part, value, path) for part in raw["anyOf"]):
        causes.append(invalid_field(path, "", f"{path} in body must validate at least one schema (anyOf)"))
    if "oneOf" in raw:
        count = sum(not validate(part, value, path) for part in raw["oneOf"])
        if count != 1:
            why = f"{path} in body must validate one and only one schema (oneOf). Found {count or 'none'} valid"
            causes.append(invalid_field(path, "", why))
    if "not" in raw and not validate(raw["not"], value, path):
        causes.append(invalid_field(path, "", f"{path} in body must not validate the schema (not)"))
    return causes


def validate_lists(node: Node, value: Any, path: str = "", old: Any = typed.ABSENT) -> list[Cause]:
    """Duplicates in lists declared as sets or maps, but for lists that are as in `old`, the stored value."""
    causes: list[Cause] = []
    if old is not typed.ABSENT and typed.same(value, old):
        return causes
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, item in value.items():
            child = node.child(name)
            if child is not None and item is not None:
                causes += validate_lists(child, item, _join(path, name), before.get(name, typed.ABSENT))
    elif isinstance(value, list):
        seen: list[Any] = []
        for index, item in enumerate(value):
            if node.list_type == "map" and isinstance(item, dict):
                key: Any = {name: item[name] for name in node.list_keys if name in item}
            else:
                key = item
            if node.list_type in {"map", "set"}:
                if any(typed.same(key, other) for other in seen):
                    causes.append(duplicate_field(f"{path}[{index}]", key))
                seen.append(key)
            if node.items is not None:
                causes += validate_lists(node.items, item, f"{path}[{index}]")
    return causes
