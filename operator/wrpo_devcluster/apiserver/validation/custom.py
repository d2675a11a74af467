"""Structural validation of custom resources, with the results and Status causes of the real server.

As there, an integer is compared with the integer part of a bound, a float with the bound itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from wrpo_devcluster.apiserver.apis.errors import (
    Cause,
    duplicate_field,
    invalid_field,
    required_field,
    unsupported_field,
)
from wrpo_devcluster.apiserver.schema import typed
from wrpo_devcluster.apiserver.schema.schema import DEDUCED, Node
from wrpo_devcluster.apiserver.values import formats, go_regex
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
NOWHERE = "<nil>"
"""Field of a fault that the server assigns to no specific field."""
_COMBINATIONS = frozenset({"anyOf", "oneOf", "allOf", "not"})
_LARGEST_EXACT = 2**53 - 1
_INT64 = (-(2**63), 2**63)
_FLOAT32_MOST = 3.4028235677973366e38


def is_blocking(causes: list[Cause]) -> bool:
    """Return whether the server skips CEL rules after these faults."""
    return any(cause.reason in _BLOCKING for cause in causes)


@dataclass(slots=True)
class _Result:
    """Faults, and the number of passed checks, which selects the alternative whose faults are reported."""

    causes: list[Cause] = field(default_factory=list)
    passed: int = 0

    def merge(self, other: _Result) -> None:
        self.causes += other.causes
        self.passed += other.passed


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def go_float(value: float) -> str:
    """Format a number as Go does: `1e+09`, `0.5`."""
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    place = len(digits) + int(exponent) - 1
    if value != 0 and not -4 <= place < 6:
        mantissa = f"{digits[0]}{'.' * (len(digits) > 1)}{''.join(map(str, digits[1:]))}"
        return f"{'-' * (value < 0)}{mantissa}e{'+' if place >= 0 else '-'}{abs(place):02}"
    return str(int(value)) if value == int(value) else repr(value)


def validate(raw: JsonObject, value: Any, path: str = "", old: Any = typed.ABSENT) -> list[Cause]:
    """Return the faults of `value` under an OpenAPI v3 schema.

    Ratcheting, as in the real server: what equals `old`, the stored value, is accepted.
    """
    return _judge(raw, value, path, old).causes


def _judge(raw: JsonObject, value: Any, path: str, old: Any = typed.ABSENT) -> _Result:
    found = _Result()
    if old is not typed.ABSENT and typed.same(value, old):
        return found
    if raw.get("type") or raw.get("format") or raw.get("x-kubernetes-int-or-string"):
        found.merge(_check_type(raw, value, path))
    if value is not None:
        found.passed += 1
        if not raw.keys().isdisjoint(_COMBINATIONS):
            found.merge(_check_combinations(raw, value, path))
        if isinstance(value, str):
            found.causes += _check_string(raw, value, path)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.merge(_Result(check_number(raw, value, path), 1))
        elif isinstance(value, list):
            found.merge(_check_list(raw, value, path))
        elif isinstance(value, dict):
            found.merge(_check_object(raw, value, path, old))
    if raw.get("enum") and not any(_is_choice(value, choice) for choice in raw["enum"]):
        found.causes.append(unsupported_field(path, value, raw["enum"]))
    return found


def _is_choice(value: Any, choice: Any) -> bool:
    """Return whether a value is among the choices. Go converts a number to the type of the choice and compares then."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or choice is None:
        return False
    if is_number and isinstance(choice, int) and not isinstance(choice, bool):
        return int(value) == choice
    if is_number and isinstance(choice, float):
        return float(value) == choice
    return type(value) is type(choice) and typed.same(value, choice)


def _is_integral(value: float) -> bool:
    """Return whether a number is an integer within the precision of a double."""
    if not math.isfinite(value) or abs(value) > _LARGEST_EXACT:
        return False
    whole = math.trunc(value)
    if value == whole:
        return True
    return whole != 0 and abs(value - whole) / (abs(value) + abs(whole)) < 1e-9


def _check_type(raw: JsonObject, value: Any, path: str) -> _Result:
    found = _json_type(value)
    wanted = raw.get("type") or ""
    if raw.get("x-kubernetes-int-or-string"):
        if found in {"integer", "string"} or (found == "null" and raw.get("nullable")):
            return _Result(passed=1)
        is_whole = isinstance(value, float) and _is_integral(value)
        return _Result(passed=1) if is_whole else _Result([_wrong_type(path, "integer,string", found)])
    if value is None:
        return _Result(passed=1) if not wanted or raw.get("nullable") else _Result([_wrong_type(path, wanted, found)])
    form = formats.effective(wanted, raw["format"]) if "format" in raw else ""
    if form and wanted not in {"integer", "number"} and found in {"string", "array"}:
        return _Result(passed=1)
    is_fitting = wanted == found or (wanted == "number" and found == "integer")
    if not wanted or is_fitting or (wanted == "integer" and isinstance(value, float) and _is_integral(value)):
        return _Result(passed=1)
    return _Result([_wrong_type(path, form or wanted, found)])


def _wrong_type(path: str, wanted: str, found: str) -> Cause:
    text = f'Invalid value: "{found}": {path} in body must be of type {wanted}: "{found}"'
    return Cause("FieldValueTypeInvalid", path, text)


def _check_string(raw: JsonObject, value: str, path: str) -> list[Cause]:
    causes = []
    if "maxLength" in raw and len(value) > raw["maxLength"]:
        why = f"may not be more than {raw['maxLength']} bytes" if raw["maxLength"] >= 0 else "value is too long"
        causes.append(Cause("FieldValueTooLong", path, f"Too long: {why}"))
    elif "minLength" in raw and len(value) < raw["minLength"]:
        why = f"{path} in body should be at least {raw['minLength']} chars long"
        causes.append(invalid_field(path, value, why))
    elif raw.get("pattern") and not go_regex.matches(raw["pattern"], value):
        causes.append(invalid_field(path, value, f"{path} in body should match '{raw['pattern']}'"))
    name = formats.effective(raw.get("type", ""), raw["format"]) if "format" in raw else ""
    if name and not formats.fits(name, value):
        causes.append(_wrong_type(path, name, value))
    return causes


# Numbers


def _has_range(raw: JsonObject, number: float) -> bool:
    """Return whether a number fits the type and format of a schema."""
    kind = raw.get("type", "")
    name = formats.effective(kind, raw.get("format", ""))
    if kind == "integer":
        least, most = (-(2**31), 2**31) if name == "int32" else _INT64
        return number == int(number) and least <= number < most
    return name != "float" or abs(number) <= _FLOAT32_MOST


def _out_of_range(raw: JsonObject, what: str, path: str) -> Cause:
    name = formats.effective(raw.get("type", ""), raw.get("format", ""))
    form = f"with format {name}" if name else "(default format)"
    text = f'Invalid value: "": {what} value must be of type {raw.get("type", "")} {form} in {path}'
    return Cause("FieldValueInvalid", NOWHERE, text)


def _as_int64(number: float) -> int:
    """Convert as Go does: towards zero. A number out of range becomes the least integer."""
    whole = int(number)
    return whole if _INT64[0] <= whole < _INT64[1] else _INT64[0]


def _shown(path: str, value: float, why: str) -> Cause:
    return Cause("FieldValueInvalid", path, f"Invalid value: {go_float(value)}: {path} in body should be {why}")


def check_number(raw: JsonObject, value: float, path: str) -> list[Cause]:
    """Return the faults of a number under its schema's bounds.

    Invariant: an integer is compared with the integer parts of the bounds, unless the schema's type is `integer` and a
    bound is no such integer; a float is compared with the bounds themselves.
    """
    if isinstance(value, int) and not _INT64[0] <= value < _INT64[1]:
        value = float(value)
    causes = [] if _has_range(raw, value) else [_out_of_range(raw, "Checked", path)]
    causes += _check_factor(raw, value, path)
    for bound, exclusive, sign, words in (
        ("maximum", "exclusiveMaximum", 1, "less than"),
        ("minimum", "exclusiveMinimum", -1, "greater than"),
    ):
        if bound in raw:
            limit = _limit(raw, value, float(raw[bound]))
            if not _has_range(raw, float(raw[bound])):
                causes.append(_out_of_range(raw, f"{bound.capitalize()} boundary", path))
            is_open = bool(raw.get(exclusive))
            if (value - limit) * sign > 0 or (is_open and value == limit):
                causes.append(_shown(path, value, f"{words}{'' if is_open else ' or equal to'} {go_float(limit)}"))
    return causes


def _limit(raw: JsonObject, value: float, bound: float) -> float:
    """Return the limit with which a value is compared."""
    return _as_int64(bound) if isinstance(value, int) and _has_range(raw, bound) else bound


def _check_factor(raw: JsonObject, value: float, path: str) -> list[Cause]:
    if "multipleOf" not in raw:
        return []
    factor = float(raw["multipleOf"])
    causes = [] if _has_range(raw, factor) else [_out_of_range(raw, "MultipleOf", path)]
    limit = _limit(raw, value, factor)
    if limit <= 0:
        why = f"Invalid value: {go_float(limit)}: factor MultipleOf declared for {path} must be positive"
        return [*causes, Cause("FieldValueInvalid", path, f"{why}: {go_float(limit)}")]
    if isinstance(limit, int):
        is_multiple = value % limit == 0
    else:
        is_multiple = _is_integral(1 / limit * value if limit < 1 else value / limit)
    return causes if is_multiple else [*causes, _shown(path, value, f"a multiple of {go_float(limit)}")]


# Lists, objects and combinations


def _check_list(raw: JsonObject, value: list[Any], path: str) -> _Result:
    found = _Result(passed=1)
    if isinstance(raw.get("items"), dict):
        for index, item in enumerate(value):
            found.merge(_judge(raw["items"], item, f"{path}[{index}]"))
    if "minItems" in raw and len(value) < raw["minItems"]:
        why = f"{path} in body should have at least {raw['minItems']} items"
        found.causes.append(invalid_field(path, len(value), why))
    if "maxItems" in raw and len(value) > raw["maxItems"]:
        text = f"Too many: {len(value)}: must have at most {raw['maxItems']} items"
        found.causes.append(Cause("FieldValueTooMany", path, text))
    return found


def _check_object(raw: JsonObject, value: JsonObject, path: str, old: Any) -> _Result:
    if "minProperties" in raw and len(value) < raw["minProperties"]:
        why = f"{path} in body should have at least {raw['minProperties']} properties"
        return _Result([invalid_field(path, len(value), why)])
    if "maxProperties" in raw and len(value) > raw["maxProperties"]:
        text = f"Too many: {len(value)}: must have at most {raw['maxProperties']} items"
        return _Result([Cause("FieldValueTooMany", path, text)])
    found = _Result()
    before = old if isinstance(old, dict) else {}
    properties = raw.get("properties") or {}
    extra = raw.get("additionalProperties")
    for name, item in value.items():
        child = properties.get(name, extra)
        if isinstance(child, dict):
            found.merge(_judge(child, item, _join(path, name), before.get(name, typed.ABSENT)))
    found.causes += [required_field(_join(path, name)) for name in raw.get("required") or () if name not in value]
    if raw.get("x-kubernetes-embedded-resource"):
        found.causes += [required_field(_join(path, name)) for name in ("apiVersion", "kind") if not value.get(name)]
    return found


def _combined(path: str, why: str) -> Cause:
    return Cause("FieldValueInvalid", NOWHERE, f'Invalid value: "": "{path}" must {why}')


def _closest(results: list[_Result]) -> list[Cause]:
    """Return the faults of the alternative with the most passed checks."""
    best = results[0]
    for result in results[1:]:
        best = result if result.passed > best.passed else best
    return best.causes


def _check_combinations(raw: JsonObject, value: Any, path: str) -> _Result:
    found = _Result()

    def judged(name: str) -> list[_Result]:
        return [_judge(part, value, path) for part in raw.get(name) or ()]

    alternatives = judged("anyOf")
    if alternatives and all(result.causes for result in alternatives):
        found.causes += [_combined(path, "validate at least one schema (anyOf)"), *_closest(alternatives)]
    alternatives = judged("oneOf")
    valid = sum(not result.causes for result in alternatives)
    if alternatives and valid != 1:
        told = f"Found {valid} valid alternatives" if valid else "Found none valid"
        found.causes.append(_combined(path, f"validate one and only one schema (oneOf). {told}"))
        found.causes += [] if valid else _closest(alternatives)
    parts = judged("allOf")
    for result in parts:
        found.merge(result)
    if any(result.causes for result in parts):
        none = ". None validated" if all(result.causes for result in parts) else ""
        found.causes.append(_combined(path, f"validate all the schemas (allOf){none}"))
    if raw.get("not") is not None and not _judge(raw["not"], value, path).causes:
        found.causes.append(_combined(path, "not validate the schema (not)"))
    return found


def validate_lists(node: Node, value: Any, path: str = "", old: Any = typed.ABSENT) -> list[Cause]:
    """Return the duplicates in lists declared as sets or maps, except lists that equal `old`, the stored value."""
    causes: list[Cause] = []
    if node is DEDUCED or (old is not typed.ABSENT and typed.same(value, old)):
        return causes
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, item in value.items():
            child = node.child(name)
            if child is not None and item is not None:
                causes += validate_lists(child, item, _join(path, name), before.get(name, typed.ABSENT))
    elif isinstance(value, list):
        duplicates = _duplicates(node, value)
        for index, item in enumerate(value):
            if index in duplicates:
                causes.append(duplicate_field(f"{path}[{index}]", duplicates[index]))
            if node.items is not None:
                causes += validate_lists(node.items, item, f"{path}[{index}]")
    return causes


def _duplicates(node: Node, items: list[Any]) -> dict[int, Any]:
    """Return by index the items of a set, or the keys of a map's items, that an earlier item has."""
    if node.list_type not in {"map", "set"}:
        return {}
    found: dict[int, Any] = {}
    seen: list[Any] = []
    for index, item in enumerate(items):
        is_keyed = node.list_type == "map" and isinstance(item, dict)
        key: Any = {name: item[name] for name in node.list_keys if name in item} if is_keyed else item
        if any(typed.same(key, other) for other in seen):
            found[index] = key
        seen.append(key)
    return found
