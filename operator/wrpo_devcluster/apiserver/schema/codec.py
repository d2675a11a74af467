"""Request bodies to objects: parsing, unknown and duplicate fields, pruning, and Go's way of writing empty fields."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import yaml

from wrpo_devcluster import quantity
from wrpo_devcluster.apiserver.schema.schema import Node
from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.stack import MAX_DEPTH

_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")
"""An escape of half of a surrogate pair: go-yaml refuses it, JSON readers join the two halves."""
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_OPENING, _CLOSING = b"[{", b"]}"
_INT64_DIGITS = 19


class DecodeError(ValueError):
    """A body that cannot become an object; the message is the server's."""


@dataclass
class Findings:
    """What was wrong but survivable while decoding: the material of strict errors and of warnings."""

    unknown: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)

    def messages(self) -> list[str]:
        found = [f'duplicate field "{path}"' for path in self.duplicates]
        return found + [f'unknown field "{path}"' for path in self.unknown]


def copy_json(value: Any) -> Any:
    """Deep copy of JSON data (about three times as fast as copy.deepcopy)."""
    if isinstance(value, dict):
        return {key: copy_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy_json(item) for item in value]
    return value


class _Pairs(dict[str, Any]):
    """A JSON object some of whose keys came twice: it remembers which."""

    __slots__ = ("duplicates",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.duplicates: list[str] = []
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen and key not in self.duplicates:
                self.duplicates.append(key)
            seen.add(key)


def _from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Pairs(pairs)


def nests_deeper(text: bytes, limit: int) -> bool:
    """Tell whether a JSON text has more than `limit` levels of objects and lists. Takes no recursion."""
    if text.count(b"{") + text.count(b"[") <= limit:
        return False
    depth = 0
    for token in _BRACKETS.finditer(text):
        bracket = text[token.start()]
        depth += (bracket in _OPENING) - (bracket in _CLOSING)
        if depth > limit:
            return True
    return False


def parse_json(text: bytes) -> Any:
    """Read JSON as Go does: an integer beyond int64 is a float, a number beyond float64 and NaN are refused."""
    if nests_deeper(text, MAX_DEPTH):
        raise ValueError("exceeded max depth")
    value = json.loads(
        text,
        object_pairs_hook=_from_pairs,
        parse_int=_integer,
        parse_float=_float,
        parse_constant=_refuse_constant,
    )
    if _SURROGATE.search(text):
        # Half of a surrogate pair is no character: Go replaces it.
        plain = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return json.loads(plain, object_pairs_hook=_from_pairs)
    return value


def _integer(text: str) -> int | float:
    if len(text) < _INT64_DIGITS:
        return int(text)
    value = _float(text)
    return int(text) if len(text) <= _INT64_DIGITS + 1 and -(2**63) <= int(text) < 2**63 else value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"json: cannot unmarshal number {text[:40]} into Go value of type float64")
    return value


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"invalid character '{text[0]}' looking for beginning of value")


class _Loader(yaml.SafeLoader):
    """YAML as JSON: no timestamps, because Kubernetes reads them as strings."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: bytes) -> Any:
    stripped = text.lstrip()
    if stripped.startswith(b"{"):
        if _SURROGATE.search(stripped):
            raise ValueError("error converting YAML to JSON: yaml: found invalid Unicode character escape code")
        return parse_json(stripped)
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)


class _Dumper(yaml.SafeDumper):
    """YAML as the server writes it: quotes only where a reader would take the text for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Without quotes it would be read as a number, a date, a truth value or nothing.
    tag: str = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    is_text = tag == "tag:yaml.org,2002:str"
    style = "|" if "\n" in text else None if is_text else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def as_yaml(body: Any) -> bytes:
    """Write JSON data as YAML."""
    return yaml.dump(body, Dumper=_Dumper, allow_unicode=True, width=float("inf"), encoding="utf-8")


def find_duplicates(value: Any, findings: Findings) -> None:
    """Note the keys that came twice, in the order of the text. Paths are written only when they are needed."""
    parts: list[tuple[Any, _Place | None]] = [(value, None)]
    while parts:
        part, place = parts.pop()
        if isinstance(part, _Pairs):
            findings.duplicates.extend(_join(_path(place), key) for key in part.duplicates)
        if isinstance(part, dict):
            inner = [(item, _Place(place, f".{key}")) for key, item in part.items() if isinstance(item, dict | list)]
            parts += reversed(inner)
        elif isinstance(part, list):
            inner = [(item, _Place(place, f"[{at}]")) for at, item in enumerate(part) if isinstance(item, dict | list)]
            parts += reversed(inner)


class _Place(NamedTuple):
    """A step of a path and the place that it starts from: a path as text would be as long as the object is deep."""

    parent: _Place | None
    step: str


def _path(place: _Place | None) -> str:
    steps = []
    while place is not None:
        steps.append(place.step)
        place = place.parent
    return "".join(reversed(steps)).removeprefix(".")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def go_type(value: Any) -> str:
    """Return how Go's JSON decoder calls a value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def decode_builtin(node: Node, value: Any, findings: Findings, path: str = "") -> Any:
    """Copy of `value` in the form a typed server stores: unknown fields dropped, empty ones as Go writes them."""
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
    """RFC 3339 in UTC, in seconds or microseconds, as metav1 writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def _decode_object(node: Node, value: Any, findings: Findings, path: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(value, path, "object")
    if not node.properties:
        if node.additional is None:
            return copy_json(value)
        return {
            str(key): decode_builtin(node.additional, item, findings, _join(path, str(key)))
            if item is not None
            else zero_item(node.additional)
            for key, item in value.items()
        }
    out: JsonObject = {}
    for name, item in value.items():
        child = node.properties.get(name)
        if child is None:
            findings.unknown.append(_join(path, name))
        elif item is not None:
            decoded = decode_builtin(child, item, findings, _join(path, name))
            if not _omitted(node, name, child, decoded):
                out[name] = decoded
    _fill_always(node, out)
    return out


def _omitted(node: Node, name: str, child: Node, value: Any) -> bool:
    """Would Go leave this empty value out when writing?"""
    if not node.presence:
        return False
    presence = node.presence.get(name, "omit")
    if presence in {"always", "null"}:
        return False
    if isinstance(value, list) or (isinstance(value, dict) and not child.is_struct and child.special != "raw"):
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
    """Return what Go writes for an unset field of this type."""
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
            prune(child, value[name], findings, _join(path, name))
        elif node.additional is not None:
            prune(node.additional, value[name], findings, _join(path, name))
        elif not node.preserve:
            findings.unknown.append(_join(path, name))
            del value[name]


def apply_defaults(node: Node, value: Any) -> None:
    """Set a structural schema's defaults in place; a null that may not be null counts as unset."""
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
    """Drop in place every null that its schema does not allow; items of lists stay."""
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
    """Quantities and times in canonical form, everything else as it is; DecodeError for what is none."""
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
