"""JSON and YAML as the server reads and writes them, and duplicate keys."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from wrpo_devcluster.stack import MAX_DEPTH

_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")
"""An escape of half of a surrogate pair: go-yaml refuses it, JSON readers join the two halves."""
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_OPENING, _CLOSING = b"[{", b"]}"
_INT64_DIGITS = 19


@dataclass
class Findings:
    """Non-fatal faults of decoding, from which strict errors and warnings are made."""

    unknown: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)

    def messages(self) -> list[str]:
        """Return one sentence for each fault, duplicates first."""
        found = [f'duplicate field "{path}"' for path in self.duplicates]
        return found + [f'unknown field "{path}"' for path in self.unknown]


class _Pairs(dict[str, Any]):
    """JSON object that records its duplicate keys."""

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
    """Return whether a JSON text has more than `limit` levels of objects and lists, without recursion."""
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
    """Parse JSON as Go does: an integer beyond int64 is a float, a number beyond float64 and NaN are refused."""
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
    """YAML loader without timestamps, because Kubernetes reads them as strings."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: bytes) -> Any:
    """Return the value of a YAML or JSON text; ValueError for half of a surrogate pair, yaml.YAMLError for bad YAML."""
    stripped = text.lstrip()
    if stripped.startswith(b"{"):
        if _SURROGATE.search(stripped):
            raise ValueError("error converting YAML to JSON: yaml: found invalid Unicode character escape code")
        return parse_json(stripped)
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes a text only if a reader would not read it as a string."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Without quotes it would be read as a number, a date, a boolean or null.
    tag: str = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    is_text = tag == "tag:yaml.org,2002:str"
    style = "|" if "\n" in text else None if is_text else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def as_yaml(body: Any) -> bytes:
    """Write JSON data as YAML."""
    return yaml.dump(body, Dumper=_Dumper, allow_unicode=True, width=float("inf"), encoding="utf-8")


def find_duplicates(value: Any, findings: Findings) -> None:
    """Record duplicate keys in the order of the text. Paths are formatted only if needed."""
    parts: list[tuple[Any, _Place | None]] = [(value, None)]
    while parts:
        part, place = parts.pop()
        if isinstance(part, _Pairs):
            findings.duplicates.extend(join_path(_path(place), key) for key in part.duplicates)
        if isinstance(part, dict):
            inner = [(item, _Place(place, f".{key}")) for key, item in part.items() if isinstance(item, dict | list)]
            parts += reversed(inner)
        elif isinstance(part, list):
            inner = [(item, _Place(place, f"[{at}]")) for at, item in enumerate(part) if isinstance(item, dict | list)]
            parts += reversed(inner)


class _Place(NamedTuple):
    """Linked step of a path: a text for each level would take the square of the depth."""

    parent: _Place | None
    step: str


def _path(place: _Place | None) -> str:
    steps = []
    while place is not None:
        steps.append(place.step)
        place = place.parent
    return "".join(reversed(steps)).removeprefix(".")


def join_path(path: str, name: str) -> str:
    """Return the path of a field below another path, which may be empty."""
    return f"{path}.{name}" if path else name
