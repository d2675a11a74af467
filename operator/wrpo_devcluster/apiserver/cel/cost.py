"""Estimator of a rule's greatest cost, in the units of the real server: sizes come from a schema's bounds.

The model is that of cel-go's checker and Kubernetes' libraries. Unbounded sizes are those of the largest request;
a size that nothing bounds is 2**64 - 1, and so is every sum or product beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from wrpo_devcluster.apiserver.cel.call_cost import (
    MEMBERS,
    MOST,
    ONE,
    OVERLOADS,
    TRAVERSAL,
    UNKNOWN,
    CallCost,
    Size,
    Sizes,
    capped,
)
from wrpo_devcluster.apiserver.cel.syntax import Expr
from wrpo_devcluster.apiserver.cel.types import Decl, field_of

LIMIT = 10_000_000
"""Greatest cost of one expression, times the number of its values in a request."""
TOTAL_LIMIT = 100_000_000
"""Greatest cost of all expressions of a schema."""
_LIST, _MAP = 10, 30
_SCALARS = frozenset({"bool", "double", "duration", "int", "timestamp", "uint"})
_COMPARED = tuple(f"_{sign}_({kind}," for sign in ("<", "<=", ">", ">=") for kind in ("string", "bytes"))


Path = tuple[str, ...]


@dataclass(slots=True)
class _Local:
    path: Path
    size: Size | None
    entries: Size | None


class Estimator(Sizes):
    """Estimator of the cost of one checked expression on a value that `root` declares."""

    def __init__(self, root: Decl) -> None:
        self.root = root
        self.paths: dict[int, Path] = {}
        self.sizes: dict[int, Size] = {}
        self.entries: dict[int, Size] = {}
        """Sizes of a list's items, of a map's values."""
        self.keys: dict[int, Size] = {}
        self.locals: dict[str, list[_Local]] = {}

    def cost(self, expr: Expr) -> int:
        """Return the cost of an expression in the worst case, at most MOST."""
        if expr.kind == "literal":
            return 0
        found: int = getattr(self, f"_{expr.kind}")(expr)
        return min(found, MOST)

    def _local(self, name: str) -> _Local | None:
        stack = self.locals.get(name)
        return stack[-1] if stack else None

    def _path(self, expr: Expr) -> Path:
        if expr.kind == "ident" and (local := self._local(expr.name)) is not None:
            return local.path
        return self.paths.get(id(expr), ())

    def _ident(self, expr: Expr) -> int:
        local = self._local(expr.name)
        self.paths[id(expr)] = (expr.name,) if local is None else local.path
        return 1

    def _select(self, expr: Expr) -> int:
        assert expr.target is not None
        found = self.cost(expr.target) + (expr.target.type.name in {"map", "object"})
        self.paths[id(expr)] = (*self._path(expr.target), expr.name)
        return found

    def _has(self, expr: Expr) -> int:
        assert expr.target is not None
        return self.cost(expr.target)

    def _list(self, expr: Expr) -> int:
        found = sum(self.cost(one) for one in expr.args)
        self.entries[id(expr)] = self._union(expr.args)
        return found + _LIST

    def _map(self, expr: Expr) -> int:
        found = sum(self.cost(one) for one in expr.args)
        self.keys[id(expr)], self.entries[id(expr)] = self._union(expr.args[::2]), self._union(expr.args[1::2])
        return found + _MAP

    def _union(self, items: list[Expr]) -> Size:
        found = Size(MOST if items else 0, 0)
        for one in items:
            found = found.union(self.known(one))
        return found

    # Sizes

    def _declared(self, path: Path) -> Size | None:
        """Return the size that the schema declares at a path. The first part of the path is the variable's name."""
        if not path:
            return None
        now: Decl | None = self.root
        for name in path[1:]:
            if now is None:
                return None
            if name in {"@items", "@values"}:
                now = now.elem
            elif name == "@keys":
                now = now.key
            else:
                escaped = field_of(now, name)
                now = now.fields[escaped] if now.fields is not None and escaped is not None else None
        return None if now is None else Size(0, now.max_elements)

    def size(self, expr: Expr) -> Size | None:
        """Return the size of an expression's value; None if nothing limits it."""
        if id(expr) in self.sizes:
            return self.sizes[id(expr)]
        if expr.kind == "literal":
            count = len(expr.value) if isinstance(expr.value, str | bytes) else 1
            return Size(count, count)
        if expr.kind in {"list", "map"}:
            count = len(expr.args) // (2 if expr.kind == "map" else 1)
            return Size(count, count)
        declared = self._declared(self._path(expr))
        if declared is not None:
            self.sizes[id(expr)] = declared
            return declared
        kind = expr.type
        while kind.name == "optional_type" and kind.params:
            kind = kind.params[0]
        if kind.name in _SCALARS:
            return ONE
        local = self._local(expr.name) if expr.kind == "ident" else None
        return None if local is None else local.size

    @override
    def known(self, expr: Expr) -> Size:
        return self.size(expr) or UNKNOWN

    @override
    def entry_size(self, expr: Expr) -> Size | None:
        if id(expr) in self.entries:
            return self.entries[id(expr)]
        local = self._local(expr.name) if expr.kind == "ident" else None
        return None if local is None else local.entries

    @override
    def element(self, expr: Expr) -> Size | None:
        """Return the size of a list's items by its path; None if it is no list."""
        if not expr.type.params:
            return None
        path = self._path(expr)
        return (self._declared((*path, "@items")) if path else None) or UNKNOWN

    @override
    def set_entries(self, expr: Expr, size: Size) -> None:
        self.entries[id(expr)] = size

    # Comprehensions

    def _macro(self, expr: Expr) -> int:
        assert expr.target is not None
        if expr.name.startswith("opt"):
            return self._optional(expr)
        before = self.cost(expr.target)
        self._declare(expr)
        inside = [self.cost(one) for one in expr.args]
        item = self.known(expr.args[-1])
        filtered = self.known(Expr("ident", expr.at, expr.variables[-1], type=expr.args[-1].type))
        for name in expr.variables:
            self.locals[name].pop()
        rounds = self.known(expr.target)
        start, step, result = self._loop(expr, inside)
        if expr.name in {"all", "exists", "exists_one", "existsOne"}:
            self.sizes[id(expr)] = ONE
        else:
            self.sizes[id(expr)] = rounds
            self.entries[id(expr)] = Size(0, filtered.most if expr.name == "filter" else item.most)
        return before + start + result + capped(rounds.most * step)

    def _declare(self, expr: Expr) -> None:
        assert expr.target is not None
        path, is_list = self._path(expr.target), expr.target.type.name == "list"
        values, keys = self.entry_size(expr.target), self.keys.get(id(expr.target))
        single = ("@items", values) if is_list else ("@keys", keys)
        both = [("@indices", ONE) if is_list else ("@keys", keys), ("@items" if is_list else "@values", values)]
        for name, (step, size) in zip(expr.variables, both if len(expr.variables) == 2 else [single], strict=True):
            self.locals.setdefault(name, []).append(_Local((*path, step), size, None))

    @staticmethod
    def _loop(expr: Expr, inside: list[int]) -> tuple[int, int, int]:
        """Return the cost of the start, of each round and of the result of an expanded macro."""
        made = inside[-1] + _LIST + 2
        """The accumulated list, a new one of one item, and their sum."""
        match expr.name:
            case "all":
                return 0, 2 + 1 + inside[0], 1
            case "exists":
                return 0, 3 + 1 + inside[0], 1
            case "exists_one" | "existsOne":
                return 0, inside[0] + 2, 2
            case "filter":
                return _LIST, inside[0] + 1 + _LIST + 2, 1
            case "transformMap":
                return _MAP, sum(inside) + 3, 1
            case _:
                return _LIST, sum(inside[:-1]) + made, 1

    def _optional(self, expr: Expr) -> int:
        assert expr.target is not None
        target = self.cost(expr.target)
        self.locals.setdefault(expr.variables[0], []).append(_Local((), None, None))
        inner = self.cost(expr.args[0])
        self.locals[expr.variables[0]].pop()
        return target + 1 + (_LIST + target + 1 + inner) + (expr.name == "optMap")

    # Calls

    def _call(self, expr: Expr) -> int:
        args = sum(self.cost(one) for one in expr.args)
        if expr.name == "dyn":
            self.sizes[id(expr)] = self.known(expr.args[0])
            return 1 + args
        if expr.name == "_?_:_":
            return self._conditional(expr)
        target = self.cost(expr.target) if expr.target is not None else 0
        calls = [self._function(expr, overload) for overload in expr.overload.split("|")]
        result = None
        for call in calls:
            if call.result is not None:
                result = call.result if result is None else result.union(call.result)
        if expr.name == "_[_]":
            result = self._index(expr)
        result = result if result is not None else self.size(expr)
        if result is not None:
            self.sizes[id(expr)] = result
        return target + args + max(call.cost for call in calls)

    def _index(self, expr: Expr) -> Size | None:
        held = expr.args[0]
        if held.type.name in {"list", "map"}:
            self.paths[id(expr)] = (*self._path(held), "@items" if held.type.name == "list" else "@values")
        return self.entry_size(held)

    def _conditional(self, expr: Expr) -> int:
        condition, then, other = expr.args
        found = self.cost(condition) + max(self.cost(then), self.cost(other))
        self.sizes[id(expr)] = self.known(then).union(self.known(other))
        one, two = self.entry_size(then), self.entry_size(other)
        if one is not None and two is not None:
            self.entries[id(expr)] = one.union(two)
        return found

    def _function(self, expr: Expr, overload: str) -> CallCost:
        own = MEMBERS.get(expr.name) if expr.target is not None else None
        if own is not None:
            return own(self, expr)
        if expr.name in {"_&&_", "_||_"}:
            return CallCost(0)
        if expr.name in {"_==_", "_!=_"} or overload.startswith(_COMPARED):
            smallest = min(self.known(expr.args[0]).most, self.known(expr.args[1]).most)
            return CallCost(capped(smallest * TRAVERSAL))
        handler = OVERLOADS.get(overload)
        return handler(self, expr) if handler is not None else CallCost(1)

    @override
    def sized(self, expr: Expr | None) -> Size:
        return UNKNOWN if expr is None else self.known(expr)


def estimate(expr: Expr, root: Decl) -> int:
    """Return the greatest cost of one evaluation of a checked expression."""
    return Estimator(root).cost(expr)
