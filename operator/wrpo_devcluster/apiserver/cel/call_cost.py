"""Cost of calls of CEL functions, and the sizes of their results."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from wrpo_devcluster.apiserver.cel.syntax import Expr

MOST = 2**64 - 1
TRAVERSAL, _REGEX = 0.1, 0.25
_FORMAT_REGEX = 128
_ELEMENTWISE = frozenset({"isSorted", "sum", "max", "min", "indexOf", "lastIndexOf"})
_CONSTANT = (
    "masked", "prefixLength", "family", "isUnspecified", "isLoopback", "isLinkLocalMulticast", "isLinkLocalUnicast",
    "isGlobalUnicast", "sign", "asInteger", "isInteger", "asApproximateFloat", "isGreaterThan", "isLessThan",
    "compareTo", "add", "sub",
)  # fmt: skip


def capped(value: float) -> int:
    """Round up to a whole number, and limit it to MOST."""
    return MOST if value >= MOST else math.ceil(value)


class Size(NamedTuple):
    """Least and most characters, items or keys."""

    least: int
    most: int

    def cost(self, factor: float) -> int:
        """Return the cost of reading all of it once, at `factor` for each element."""
        return capped(self.most * factor)

    def plus(self, other: Size) -> Size:
        """Return the size of two values joined."""
        return Size(capped(self.least + other.least), capped(self.most + other.most))

    def times(self, other: Size) -> Size:
        """Return the size of as many copies of a value as the other size says."""
        return Size(capped(self.least * other.least), capped(self.most * other.most))

    def union(self, other: Size) -> Size:
        """Return the size of a value that is one of two."""
        return Size(min(self.least, other.least), max(self.most, other.most))


UNKNOWN = Size(0, MOST)
ONE = Size(1, 1)


@dataclass(slots=True)
class CallCost:
    """Cost of a call without that of its arguments."""

    cost: int
    result: Size | None = None


class Sizes(Protocol):
    """Sizes of expressions, as the estimator provides them."""

    def known(self, expr: Expr) -> Size:
        """Return the size of an expression's value; UNKNOWN if nothing limits it."""
        ...

    def sized(self, expr: Expr | None) -> Size:
        """Return the size of an optional argument's value; UNKNOWN if it is absent."""
        ...

    def element(self, expr: Expr) -> Size | None:
        """Return the size of a list's items by its declaration; None if it is no list."""
        ...

    def entry_size(self, expr: Expr) -> Size | None:
        """Return the size of a list's items or a map's values, as far as calls have noted it."""
        ...

    def set_entries(self, expr: Expr, size: Size) -> None:
        """Note the size of the items of an expression's value."""
        ...


Handler = Callable[[Sizes, Expr], CallCost]


def _elementwise(estimator: Sizes, expr: Expr) -> CallCost:
    assert expr.target is not None
    size, element = estimator.known(expr.target), estimator.element(expr.target)
    if element is None:
        return CallCost(size.cost(TRAVERSAL))
    is_text = expr.target.type.params[0].name in {"string", "bytes"}
    return CallCost(capped(size.most * (1 + (element.cost(TRAVERSAL) if is_text else 0))))


def _same_size(estimator: Sizes, expr: Expr) -> CallCost:
    size = estimator.sized(expr.target)
    return CallCost(size.cost(TRAVERSAL), size)


def _replace(estimator: Sizes, expr: Expr) -> CallCost:
    size, old, new = (estimator.sized(one) for one in (expr.target, expr.args[0], expr.args[1]))
    if old.least == 0:
        most = (size.most + 1) * new.most + size.most
    elif new.most <= old.least:
        most = size.most
    else:
        most = math.ceil(size.most / old.least) * new.most
    return CallCost(size.cost(2 * TRAVERSAL), Size(0, capped(most)))


def _split(estimator: Sizes, expr: Expr) -> CallCost:
    size = estimator.sized(expr.target)
    most = expr.args[1].value if len(expr.args) > 1 and expr.args[1].kind == "literal" else size.most
    return CallCost(size.cost(2 * TRAVERSAL), Size(0, most if most >= 0 else size.most))


def _join(estimator: Sizes, expr: Expr) -> CallCost:
    assert expr.target is not None
    count = estimator.known(expr.target)
    size = count.times(estimator.element(expr.target) or UNKNOWN)
    if expr.args:
        size = size.plus(estimator.known(expr.args[0]).times(Size(max(0, count.least - 1), max(0, count.most - 1))))
    return CallCost(size.cost(TRAVERSAL), size)


def _search(estimator: Sizes, expr: Expr) -> CallCost:
    """Return the cost of `find`, `findAll` and `matches`: text times pattern."""
    size = estimator.sized(expr.target if expr.target is not None else expr.args[0])
    pattern = estimator.sized(expr.args[-1 if expr.target is None else 0])
    return CallCost(capped(size.plus(ONE).cost(TRAVERSAL) * pattern.cost(_REGEX)), Size(0, size.most))


def _matches(estimator: Sizes, expr: Expr) -> CallCost:
    return CallCost(_search(estimator, expr).cost)


def _contains(estimator: Sizes, expr: Expr) -> CallCost:
    text, part = estimator.sized(expr.target), estimator.known(expr.args[0])
    return CallCost(capped(text.cost(TRAVERSAL) * part.cost(TRAVERSAL)))


def _affix(estimator: Sizes, expr: Expr) -> CallCost:
    return CallCost(estimator.known(expr.args[0]).cost(TRAVERSAL))


def _validate(estimator: Sizes, expr: Expr) -> CallCost:
    return CallCost(capped(estimator.known(expr.args[0]).cost(TRAVERSAL) * _FORMAT_REGEX * _REGEX))


def _within(estimator: Sizes, expr: Expr) -> CallCost:
    """Return the cost of `containsIP` and `containsCIDR`: addresses have at most 16 bytes, texts are parsed first."""
    extra = 3 if expr.name == "containsCIDR" else 0
    is_text = expr.args[0].type.name == "string"
    return CallCost(capped(4 + extra + (estimator.known(expr.args[0]).cost(TRAVERSAL) if is_text else 0)))


def _format(estimator: Sizes, expr: Expr) -> CallCost:
    return CallCost(estimator.sized(expr.target).cost(TRAVERSAL))


def _concatenate(estimator: Sizes, expr: Expr) -> CallCost:
    left, right = expr.args
    size = estimator.known(left).plus(estimator.known(right))
    one, two = estimator.entry_size(left), estimator.entry_size(right)
    if one is not None and two is not None:
        estimator.set_entries(expr, one.union(two))
    return CallCost(1 if left.type.name == "list" else size.cost(TRAVERSAL), size)


def _to_bytes(estimator: Sizes, expr: Expr) -> CallCost:
    size = estimator.known(expr.args[0])
    return CallCost(size.cost(TRAVERSAL), Size(size.least, capped(size.most * 4)))


def _to_text(estimator: Sizes, expr: Expr) -> CallCost:
    size = estimator.known(expr.args[0])
    return CallCost(size.cost(TRAVERSAL), Size(size.least // 4, size.most))


def _quote(estimator: Sizes, expr: Expr) -> CallCost:
    size = estimator.known(expr.args[0])
    return CallCost(size.cost(TRAVERSAL), Size(size.least + 2, capped(size.most * 2 + 2)))


def _in_list(estimator: Sizes, expr: Expr) -> CallCost:
    return CallCost(estimator.known(expr.args[1]).most)


def _url(estimator: Sizes, expr: Expr) -> CallCost:
    return CallCost(estimator.known(expr.args[0]).cost(TRAVERSAL))


def _sets(factor: int) -> Handler:
    def cost(estimator: Sizes, expr: Expr) -> CallCost:
        pairs = estimator.known(expr.args[0]).times(estimator.known(expr.args[1]))
        return CallCost(capped(pairs.most * factor + 1))

    return cost


MEMBERS: dict[str, Handler] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_CONSTANT, lambda _estimator, _expr: CallCost(1)),
    **dict.fromkeys(("lowerAscii", "upperAscii", "substring", "trim"), _same_size),
    **dict.fromkeys(("find", "findAll"), _search),
    **dict.fromkeys(("startsWith", "endsWith"), _affix),
    **dict.fromkeys(("containsIP", "containsCIDR"), _within),
    "replace": _replace, "split": _split, "join": _join, "matches": _matches, "contains": _contains,
    "validate": _validate, "format": _format,
}  # fmt: skip
OVERLOADS: dict[str, Handler] = {
    **{f"_+_({kind},{kind})": _concatenate for kind in ("string", "bytes", "list")},
    "@in(A,list)": _in_list,
    "bytes(string)": _to_bytes,
    "string(bytes)": _to_text,
    "strings.quote(string)": _quote,
    "url(string)": _url,
    "sets.contains(list,list)": _sets(1),
    "sets.intersects(list,list)": _sets(1),
    "sets.equivalent(list,list)": _sets(2),
}  # fmt: skip
