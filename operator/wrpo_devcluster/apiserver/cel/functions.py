"""Implementation of CEL functions. Values are Python's and the classes here; faults raise EvaluationError."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from wrpo_devcluster import quantity
from wrpo_devcluster.apiserver.cel.syntax import UInt
from wrpo_devcluster.apiserver.cel.types import Decl
from wrpo_devcluster.apiserver.values import formats, go_regex
from wrpo_devcluster.apiserver.values.go_url import Url, UrlError, parse_request_uri
from wrpo_devcluster.client import JsonObject


class EvaluationError(ValueError):
    """A rule that cannot be evaluated on this value, in the real server's wording."""


@dataclass(frozen=True, slots=True)
class Optional:
    """An optional value; `parts` is empty if it is absent."""

    parts: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class TypeValue:
    """A type as a value."""

    name: str


@dataclass(slots=True, eq=False)
class Struct:
    """An object that a schema declares; its fields are converted when they are looked at."""

    decl: Decl
    raw: JsonObject


class SetList(list[Any]):
    """A list whose order has no meaning."""


def view(decl: Decl | None, raw: Any) -> Any:
    """Return a JSON value in the form that rules use."""
    if decl is None or raw is None:
        return raw
    match decl.type.name:
        case "object" if isinstance(raw, dict):
            return Struct(decl, raw)
        case "list" if isinstance(raw, list):
            items = [view(decl.elem, item) for item in raw]
            return SetList(items) if decl.list_type in {"set", "map"} else items
        case "map" if isinstance(raw, dict):
            return {name: view(decl.elem, item) for name, item in raw.items()}
        case "double" if isinstance(raw, int) and not isinstance(raw, bool):
            return float(raw)
        case "timestamp" | "duration" | "bytes" if isinstance(raw, str):
            return _CONVERTED[decl.type.name](raw)
    return raw


def type_name(value: Any) -> str:
    """Return the name of a value's type as CEL's messages show it."""
    if isinstance(value, UInt):
        return "uint"
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "bool"), (int, "int"), (float, "double"), (str, "string"), (bytes, "bytes"), (list, "list"),
        (dict, "map"), (datetime, "google.protobuf.Timestamp"), (timedelta, "google.protobuf.Duration"),
        (Optional, "optional_type"), (Decimal, "kubernetes.Quantity"), (Url, "kubernetes.URL"), (TypeValue, "type"),
    )  # fmt: skip
    return "null_type" if value is None else next((name for kind, name in kinds if isinstance(value, kind)), "object")


def is_equal(one: Any, other: Any) -> bool:
    """Return whether two values are equal in CEL: numbers by value, lists by items, sets in any order."""
    if isinstance(one, Struct) and isinstance(other, Struct):
        return one.raw.keys() == other.raw.keys() and all(
            is_equal(_entry(one, name), _entry(other, name)) for name in one.raw
        )
    if isinstance(one, SetList) and isinstance(other, SetList):
        return len(one) == len(other) and all(any(is_equal(a, b) for b in other) for a in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _entry(struct: Struct, name: str) -> Any:
    decls = {plain: (struct.decl.fields or {})[escaped] for escaped, plain in struct.decl.names.items()}
    return view(decls.get(name), struct.raw[name])


def _number(convert: Callable[[Any], Any], kind: str) -> Callable[[Any], Any]:
    def run(value: Any) -> Any:
        try:
            found = convert(value)
        except (ValueError, TypeError, OverflowError) as problem:
            name = "string" if isinstance(value, str) else type_name(value)
            raise EvaluationError(f"type conversion error from '{name}' to '{kind}'") from problem
        return in_range(found, kind)

    return run


def in_range(value: Any, kind: str) -> Any:
    """Return a number of a type; raise EvaluationError if it is out of range."""
    if kind == "int" and not -(2**63) <= value < 2**63:
        raise EvaluationError("integer overflow")
    if kind == "uint" and not 0 <= value < 2**64:
        raise EvaluationError("unsigned integer overflow")
    return value


def _to_int(value: Any) -> int:
    if isinstance(value, str):
        if re.fullmatch(r"[+-]?[0-9]+", value, re.ASCII) is None:
            raise ValueError(value)
        return int(value)
    return int(value.timestamp()) if isinstance(value, datetime) else int(value)


def _to_double(value: Any) -> float:
    if isinstance(value, str) and re.fullmatch(r"\s.*|.*\s|.*_.*", value):
        raise ValueError(value)
    return float(value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    texts = {
        **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
        **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
    }
    if value not in texts:
        raise EvaluationError("type conversion error from 'string' to 'bool'")
    return texts[value]


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as problem:
            raise EvaluationError("invalid UTF-8 in bytes, cannot convert to string") from problem
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{value.total_seconds():g}s" if isinstance(value, timedelta) else str(value)


def _to_timestamp(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    try:
        if isinstance(value, int):
            return datetime.fromtimestamp(value, UTC)
        found = datetime.fromisoformat(value)
    except (ValueError, OverflowError) as problem:
        raise EvaluationError("type conversion error from 'string' to 'google.protobuf.Timestamp'") from problem
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _to_duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    found = timedelta(seconds=value) if isinstance(value, int) else formats.parse_duration(value)
    if found is None:
        raise EvaluationError("type conversion error from 'string' to 'google.protobuf.Duration'")
    return found


def _to_bytes(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as problem:
        raise EvaluationError(f"illegal base64 data: {problem}") from problem


_CONVERTED: dict[str, Callable[[Any], Any]] = {
    "timestamp": _to_timestamp, "duration": _to_duration, "bytes": _to_bytes,
}  # fmt: skip


def _quantity(text: str) -> Decimal:
    try:
        return quantity.parse(text)
    except ValueError as problem:
        raise EvaluationError(str(problem)) from problem


def _url(text: str) -> Url:
    try:
        return parse_request_uri(text)
    except UrlError as problem:
        raise EvaluationError(f"URL parse error during conversion from string: {problem}") from problem


def _address(text: str) -> Any:
    if not formats.is_ip(text):
        raise EvaluationError(f"IP Address {text!r} parse error during conversion from string")
    return ipaddress.ip_address(text)


def _cidr(text: str) -> Any:
    if not formats.is_cidr(text):
        raise EvaluationError(f"network address parse error during conversion from string: {text}")
    return ipaddress.ip_interface(text)


def _inside(outer: Any, inner: Any) -> bool:
    found = inner if not isinstance(inner, str) else (_cidr(inner) if "/" in inner else _address(inner))
    network = getattr(found, "network", None)
    if found.version != outer.version:
        return False
    return bool(network.subnet_of(outer.network)) if network is not None else found in outer.network


def _pattern(pattern: str) -> Any:
    try:
        return go_regex.compile_pattern(pattern)
    except go_regex.PatternError as problem:
        raise EvaluationError(str(problem)) from problem


def _find(text: str, pattern: str) -> str:
    match = _pattern(pattern).search(text)
    return match.group(0) if match is not None else ""


def _find_all(text: str, pattern: str, most: int = -1) -> list[str]:
    found = [match.group(0) for match in _pattern(pattern).finditer(text)]
    return found if most < 0 else found[:most]


def _index(text: Any, part: Any, start: int = 0) -> int:
    if isinstance(text, str):
        return text.find(part, start)
    return next((place for place, item in enumerate(text) if is_equal(item, part)), -1)


def _last_index(text: Any, part: Any, start: int | None = None) -> int:
    if isinstance(text, str):
        return text.rfind(part, 0, None if start is None else start + len(part))
    return next((place for place in range(len(text) - 1, -1, -1) if is_equal(text[place], part)), -1)


def _substring(text: str, start: int, end: int | None = None) -> str:
    last = len(text) if end is None else end
    if not 0 <= start <= last <= len(text):
        raise EvaluationError(f"index out of range: {start if start > len(text) or start < 0 else last}")
    return text[start:last]


def _split(text: str, separator: str, most: int = -1) -> list[str]:
    if most == 0:
        return []
    if not separator:
        return list(text) if most < 0 else [*text[: most - 1], text[most - 1 :]]
    return text.split(separator, most - 1 if most > 0 else -1)


def _char_at(text: str, place: int) -> str:
    if not 0 <= place <= len(text):
        raise EvaluationError(f"index out of range: {place}")
    return text[place : place + 1]


def _extreme(pick: Callable[[list[Any]], Any], name: str) -> Callable[[list[Any]], Any]:
    def run(items: list[Any]) -> Any:
        if not items:
            raise EvaluationError(f"{name} called on empty list")
        return pick(items)

    return run


def _sum(items: list[Any]) -> Any:
    found = items[0] if items else 0
    for item in items[1:]:
        found = found + item
    return found if not isinstance(found, int) else in_range(found, type_name(found))


def _contains_all(one: list[Any], other: list[Any]) -> bool:
    return all(any(is_equal(item, held) for held in one) for item in other)


def _value(found: Optional) -> Any:
    if not found.parts:
        raise EvaluationError("optional.none() dereference")
    return found.parts[0]


def _as_integer(value: Decimal) -> int:
    if value != value.to_integral_value():
        raise EvaluationError("cannot convert value to integer")
    return int(value)


def _moment(get: Callable[[datetime], int]) -> Callable[..., int]:
    def run(value: datetime, zone: str = "UTC") -> int:
        try:
            return get(value.astimezone(ZoneInfo(zone)))
        except (ValueError, KeyError, OSError) as problem:
            raise EvaluationError(f"unknown time zone {zone}") from problem

    return run


def _part(of_duration: int, get: Callable[[datetime], int]) -> Callable[..., int]:
    at_moment = _moment(get)

    def run(value: Any, *zone: str) -> int:
        if isinstance(value, timedelta):
            return math.trunc(value / timedelta(milliseconds=1) / of_duration)
        return at_moment(value, *zone)

    return run


def _compare(one: Any, other: Any) -> int:
    return int(one > other) - int(one < other)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "size": len,
    "int": _number(_to_int, "int"), "uint": lambda value: UInt(_number(_to_int, "uint")(value)),
    "double": _number(_to_double, "double"), "string": _to_text, "bool": _to_bool, "dyn": lambda value: value,
    "bytes": lambda value: value.encode() if isinstance(value, str) else value,
    "timestamp": _to_timestamp, "duration": _to_duration, "type": lambda value: TypeValue(type_name(value)),
    "contains": lambda text, part: part in text, "startsWith": str.startswith, "endsWith": str.endswith,
    "matches": lambda text, pattern: _pattern(pattern).search(text) is not None,
    "charAt": _char_at, "indexOf": _index, "lastIndexOf": _last_index, "trim": str.strip,
    "lowerAscii": lambda text: re.sub("[A-Z]+", lambda match: match.group().lower(), text),
    "upperAscii": lambda text: re.sub("[a-z]+", lambda match: match.group().upper(), text),
    "replace": lambda text, old, new, most=-1: text.replace(old, new, most),
    "split": _split, "substring": _substring, "join": lambda items, separator="": separator.join(items),
    "format": lambda text, items: re.sub("%[a-z]", "{}", text).format(*map(_to_text, items)),
    "strings.quote": lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"',
    "find": _find, "findAll": _find_all,
    "isSorted": lambda items: all(one <= other for one, other in pairwise(items)),
    "sum": _sum, "min": _extreme(min, "min"), "max": _extreme(max, "max"),
    "sets.contains": _contains_all,
    "sets.equivalent": lambda one, other: _contains_all(one, other) and _contains_all(other, one),
    "sets.intersects": lambda one, other: any(is_equal(a, b) for a in one for b in other),
    "url": _url, "isURL": formats.is_uri, "getScheme": lambda url: url.scheme, "getHost": lambda url: url.host,
    "getHostname": lambda url: url.hostname, "getPort": lambda url: url.port, "getEscapedPath": lambda url: url.path,
    "getQuery": lambda url: url.values(),
    "quantity": _quantity, "isQuantity": formats.is_quantity, "sign": lambda value: _compare(value, 0),
    "isInteger": lambda value: value == value.to_integral_value(), "asInteger": _as_integer,
    "asApproximateFloat": float, "add": lambda one, other: one + other, "sub": lambda one, other: one - other,
    "isLessThan": lambda one, other: one < other, "isGreaterThan": lambda one, other: one > other,
    "compareTo": _compare,
    "ip": lambda value: value.ip if not isinstance(value, str) else _address(value), "isIP": formats.is_ip,
    "ip.isCanonical": lambda text: str(_address(text)) == text, "family": lambda address: address.version,
    "isUnspecified": lambda address: address.is_unspecified, "isLoopback": lambda address: address.is_loopback,
    "isLinkLocalMulticast": lambda address: address.is_multicast and str(address).startswith(("224.0.0.", "ff02")),
    "isLinkLocalUnicast": lambda address: address.is_link_local,
    "isGlobalUnicast": lambda address: not (
        address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
    ),
    "cidr": _cidr, "isCIDR": formats.is_cidr, "containsIP": _inside, "containsCIDR": _inside,
    "masked": lambda cidr: ipaddress.ip_interface(str(cidr.network)),
    "prefixLength": lambda cidr: cidr.network.prefixlen,
    "optional.of": lambda value: Optional((value,)), "optional.none": Optional,
    "optional.ofNonZeroValue": lambda value: Optional((value,) if value else ()),
    "hasValue": lambda found: bool(found.parts), "value": _value,
    "or": lambda one, other: one if one.parts else other,
    "orValue": lambda found, other: found.parts[0] if found.parts else other,
    "getFullYear": _moment(lambda at: at.year), "getMonth": _moment(lambda at: at.month - 1),
    "getDayOfYear": _moment(lambda at: at.timetuple().tm_yday - 1), "getDayOfMonth": _moment(lambda at: at.day - 1),
    "getDate": _moment(lambda at: at.day), "getDayOfWeek": _moment(lambda at: at.isoweekday() % 7),
    "getHours": _part(3_600_000, lambda at: at.hour), "getMinutes": _part(60_000, lambda at: at.minute),
    "getSeconds": _part(1000, lambda at: at.second), "getMilliseconds": _part(1, lambda at: at.microsecond // 1000),
}  # fmt: skip
