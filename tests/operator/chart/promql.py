"""A reader of the part of PromQL that the chart's alerts and panels use: what does not parse is an error."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)(?![a-z])|(?P<range>\[\d+[smhd]\])|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r'|(?P<text>"(?:[^"\\]|\\.)*")|(?P<op>=~|!~|!=|==|>=|<=|[-+*/<>=(){},]))'
)
AGGREGATIONS = frozenset({"sum", "max", "min", "avg", "count"})
FUNCTIONS = {"rate": 1, "increase": 1, "absent": 1, "histogram_quantile": 2}
_OPERATORS = frozenset({"+", "-", "*", "/", "==", "!=", ">", "<", ">=", "<="})


@dataclass
class Selection:
    """A metric, the labels that select its series, and whether a range follows."""

    metric: str
    labels: set[str]
    ranged: bool


@dataclass
class Query:
    selections: list[Selection] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)
    """Labels of all `by` clauses."""


class PromqlError(ValueError):
    """The text is no query."""


def parse(text: str) -> Query:
    """Return what a query selects."""
    reader = _Reader(text)
    reader.expression()
    if reader.peek() is not None:
        raise PromqlError(f"{text!r}: {reader.peek()} is left over")
    return reader.query


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.query = text, Query()
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise PromqlError(f"{text!r}: cannot read {text[at:]!r}")
            self.tokens.append((str(match.lastgroup), match.group(str(match.lastgroup))))
            at = match.end()
        self.at = 0

    def peek(self) -> tuple[str, str] | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, value: str = "", kind: str = "") -> str:
        token = self.peek()
        if token is None or (value and token[1] != value) or (kind and token[0] != kind):
            raise PromqlError(f"{self.text!r}: expected {value or kind}, found {token}")
        self.at += 1
        return token[1]

    def is_next(self, value: str) -> bool:
        token = self.peek()
        return token is not None and token[1] == value

    def expression(self) -> None:
        self.term()
        while (token := self.peek()) is not None and token[1] in _OPERATORS:
            self.take()
            self.term()

    def term(self) -> None:
        token = self.peek()
        if token is not None and token[0] == "number":
            self.take()
        elif self.is_next("("):
            self.take("(")
            self.expression()
            self.take(")")
        else:
            self.named(self.take(kind="name"))

    def named(self, name: str) -> None:
        if name in AGGREGATIONS:
            if self.is_next("by"):
                self.take("by")
                self.query.grouped |= set(self.names())
            self.arguments(1)
        elif name in FUNCTIONS:
            first = len(self.query.selections)
            self.arguments(FUNCTIONS[name])
            if name in {"rate", "increase"} and not all(s.ranged for s in self.query.selections[first:]):
                raise PromqlError(f"{self.text!r}: {name} needs a range")
        elif self.is_next("("):
            raise PromqlError(f"{self.text!r}: unknown function {name}")
        else:
            self.selection(name)

    def names(self) -> list[str]:
        self.take("(")
        found = [self.take(kind="name")]
        while self.is_next(","):
            self.take(",")
            found.append(self.take(kind="name"))
        self.take(")")
        return found

    def arguments(self, count: int) -> None:
        self.take("(")
        for index in range(count):
            if index:
                self.take(",")
            self.expression()
        self.take(")")

    def selection(self, metric: str) -> None:
        labels: set[str] = set()
        if self.is_next("{"):
            self.take("{")
            while not self.is_next("}"):
                labels.add(self.take(kind="name"))
                operator = self.take(kind="op")
                if operator not in {"=", "!=", "=~", "!~"}:
                    raise PromqlError(f"{self.text!r}: {operator} does not select")
                value = self.take(kind="text")
                if operator.endswith("~"):
                    re.compile(value[1:-1])
                if self.is_next(","):
                    self.take(",")
            self.take("}")
        token = self.peek()
        ranged = token is not None and token[0] == "range"
        if ranged:
            self.take()
        self.query.selections.append(Selection(metric, labels, ranged))
