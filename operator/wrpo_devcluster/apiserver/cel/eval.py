"""Compilation of checked expressions to Python functions of their variables."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from wrpo_devcluster.apiserver.cel.functions import (
    FUNCTIONS,
    EvaluationError,
    Optional,
    Struct,
    TypeValue,
    in_range,
    is_equal,
    type_name,
    view,
)
from wrpo_devcluster.apiserver.cel.library import TYPE_NAMES
from wrpo_devcluster.apiserver.cel.syntax import Expr, UInt
from wrpo_devcluster.apiserver.cel.types import field_of

Scope = dict[str, Any]
Run = Callable[[Scope], Any]
_MISSING: Any = object()
_RELATIONS = {"_<_": operator.lt, "_<=_": operator.le, "_>_": operator.gt, "_>=_": operator.ge}
_ARITHMETIC = {"_+_": operator.add, "_-_": operator.sub, "_*_": operator.mul}


def compile_expr(expr: Expr) -> Run:
    """Return a function that evaluates a checked expression."""
    found: Run = _KINDS[expr.kind](expr)
    return found


def _literal(expr: Expr) -> Run:
    value = expr.value
    return lambda _scope: value


def _ident(expr: Expr) -> Run:
    name = expr.name
    default = TypeValue(name) if name in TYPE_NAMES else _MISSING

    def run(scope: Scope) -> Any:
        found = scope.get(name, default)
        if found is _MISSING:
            raise EvaluationError(f"no such attribute(s): {name}")
        return found

    return run


def _operand(expr: Expr) -> Run:
    assert expr.target is not None
    return compile_expr(expr.target)


def _lookup(held: Any, name: Any) -> Any:
    """Return the field or key of a value; _MISSING if absent. A nullable null counts as unset."""
    if isinstance(held, Struct):
        escaped = field_of(held.decl, name)
        if escaped is None or held.decl.fields is None:
            return _MISSING
        raw = held.raw.get(held.decl.names[escaped])
        return _MISSING if raw is None else view(held.decl.fields[escaped], raw)
    if isinstance(held, dict):
        return held.get(name, _MISSING)
    raise EvaluationError("no such overload")


def _select(expr: Expr) -> Run:
    operand, name = _operand(expr), expr.name

    def run(scope: Scope) -> Any:
        held = operand(scope)
        if isinstance(held, Optional):
            return _optional_entry(held, name)
        found = _lookup(held, name)
        if found is _MISSING:
            raise EvaluationError(f"no such key: {name}")
        return found

    return run


def _optional_entry(held: Any, name: Any) -> Optional:
    if isinstance(held, Optional):
        if not held.parts:
            return held
        held = held.parts[0]
    if isinstance(held, list):
        return Optional((held[name],)) if 0 <= name < len(held) else Optional()
    found = _lookup(held, name)
    return Optional() if found is _MISSING else Optional((found,))


def _has(expr: Expr) -> Run:
    operand, name = _operand(expr), expr.name

    def run(scope: Scope) -> bool:
        held = operand(scope)
        if isinstance(held, Optional):
            return bool(_optional_entry(held, name).parts)
        return _lookup(held, name) is not _MISSING

    return run


def _list(expr: Expr) -> Run:
    parts = [compile_expr(one) for one in expr.args]
    marked = expr.optional

    def run(scope: Scope) -> list[Any]:
        found: list[Any] = []
        for index, part in enumerate(parts):
            value = part(scope)
            if index in marked and isinstance(value, Optional):
                found.extend(value.parts)
            else:
                found.append(value)
        return found

    return run


def _map(expr: Expr) -> Run:
    parts = [compile_expr(one) for one in expr.args]
    marked = expr.optional

    def run(scope: Scope) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for index in range(0, len(parts), 2):
            value = parts[index + 1](scope)
            if index in marked and isinstance(value, Optional):
                found.update({parts[index](scope): one for one in value.parts})
            else:
                found[parts[index](scope)] = value
        return found

    return run


# Operators


def _logic(expr: Expr, *, decisive: bool) -> Run:
    left, right = (compile_expr(one) for one in expr.args)

    def run(scope: Scope) -> bool:
        problem = None
        for part in (left, right):
            try:
                value = part(scope)
            except EvaluationError as fault:
                problem = problem or fault
                continue
            if value is decisive:
                return bool(value)
            if not isinstance(value, bool):
                problem = problem or EvaluationError("no such overload")
        if problem is not None:
            raise problem
        return not decisive

    return run


def _conditional(expr: Expr) -> Run:
    condition, then, other = (compile_expr(one) for one in expr.args)

    def run(scope: Scope) -> Any:
        chosen = condition(scope)
        if not isinstance(chosen, bool):
            raise EvaluationError("no such overload")
        return then(scope) if chosen else other(scope)

    return run


def _as_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _relation(name: str, one: Any, other: Any) -> bool:
    is_fitting = type(one) is type(other) or (_as_number(one) and _as_number(other))
    try:
        if is_fitting:
            return bool(_RELATIONS[name](one, other))
    except TypeError:
        pass
    raise EvaluationError("no such overload")


def _arithmetic(name: str, one: Any, other: Any) -> Any:
    kinds = type_name(one), type_name(other)
    if kinds[0] != kinds[1] and not any("google" in kind for kind in kinds):
        raise EvaluationError("no such overload")
    try:
        found = _ARITHMETIC[name](one, other)
    except (TypeError, OverflowError) as problem:
        raise EvaluationError("no such overload") from problem
    if kinds[0] in {"int", "uint"}:
        in_range(found, kinds[0])
        return UInt(found) if kinds[0] == "uint" else found
    return found


def _divide(name: str, one: Any, other: Any) -> Any:
    kind = type_name(one)
    if kind != type_name(other) or kind not in {"int", "uint", "double"} or (kind == "double" and name == "_%_"):
        raise EvaluationError("no such overload")
    if other == 0:
        if kind != "double":
            raise EvaluationError("division by zero" if name == "_/_" else "modulus by zero")
        return float("nan") if one == 0 or one != one else float("inf") * (1 if one > 0 else -1)  # noqa: PLR0124
    if kind == "double":
        return one / other
    quotient = abs(one) // abs(other) * (1 if (one < 0) == (other < 0) else -1)
    found = in_range(quotient if name == "_/_" else one - quotient * other, kind)
    return UInt(found) if kind == "uint" else found


def _contained(item: Any, held: Any) -> bool:
    if isinstance(held, list):
        return any(is_equal(item, one) for one in held)
    if isinstance(held, dict | Struct):
        return _lookup(held, item) is not _MISSING
    raise EvaluationError("no such overload")


def _indexed(held: Any, at: Any) -> Any:
    if isinstance(held, Optional):
        return _optional_entry(held, at)
    if isinstance(held, list):
        if not 0 <= at < len(held):
            raise EvaluationError(f"index out of bounds: {at}")
        return held[at]
    found = _lookup(held, at)
    if found is _MISSING:
        raise EvaluationError(f"no such key: {at}")
    return found


def _negated(value: Any) -> Any:
    if not _as_number(value):
        raise EvaluationError("no such overload")
    return in_range(-value, "int") if isinstance(value, int) else -value


def _inverted(value: Any) -> bool:
    if not isinstance(value, bool):
        raise EvaluationError("no such overload")
    return not value


_OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: (lambda one, other, _name=name: _relation(_name, one, other)) for name in _RELATIONS},
    **{name: (lambda one, other, _name=name: _arithmetic(_name, one, other)) for name in _ARITHMETIC},
    **{name: (lambda one, other, _name=name: _divide(_name, one, other)) for name in ("_/_", "_%_")},
    "_==_": is_equal,
    "_!=_": lambda one, other: not is_equal(one, other),
    "@in": _contained,
    "_[_]": _indexed,
    "_[?_]": _optional_entry,
    "_?._": _optional_entry,
    "-_": _negated,
    "!_": _inverted,
}


def _call(expr: Expr) -> Run:
    if expr.name in {"_&&_", "_||_"}:
        return _logic(expr, decisive=expr.name == "_||_")
    if expr.name == "_?_:_":
        return _conditional(expr)
    parts = [compile_expr(one) for one in expr.children()]
    name = expr.name
    function = _OPERATORS.get(name) or FUNCTIONS.get(name)

    def run(scope: Scope) -> Any:
        values = [part(scope) for part in parts]
        if function is None:
            raise EvaluationError(f"the function {name} is not known to this server")
        try:
            return function(*values)
        except (TypeError, AttributeError) as problem:
            raise EvaluationError("no such overload") from problem

    return run


# Macros


def _rounds(expr: Expr, held: Any) -> Iterable[tuple[Any, ...]]:
    """Yield the values of the variables of each round."""
    if isinstance(held, Struct):
        held = {name: _lookup(held, name) for name in held.decl.fields or ()}
    if not isinstance(held, list | dict):
        raise EvaluationError("no such overload")
    if len(expr.variables) == 2:
        return list(enumerate(held)) if isinstance(held, list) else list(held.items())
    return [(one,) for one in held]


def _macro(expr: Expr) -> Run:
    operand, parts, names = _operand(expr), [compile_expr(one) for one in expr.args], expr.variables
    finish = _MACROS[expr.name]
    is_optional = expr.name.startswith("opt")

    def run(scope: Scope) -> Any:
        held = operand(scope)
        if is_optional:
            return _opt(expr.name, held, lambda value: parts[0]({**scope, names[0]: value}))
        scopes = [{**scope, **dict(zip(names, values, strict=True))} for values in _rounds(expr, held)]
        return finish(expr, parts, scopes)

    return run


def _opt(name: str, held: Any, convert: Callable[[Any], Any]) -> Any:
    if not isinstance(held, Optional):
        raise EvaluationError("no such overload")
    if not held.parts:
        return held
    found = convert(held.parts[0])
    return Optional((found,)) if name == "optMap" else found


def _quantified(*, decisive: bool) -> Callable[..., bool]:
    def run(_expr: Expr, parts: list[Run], scopes: list[Scope]) -> bool:
        problem = None
        for scope in scopes:
            try:
                if parts[0](scope) is decisive:
                    return bool(decisive)
            except EvaluationError as fault:
                problem = problem or fault
        if problem is not None:
            raise problem
        return not decisive

    return run


def _one(_expr: Expr, parts: list[Run], scopes: list[Scope]) -> bool:
    return sum(parts[0](scope) is True for scope in scopes) == 1


def _filtered(expr: Expr, parts: list[Run], scopes: list[Scope]) -> list[Any]:
    return [scope[expr.variables[-1]] for scope in scopes if parts[0](scope) is True]


def _mapped(_expr: Expr, parts: list[Run], scopes: list[Scope]) -> list[Any]:
    return [parts[-1](scope) for scope in scopes if len(parts) == 1 or parts[0](scope) is True]


def _mapping(expr: Expr, parts: list[Run], scopes: list[Scope]) -> dict[Any, Any]:
    chosen = [scope for scope in scopes if len(parts) == 1 or parts[0](scope) is True]
    return {scope[expr.variables[0]]: parts[-1](scope) for scope in chosen}


_MACROS: dict[str, Callable[[Expr, list[Run], list[Scope]], Any]] = {
    "all": _quantified(decisive=False), "exists": _quantified(decisive=True), "exists_one": _one, "existsOne": _one,
    "filter": _filtered, "map": _mapped, "transformList": _mapped, "transformMap": _mapping,
    "optMap": _mapped, "optFlatMap": _mapped,
}  # fmt: skip
_KINDS: dict[str, Callable[[Expr], Run]] = {
    "literal": _literal, "ident": _ident, "select": _select, "has": _has, "list": _list, "map": _map, "call": _call,
    "macro": _macro,
}  # fmt: skip
