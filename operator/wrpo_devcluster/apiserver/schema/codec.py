"""Decoding of request bodies: unknown fields, pruning, defaults, and Go's encoding of empty fields."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import Any

from wrpo_devcluster import quantity
from wrpo_devcluster.apiserver.schema.schema import Node
from wrpo_devcluster.apiserver.schema.serializer import Findings, join_path
from wrpo_devcluster.client import JsonObject


class DecodeError(ValueError):
    """A body that cannot be decoded; the message is the real server's."""


def copy_json(value: Any) -> Any:
    """Return a deep copy of JSON data, about three times as fast as copy.deepcopy."""
    if isinstance(value, dict):
        return {key: copy_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy_json(item) for item in value]
    return value


def go_type(value: Any) -> str:
    """Return the name of a value's type in Go's JSON decoder."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def decode_builtin(node: Node, value: Any, findings: Findings, path: str = "") -> Any:
    """Return `value` in the form that a typed server stores, without unknown fields, empty ones as Go writes them."""
    if node.special:
        return _decode_special(node, value, path)
    if node.type == "object":
        return _decode_object(node, value, findings, path)
    if node.type == "array":
        if not isinstance(value, list):
            raise _mismatch(value, path, "slice")
        items = node.items or Node()
        return [
            decode_builtin(items, item, findings, f"{path}[{index}]") if item is not None else zero_item(items)
            for index, item in enumerate(value)
        ]
    return _decode_scalar(node, value, path)


def zero_item(node: Node) -> Any:
    """Return what stands for a null in a list: Go's zero value of the item."""
    if node.type == "string":
        return ""
    return zero(node) if node.type == "object" else None


def _mismatch(value: Any, path: str, wanted: str) -> DecodeError:
    return DecodeError(f"json: cannot unmarshal {go_type(value)} into Go struct field .{path} of type {wanted}")


_SCALARS: dict[str, frozenset[type]] = {
    "string": frozenset({str}),
    "boolean": frozenset({bool}),
    "integer": frozenset({int}),
    "number": frozenset({int, float}),
}


def _decode_scalar(node: Node, value: Any, path: str) -> Any:
    if node.type == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    accepted = _SCALARS.get(node.type)
    if accepted is not None and type(value) not in accepted:
        raise _mismatch(value, path, node.format or node.type)
    if node.type == "integer" and node.format == "int32" and not -(2**31) <= value < 2**31:
        raise DecodeError(f"json: cannot unmarshal number {value} into Go struct field .{path} of type int32")
    if node.format == "byte":
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as problem:
            raise DecodeError(f"illegal base64 data at {path}: {problem}") from problem
    return copy_json(value)


def _decode_special(node: Node, value: Any, path: str) -> Any:
    if node.special in {"time", "micro-time"}:
        return _decode_time(value, path, micro=node.special == "micro-time")
    if node.special == "quantity":
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _mismatch(value, path, "Quantity")
        try:
            return quantity.canonical(value)
        except ValueError as problem:
            raise DecodeError(f"{path}: {problem}") from problem
    if node.special == "int-or-string" and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise _mismatch(value, path, "IntOrString")
    return copy_json(value)


def _decode_time(value: Any, path: str, *, micro: bool) -> str:
    try:
        moment = datetime.fromisoformat(value)
    except (ValueError, TypeError) as problem:
        raise DecodeError(f'parsing time "{value}" at {path}: {problem}') from problem
    if moment.tzinfo is None:
        raise DecodeError(f'parsing time "{value}" at {path}: no time zone')
    return format_time(moment.astimezone(UTC), micro=micro)


def format_time(moment: datetime, *, micro: bool = False) -> str:
    """Format a time as metav1 does: RFC 3339 in UTC, in seconds or microseconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def _decode_object(node: Node, value: Any, findings: Findings, path: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(value, path, "object")
    if not node.properties:
        if node.additional is None:
            return copy_json(value)
        return {
            str(key): decode_builtin(node.additional, item, findings, join_path(path, str(key)))
            if item is not None
            else zero_item(node.additional)
            for key, item in value.items()
        }
    out: JsonObject = {}
    for name, item in value.items():
        child = node.properties.get(name)
        if child is None:
            findings.unknown.append(join_path(path, name))
        elif item is not None:
            decoded = decode_builtin(child, item, findings, join_path(path, name))
            if not _omitted(node, name, child, decoded):
                out[name] = decoded
    _fill_always(node, out)
    return out


def _omitted(node: Node, name: str, child: Node, value: Any) -> bool:
    """Return whether Go omits this empty value."""
    if not node.presence:
        return False
    presence = node.presence.get(name, "omit")
    if presence in {"always", "null"}:
        return False
    if child.special != "raw" and (isinstance(value, list) or (isinstance(value, dict) and not child.is_struct)):
        return not value
    return presence == "omit" and value in ("", False, 0)


def _fill_always(node: Node, out: JsonObject) -> None:
    for name, presence in node.presence.items():
        if name in out or name not in node.properties:
            continue
        if presence == "always":
            out[name] = zero(node.properties[name])
        elif presence == "null":
            out[name] = None


_ZEROS: dict[str, Any] = {"string": "", "integer": 0, "number": 0, "boolean": False, "array": None}


def zero(node: Node) -> Any:
    """Return the value that Go writes for an unset field of this type."""
    if node.special:
        return 0 if node.special == "int-or-string" else None
    if node.type == "object":
        if not node.properties:
            return None
        out: JsonObject = {}
        _fill_always(node, out)
        return out
    return _ZEROS.get(node.type)


def prune(node: Node, value: Any, findings: Findings, path: str = "") -> None:
    """Drop in place what a structural schema does not declare."""
    if isinstance(value, list):
        if node.items is not None:
            for index, item in enumerate(value):
                prune(node.items, item, findings, f"{path}[{index}]")
        return
    if not isinstance(value, dict) or not (node.properties or node.additional is not None or node.type == "object"):
        return
    for name in list(value):
        child = node.properties.get(name)
        if child is not None:
            prune(child, value[name], findings, join_path(path, name))
        elif node.additional is not None:
            prune(node.additional, value[name], findings, join_path(path, name))
        elif not node.preserve:
            findings.unknown.append(join_path(path, name))
            del value[name]


def apply_defaults(node: Node, value: Any) -> None:
    """Set a structural schema's defaults in place. A null that is not nullable counts as unset."""
    if isinstance(value, list):
        if node.items is not None:
            for item in value:
                apply_defaults(node.items, item)
    elif isinstance(value, dict):
        _default_fields(node, value)


def _default_fields(node: Node, value: JsonObject) -> None:
    for name, child in node.properties.items():
        if child.has_default and (name not in value or (value[name] is None and not child.nullable)):
            value[name] = copy_json(child.default)
        if name in value:
            apply_defaults(child, value[name])
    if node.additional is not None:
        for name in value:
            if name not in node.properties:
                apply_defaults(node.additional, value[name])


def drop_nulls(node: Node, value: Any) -> None:
    """Drop in place every null that its schema does not allow. Items of lists stay."""
    if isinstance(value, list):
        for item in value if node.items is not None else ():
            drop_nulls(node.items or node, item)
    elif isinstance(value, dict):
        for name in list(value):
            child = node.properties.get(name) or node.additional
            if child is None or child.definition:
                continue
            if value[name] is None and not child.nullable and child.raw:
                del value[name]
            else:
                drop_nulls(child, value[name])


_CANONICAL = frozenset({"quantity", "time", "micro-time", "int-or-string"})


def canonical_values(node: Node, value: Any) -> Any:
    """Return a value with canonical quantities and times; raise DecodeError for malformed ones."""
    if node.special in _CANONICAL and value is not None:
        return _decode_special(node, value, "")
    if isinstance(value, dict):
        return {
            name: canonical_values(child, item) if (child := node.child(name)) is not None else item
            for name, item in value.items()
        }
    if isinstance(value, list) and node.items is not None:
        return [canonical_values(node.items, item) for item in value]
    return value
