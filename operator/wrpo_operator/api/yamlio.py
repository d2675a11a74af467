"""YAML parser with the semantics of kubectl, which differs from PyYAML in some scalars.

kubectl converts YAML to JSON with the rules of go-yaml v2: `5e-7`, `1_000`, `0o17` and `0b1` are numbers. `yes` and
`on` are booleans, and `2024-06-01` and `1:30` are strings. The last value of a duplicate key counts. Numbers without a
fraction are integers in every notation.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable
from typing import Any

import yaml

_BOOLS = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
}
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_INFINITIES = frozenset({f"{sign}.{word}" for sign in ("", "+", "-") for word in ("inf", "Inf", "INF")})
_NOT_NUMBERS = frozenset({".nan", ".NaN", ".NAN"})
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INTEGERS = (
    (re.compile(r"[-+]?0[xX][0-9a-fA-F]+"), 16), (re.compile(r"[-+]?0[bB][01]+"), 2),
    (re.compile(r"[-+]?0[oO]?[0-7]+"), 8), (re.compile(r"[-+]?(?:0|[1-9][0-9]*)"), 10),
)  # fmt: skip
_SEPARATOR = re.compile(r"^---[ \t]*(?:#.*)?$\n?", re.MULTILINE)
_TAG = "tag:yaml.org,2002:"
_MAX_DEPTH = 10_000
Doubled = Callable[[str], None]
"""Called with each duplicate key of a map."""


class YamlError(ValueError):
    """A text that kubectl refuses too; the message names place and cause."""


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and multi-line texts as blocks."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 -- signature of the base class
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


class _PlainLoader(yaml.SafeLoader):
    """Composes nodes only: this module, not PyYAML, resolves plain scalars."""


_PlainLoader.yaml_implicit_resolvers = {}


def plain_value(text: str) -> Any:
    """Return the value of an unquoted scalar: null, boolean, number or the text itself."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if text in _INFINITIES or text in _NOT_NUMBERS:
        return math.nan if text in _NOT_NUMBERS else math.inf
    if text[0] not in "+-.0123456789":
        return text
    return _number(text.replace("_", ""), text)


def _number(plain: str, text: str) -> Any:
    for form, base in _INTEGERS:
        if form.fullmatch(plain):
            digits = re.sub(r"0[xXbBoO]", "", plain, count=1) if base in {2, 8, 16} else plain
            return json_number(int(digits, base))
    if _FLOAT.fullmatch(plain):
        found = float(plain)
        return text if math.isinf(found) else json_number(found)
    return text


def json_number(number: float) -> float:
    """Return a number as it arrives at the API server: integral ones as integers, larger than 64 bits as floats."""
    is_whole = isinstance(number, int) or (math.isfinite(number) and number == int(number) and abs(number) < 1e21)
    if is_whole and -(2**63) <= number < 2**63:
        return int(number)
    return float(number)


class _Reader:
    """Converts the nodes of one document to JSON values, with go-yaml's limits on aliases and depth."""

    def __init__(self, doubled: Doubled | None) -> None:
        self.doubled = doubled
        self.open: list[int] = []
        self.seen: set[int] = set()
        self.all = self.aliased = 0

    def value(self, node: yaml.Node, *, aliased: bool = False) -> Any:
        aliased = aliased or id(node) in self.seen
        self.seen.add(id(node))
        self._count(node, aliased=aliased)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self.open:
            raise _at(node, "an anchor's value contains itself; write it out")
        if len(self.open) > _MAX_DEPTH:
            raise _at(node, f"nested deeper than {_MAX_DEPTH}; flatten it")
        self.open.append(id(node))
        if isinstance(node, yaml.SequenceNode):
            found: Any = [self.value(item, aliased=aliased) for item in node.value]
        else:
            found = self._mapping(node, aliased=aliased)
        self.open.pop()
        return found

    def _count(self, node: yaml.Node, *, aliased: bool) -> None:
        self.all += 1
        self.aliased += aliased
        if self.aliased > 100 and self.all > 1000 and self.aliased / self.all > _alias_share(self.all):
            raise _at(node, "the document contains excessive aliasing; write the values out")

    def _mapping(self, node: yaml.Node, *, aliased: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        own: set[str] = set()
        for key_node, value_node in node.value:
            if key_node.value == "<<" and key_node.style is None and isinstance(key_node, yaml.ScalarNode):
                found.update(self._merged(value_node))
                continue
            key = _key(key_node, self.value(key_node, aliased=aliased))
            if key in own and self.doubled is not None:
                self.doubled(f"line {key_node.start_mark.line + 1}: key `{key}` is given twice")
            own.add(key)
            found[key] = self.value(value_node, aliased=aliased)
        return found

    def _merged(self, node: yaml.Node) -> dict[str, Any]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for source in reversed(sources):
            value = self.value(source)
            if not isinstance(value, dict):
                raise _at(node, "<< merges a map or a list of maps; give it one")
            found.update(value)
        return found

    @staticmethod
    def _scalar(node: yaml.ScalarNode) -> Any:
        text = str(node.value)
        if re.search(r"[\ud800-\udfff]", text):
            raise _at(node, "half of a surrogate pair is no character; write the character itself")
        kind = node.tag.removeprefix(_TAG) if node.tag.startswith(_TAG) else ""
        is_plain = node.style is None
        if kind == "binary":
            return _binary(node, text)
        if kind in {"int", "float", "bool", "null"}:
            return _tagged(node, kind, text)
        found = plain_value(text) if is_plain and node.tag in {f"{_TAG}str", "?"} and not _is_tagged(node) else text
        if isinstance(found, float) and not math.isfinite(found):
            raise _at(node, f"{text} is no number that JSON can hold; write a finite number")
        return found


def _is_tagged(node: yaml.ScalarNode) -> bool:
    """Return whether the tag was written explicitly; plain scalars without one resolve to `str` here."""
    source = node.start_mark.buffer
    return source is not None and source[node.start_mark.pointer : node.start_mark.pointer + 1] == "!"


def _alias_share(count: int) -> float:
    """Return the maximum share of nodes from aliases; it falls with the size of the document."""
    if count <= 400_000:
        return 0.99
    return 0.10 if count >= 4_000_000 else 0.99 - 0.89 * (count - 400_000) / 3_600_000


def _at(node: yaml.Node, why: str) -> YamlError:
    return YamlError(f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}: {why}")


def _binary(node: yaml.Node, text: str) -> str:
    try:
        return base64.b64decode(text).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise _at(node, "!!binary is no base64 of a text; correct it") from error


def _tagged(node: yaml.Node, kind: str, text: str) -> Any:
    found = plain_value(text)
    fitting = {
        "int": isinstance(found, int) and not isinstance(found, bool),
        "float": isinstance(found, int | float) and not isinstance(found, bool),
        "bool": isinstance(found, bool),
        "null": found is None,
    }
    if not fitting[kind]:
        raise _at(node, f"cannot decode `{text}` as !!{kind}; remove the tag or correct the value")
    return found


def _key(node: yaml.Node, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return re.sub(r"\.0$", "", repr(value))
    raise _at(node, "a key must be a text, a number or a boolean; quote it")


def _documents(text: str) -> list[str]:
    """Split the text as kubectl does: at lines that begin with `---`."""
    return [part for part in _SEPARATOR.split(text) if part.strip()]


def _read(part: str, doubled: Doubled | None) -> Any:
    if re.match(r"%YAML (?!1\.1\s)", part):
        raise YamlError("the file asks for a YAML version other than 1.1, which kubectl does not read; remove %YAML")
    loader = _PlainLoader(part)
    try:
        node = loader.get_node() if loader.check_node() else None
        return None if node is None else _Reader(doubled).value(node)
    except yaml.YAMLError as error:
        raise YamlError(str(error)) from error
    except RecursionError as error:
        raise YamlError("the document is nested too deep to be read; flatten it") from error
    finally:
        loader.dispose()


def _json_documents(text: str) -> list[Any] | None:
    """Return the values of a JSON stream; None if the text is not one."""
    decoder = json.JSONDecoder(
        parse_float=lambda one: json_number(float(one)), parse_int=lambda one: json_number(int(one))
    )
    found, rest = [], text.strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return None
        found.append(value)
        rest = rest[end:].lstrip()
    return found


def load_all(text: str, *, doubled: Doubled | None = None) -> list[Any]:
    """Return all non-empty documents of a YAML text or JSON stream; YamlError for a text that kubectl refuses."""
    text = text.removeprefix("\ufeff")
    found = _json_documents(text) if text.lstrip().startswith("{") else None
    if found is None:
        found = [_read(part, doubled) for part in _documents(text)]
    return [document for document in found if document is not None]


def load(text: str) -> Any:
    """Return the first document of a YAML text."""
    return next(iter(load_all(text)), None)


def dump(value: Any) -> str:
    """Return YAML in block style, with keys in their original order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
