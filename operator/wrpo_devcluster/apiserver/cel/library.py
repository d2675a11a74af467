"""Signatures of the functions that CRD rules may call: CEL's standard ones and Kubernetes' libraries.

One signature a line: `function: result <- arguments`, a member function with its receiver in front of a dot. `A` and
`B` represent any type. The implementations are in functions.py, the costs in call_cost.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product

from wrpo_devcluster.apiserver.cel.types import Type

_NUMBERS = ("int", "uint", "double")
_ORDERED = (*_NUMBERS, "bool", "string", "bytes", "timestamp", "duration")
_TEXT = """
_&&_: bool <- bool, bool
_||_: bool <- bool, bool
!_: bool <- bool
@not_strictly_false: bool <- bool
_?_:_: A <- bool, A, A
_==_: bool <- A, A
_!=_: bool <- A, A
-_: int <- int
-_: double <- double
_%_: int <- int, int
_%_: uint <- uint, uint
_+_: string <- string, string
_+_: bytes <- bytes, bytes
_+_: list(A) <- list(A), list(A)
_+_: duration <- duration, duration
_+_: timestamp <- timestamp, duration
_+_: timestamp <- duration, timestamp
_-_: duration <- duration, duration
_-_: duration <- timestamp, timestamp
_-_: timestamp <- timestamp, duration
@in: bool <- A, list(A)
@in: bool <- A, map(A, B)
_[_]: A <- list(A), int
_[_]: B <- map(A, B), A
_[_]: optional_type(A) <- optional_type(list(A)), int
_[_]: optional_type(B) <- optional_type(map(A, B)), A
_[?_]: optional_type(A) <- list(A), int
_[?_]: optional_type(B) <- map(A, B), A
_[?_]: optional_type(A) <- optional_type(list(A)), int
_[?_]: optional_type(B) <- optional_type(map(A, B)), A
size: int <- string
size: int <- bytes
size: int <- list(A)
size: int <- map(A, B)
.size: int <- string
.size: int <- bytes
.size: int <- list(A)
.size: int <- map(A, B)
int: int <- int
int: int <- uint
int: int <- double
int: int <- string
int: int <- timestamp
uint: uint <- uint
uint: uint <- int
uint: uint <- double
uint: uint <- string
double: double <- double
double: double <- int
double: double <- uint
double: double <- string
bool: bool <- bool
bool: bool <- string
string: string <- string
string: string <- bool
string: string <- int
string: string <- uint
string: string <- double
string: string <- bytes
string: string <- timestamp
string: string <- duration
string: string <- IP
string: string <- CIDR
bytes: bytes <- bytes
bytes: bytes <- string
timestamp: timestamp <- timestamp
timestamp: timestamp <- string
timestamp: timestamp <- int
duration: duration <- duration
duration: duration <- string
duration: duration <- int
dyn: dyn <- A
type: type <- A
.contains: bool <- string, string
.startsWith: bool <- string, string
.endsWith: bool <- string, string
matches: bool <- string, string
.matches: bool <- string, string
.charAt: string <- string, int
.indexOf: int <- string, string
.indexOf: int <- string, string, int
.lastIndexOf: int <- string, string
.lastIndexOf: int <- string, string, int
.lowerAscii: string <- string
.upperAscii: string <- string
.trim: string <- string
.replace: string <- string, string, string
.replace: string <- string, string, string, int
.split: list(string) <- string, string
.split: list(string) <- string, string, int
.substring: string <- string, int
.substring: string <- string, int, int
.join: string <- list(string)
.join: string <- list(string), string
.format: string <- string, list(dyn)
strings.quote: string <- string
.find: string <- string, string
.findAll: list(string) <- string, string
.findAll: list(string) <- string, string, int
.indexOf: int <- list(A), A
.lastIndexOf: int <- list(A), A
sets.contains: bool <- list(A), list(A)
sets.equivalent: bool <- list(A), list(A)
sets.intersects: bool <- list(A), list(A)
url: URL <- string
isURL: bool <- string
.getScheme: string <- URL
.getHost: string <- URL
.getHostname: string <- URL
.getPort: string <- URL
.getEscapedPath: string <- URL
.getQuery: map(string, list(string)) <- URL
quantity: quantity <- string
isQuantity: bool <- string
.sign: int <- quantity
.isInteger: bool <- quantity
.asInteger: int <- quantity
.asApproximateFloat: double <- quantity
.add: quantity <- quantity, quantity
.add: quantity <- quantity, int
.sub: quantity <- quantity, quantity
.sub: quantity <- quantity, int
.isLessThan: bool <- quantity, quantity
.isGreaterThan: bool <- quantity, quantity
.compareTo: int <- quantity, quantity
ip: IP <- string
isIP: bool <- string
ip.isCanonical: bool <- string
.family: int <- IP
.isUnspecified: bool <- IP
.isLoopback: bool <- IP
.isLinkLocalMulticast: bool <- IP
.isLinkLocalUnicast: bool <- IP
.isGlobalUnicast: bool <- IP
cidr: CIDR <- string
isCIDR: bool <- string
.containsIP: bool <- CIDR, string
.containsIP: bool <- CIDR, IP
.containsCIDR: bool <- CIDR, string
.containsCIDR: bool <- CIDR, CIDR
.ip: IP <- CIDR
.masked: CIDR <- CIDR
.prefixLength: int <- CIDR
format.named: optional_type(format) <- string
.validate: optional_type(list(string)) <- format, string
semver: semver <- string
semver: semver <- string, bool
isSemver: bool <- string
isSemver: bool <- string, bool
.major: int <- semver
.minor: int <- semver
.patch: int <- semver
.isLessThan: bool <- semver, semver
.isGreaterThan: bool <- semver, semver
.compareTo: int <- semver, semver
optional.of: optional_type(A) <- A
optional.ofNonZeroValue: optional_type(A) <- A
optional.none: optional_type(A) <-
.hasValue: bool <- optional_type(A)
.value: A <- optional_type(A)
.or: optional_type(A) <- optional_type(A), optional_type(A)
.orValue: A <- optional_type(A), A
"""
FORMATS = (
    "dns1123Label", "dns1123Subdomain", "dns1035Label", "qualifiedName", "dns1123LabelPrefix", "dns1123SubdomainPrefix",
    "dns1035LabelPrefix", "labelValue", "uri", "uuid", "byte", "date", "datetime",
)  # fmt: skip
_DATE_PARTS = (
    "getFullYear", "getMonth", "getDayOfYear", "getDayOfMonth", "getDate", "getDayOfWeek", "getHours", "getMinutes",
    "getSeconds", "getMilliseconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Signature:
    """An overload. A member function's receiver is its first argument."""

    result: Type
    args: tuple[Type, ...]


def parse_type(text: str) -> Type:
    """Return the type that a text of the table describes, e.g. `list(A)`; ValueError for another text."""
    match = re.fullmatch(r"\s*([\w]+)(?:\((.*)\))?\s*", text)
    if match is None:
        raise ValueError(text)
    return Type(match[1], tuple(parse_type(part) for part in _parts(match[2])) if match[2] else ())


def _parts(text: str) -> list[str]:
    """Split a text at the commas outside of brackets."""
    found, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [part for part in found if part.strip()]


def _generated() -> list[str]:
    lines = [f"_{operator}_: {kind} <- {kind}, {kind}" for operator in "+-*/" for kind in _NUMBERS]
    relations = ("<", "<=", ">", ">=")
    lines += [f"_{relation}_: bool <- {kind}, {kind}" for relation in relations for kind in _ORDERED]
    pairs = [(one, other) for one, other in product(_NUMBERS, _NUMBERS) if one != other]
    lines += [f"_{relation}_: bool <- {one}, {other}" for relation in relations for one, other in pairs]
    lines += [f".isSorted: bool <- list({kind})" for kind in _ORDERED]
    lines += [f".{name}: {kind} <- list({kind})" for name in ("min", "max") for kind in _ORDERED]
    lines += [f".sum: {kind} <- list({kind})" for kind in (*_NUMBERS, "duration")]
    lines += [f".{name}: int <- timestamp" for name in _DATE_PARTS]
    lines += [f".{name}: int <- timestamp, string" for name in _DATE_PARTS]
    lines += [f".{name}: int <- duration" for name in ("getHours", "getMinutes", "getSeconds", "getMilliseconds")]
    return lines + [f"format.{name}: format <-" for name in FORMATS]


def _table() -> dict[str, list[Signature]]:
    found: dict[str, list[Signature]] = {}
    for line in [*filter(None, _TEXT.splitlines()), *_generated()]:
        name, rest = line.split(": ", 1)
        result, args = rest.split("<-")
        signature = Signature(parse_type(result), tuple(parse_type(part) for part in _parts(args)))
        found.setdefault(name, []).append(signature)
    return found


SIGNATURES = _table()
"""Function name, with a dot in front for members, -> its overloads."""
TYPE_NAMES = {
    name: Type("type")
    for name in (
        *_ORDERED, "list", "map", "null_type", "type", "optional_type", "dyn",
        "google.protobuf.Timestamp", "google.protobuf.Duration",
    )
}  # fmt: skip
"""Identifiers that name types."""
