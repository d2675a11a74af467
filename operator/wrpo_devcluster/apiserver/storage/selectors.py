"""Label and field selectors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from wrpo_devcluster.client import JsonObject

_TOKEN = re.compile(r"\s*(==|!=|[=!(),<>]|[^\s=!(),<>]+)")
_KEY = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")


class SelectorError(ValueError):
    """A selector that cannot be parsed or uses a field that the resource does not support."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """Condition on one label."""

    key: str
    operator: str
    values: frozenset[str]

    def matches(self, labels: dict[str, str]) -> bool:
        """Return whether an object with these labels meets the requirement."""
        value = labels.get(self.key)
        if self.operator == "exists":
            return value is not None
        if self.operator == "!":
            return value is None
        if self.operator == "in":
            return value in self.values
        if self.operator == "notin":
            return value not in self.values
        return _compares(value, self.operator, next(iter(self.values)))


def _compares(value: str | None, operator: str, bound: str) -> bool:
    try:
        return int(value or "") > int(bound) if operator == ">" else int(value or "") < int(bound)
    except ValueError:
        return False


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.findall(text)
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def parse(self) -> tuple[Requirement, ...]:
        found = []
        while self.peek():
            found.append(self.requirement())
            if self.peek() and self.take() != ",":
                raise SelectorError(f"found '{self.tokens[self.at - 1]}', expected: ',' or 'end of string'")
            if self.at and self.tokens[self.at - 1] == "," and not self.peek():
                raise SelectorError("found '', expected: identifier after ','")
        return tuple(found)

    def requirement(self) -> Requirement:
        negated = self.peek() == "!"
        if negated:
            self.take()
        key = self.take()
        if not _KEY.match(key) or len(key.rsplit("/", 1)[-1]) > 63:
            raise SelectorError(f'unable to parse requirement: <nil>: Invalid value: "{key}": name part must be valid')
        if negated:
            return Requirement(key, "!", frozenset())
        operator = self.peek()
        if operator in {"", ","}:
            return Requirement(key, "exists", frozenset())
        self.take()
        if operator in {"in", "notin"}:
            return Requirement(key, operator, self.values())
        value = "" if self.peek() in {"", ","} else self.take()
        if operator in {"<", ">"}:
            if not value.lstrip("-").isdigit():
                raise SelectorError(f"for 'Gt', 'Lt' operators, the value must be an integer, not '{value}'")
            return Requirement(key, operator, frozenset({value}))
        if operator not in {"=", "==", "!="}:
            raise SelectorError(
                f"unable to parse requirement: found '{operator}', expected: in, notin, =, ==, !=, gt, lt"
            )
        return Requirement(key, "notin" if operator == "!=" else "in", frozenset({_valid(value)}))

    def values(self) -> frozenset[str]:
        if (token := self.take()) != "(":
            raise SelectorError(f"unable to parse requirement: found '{token}' expected: '('")
        found: set[str] = set()
        expect_value = True
        while (token := self.take()) != ")":
            if not token:
                raise SelectorError("unable to parse requirement: found '', expected: ',' or ')'")
            if token == ",":  # noqa: S105
                if expect_value:
                    found.add("")
                expect_value = True
            else:
                found.add(_valid(token))
                expect_value = False
        if expect_value:
            found.add("")
        return frozenset(found)


def _valid(value: str) -> str:
    if not _VALUE.match(value):
        raise SelectorError(
            f'unable to parse requirement: values: Invalid value: "{value}": must be a valid label value'
        )
    return value


@lru_cache(maxsize=1024)
def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Parse `app=x,k in (a,b),!gone`; empty text selects everything."""
    return _Parser(text).parse() if text.strip() else ()


def from_label_selector(selector: JsonObject | None) -> tuple[Requirement, ...]:
    """Return the requirements of a metav1.LabelSelector object."""
    selector = selector or {}
    found = [Requirement(k, "in", frozenset({v})) for k, v in (selector.get("matchLabels") or {}).items()]
    names = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}
    for expression in selector.get("matchExpressions") or ():
        values = frozenset(expression.get("values") or ())
        found.append(Requirement(expression["key"], names[expression["operator"]], values))
    return tuple(found)


@lru_cache(maxsize=1024)
def parse_fields(text: str, supported: frozenset[str]) -> tuple[tuple[str, str, bool], ...]:
    """Parse `metadata.name=x,status.phase!=Failed` into (field, value, equal)."""
    found = []
    for part in re.split(r"(?<!\\),", text) if text else ():
        for sign, equal in (("!=", False), ("==", True), ("=", True)):
            if sign in part:
                name, value = part.split(sign, 1)
                if name not in supported:
                    raise SelectorError(f"field label not supported: {name}")
                found.append((name, re.sub(r"\\(.)", r"\1", value), equal))
                break
        else:
            raise SelectorError(f"invalid selector: '{part}'; can't understand '{part}'")
    return tuple(found)


def field_value(obj: JsonObject, path: str) -> str:
    """Return the value of a dotted path as selectors compare it; the empty string if absent."""
    at: Any = obj
    for name in path.split("."):
        at = at.get(name) if isinstance(at, dict) else None
    if at is None:
        return ""
    return str(at).lower() if isinstance(at, bool) else str(at)


def matcher(labels: str, fields: str, supported: frozenset[str]) -> Callable[[JsonObject], bool] | None:
    """Return a predicate for both selectors; None if both are empty."""
    requirements = parse_labels(labels)
    wanted = parse_fields(fields, supported)
    if not requirements and not wanted:
        return None

    def matches(obj: JsonObject) -> bool:
        own = obj["metadata"].get("labels") or {}
        return all(requirement.matches(own) for requirement in requirements) and all(
            (field_value(obj, path) == value) is equal for path, value, equal in wanted
        )

    return matches
