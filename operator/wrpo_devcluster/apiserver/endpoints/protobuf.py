"""Decoder of `application/vnd.kubernetes.protobuf` bodies, driven by the field numbers in `schemas/wire.json.gz`."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from wrpo_devcluster.apiserver.schema import schema
from wrpo_devcluster.client import JsonObject

MAGIC = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class ProtobufError(ValueError):
    """A body that is no valid message of its kind."""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ProtobufError("truncated protobuf integer")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yield every (number, wire type, value) of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: Any
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _BYTES:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
            if len(value) != size:
                raise ProtobufError("truncated protobuf field")
        elif wire in {_FIXED64, _FIXED32}:
            size = 8 if wire == _FIXED64 else 4
            value, at = data[at : at + size], at + size
            if len(value) != size:
                raise ProtobufError("truncated protobuf field")
        else:
            raise ProtobufError(f"unsupported protobuf wire type {wire}")
        yield number, wire, value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def decode_envelope(data: bytes) -> tuple[str, str, bytes]:
    """Return (apiVersion, kind, raw message) of a body in runtime.Unknown's envelope."""
    if not data.startswith(MAGIC):
        raise ProtobufError("the body does not start with the protobuf magic number")
    version = kind = ""
    raw = b""
    for number, _, value in fields(data[len(MAGIC) :]):
        if number == 1:
            for inner, _, text in fields(value):
                if inner == 1:
                    version = text.decode()
                elif inner == 2:
                    kind = text.decode()
        elif number == 2:
            raw = value
    return version, kind, raw


def decode(definition: str, data: bytes) -> JsonObject:
    """Return a message of a built-in definition as JSON data."""
    return _message(definition, data)


def _message(definition: str, data: bytes) -> JsonObject:
    table = schema.wire_table().get(definition)
    if table is None:
        raise ProtobufError(f"no protobuf description of {definition}")
    node = schema.builtin(definition) if definition in schema.definitions() else None
    package = definition.rsplit(".", 1)[0]
    by_number = {entry[0]: (name, entry) for name, entry in table.items()}
    out: JsonObject = {}
    for number, wire, value in fields(data):
        found = by_number.get(number)
        if found is None:
            continue
        name, (_, _, repeated, _, inlined) = found
        if inlined:
            if node is None or f"{package}.{inlined}" in schema.wire_table():
                out |= _inline(node, f"{package}.{inlined}", value)
            continue
        child = node.properties.get(name) if node is not None else None
        if child is None:
            continue
        _place(out, name, child, (wire, value), repeated=repeated)
    return out


def _inline(outer: schema.Node | None, definition: str, data: bytes) -> JsonObject:
    """Merge the fields of an embedded Go struct into the outer object, whose schema declares them."""
    table = schema.wire_table()[definition]
    by_number = {entry[0]: (name, entry) for name, entry in table.items()}
    package = definition.rsplit(".", 1)[0]
    out: JsonObject = {}
    for number, wire, value in fields(data):
        found = by_number.get(number)
        if found is None or outer is None:
            continue
        name, (_, _, repeated, _, inlined) = found
        if inlined:
            out |= _inline(outer, f"{package}.{inlined}", value)
        elif name in outer.properties:
            _place(out, name, outer.properties[name], (wire, value), repeated=repeated)
    return out


def _place(out: JsonObject, name: str, node: schema.Node, content: tuple[int, Any], *, repeated: bool) -> None:
    wire, value = content
    if node.type == "array":
        items = node.items or schema.DEDUCED
        found = out.setdefault(name, [])
        if wire == _BYTES and items.type in {"integer", "boolean"}:
            at = 0
            while at < len(value):
                number, at = _varint(value, at)
                found.append(_scalar(items, _VARINT, number))
        else:
            found.append(_value(items, wire, value))
    elif node.type == "object" and node.additional is not None and repeated:
        key, item = _entry(node.additional, value)
        out.setdefault(name, {})[key] = item
    elif node.type == "object" and node.additional is not None:
        # A Go map type with a separate message: its entries are field 1.
        out[name] = dict(_entry(node.additional, inner) for number, _, inner in fields(value) if number == 1)
    else:
        out[name] = _value(node, wire, value)


def _entry(node: schema.Node, data: bytes) -> tuple[str, Any]:
    key, item = "", _empty(node)
    for number, wire, value in fields(data):
        if number == 1:
            key = value.decode()
        elif number == 2:
            if node.type == "array":
                item = [_value(node.items or schema.DEDUCED, _BYTES, inner) for n, _, inner in fields(value) if n == 1]
            else:
                item = _value(node, wire, value)
    return key, item


def _empty(node: schema.Node) -> Any:
    return {"string": "", "integer": 0, "boolean": False, "object": {}}.get(node.type)


def _value(node: schema.Node, wire: int, value: Any) -> Any:
    if node.special:
        return _special(node, value)
    if node.type == "object" and node.definition:
        return _message(node.definition, value)
    return _scalar(node, wire, value)


def _scalar(node: schema.Node, wire: int, value: Any) -> Any:
    if wire == _VARINT:
        return bool(value) if node.type == "boolean" else _signed(value)
    if wire == _FIXED64:
        return struct.unpack("<d", value)[0]
    if wire == _FIXED32:
        return struct.unpack("<f", value)[0]
    if node.format == "byte":
        return base64.b64encode(value).decode()
    try:
        return value.decode()
    except UnicodeDecodeError as problem:
        raise ProtobufError("a protobuf string is not UTF-8") from problem


def _special(node: schema.Node, value: Any) -> Any:
    found = {number: inner for number, _, inner in fields(value)}
    if node.special in {"time", "micro-time"}:
        if not found:
            return None
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
            seconds=_signed(found.get(1, 0)), microseconds=found.get(2, 0) // 1000
        )
        return moment.isoformat()
    if node.special == "quantity":
        return found.get(1, b"0").decode() or "0"
    if node.special == "int-or-string":
        return found.get(3, b"").decode() if found.get(1) else _signed(found.get(2, 0))
    if node.special == "schema-or-bool":
        inner = found.get(2)
        return _message(_JSON_SCHEMA, inner) if inner is not None else bool(found.get(1, 0))
    if node.special == "schema-or-array":
        inner = found.get(1)
        return _message(_JSON_SCHEMA, inner) if inner is not None else []
    raw = found.get(1)
    return json.loads(raw) if raw else {}


_JSON_SCHEMA = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
