"""Type checker of CEL rules: reports unknown names, unknown fields and missing overloads."""

from __future__ import annotations

from wrpo_devcluster.apiserver.cel.library import SIGNATURES, TYPE_NAMES, Signature
from wrpo_devcluster.apiserver.cel.syntax import Expr, RuleSyntaxError, UInt, parse, where
from wrpo_devcluster.apiserver.cel.types import (
    BOOL,
    BYTES,
    DOUBLE,
    DYN,
    INT,
    NULL,
    STRING,
    UINT,
    Decl,
    Type,
    field_of,
    list_of,
    map_of,
    optional_of,
)

_FREE = frozenset({"A", "B"})
_NULLABLE = frozenset({"object", "timestamp", "duration", "optional_type"})
"""Types whose values may be null."""


class RuleTypeError(ValueError):
    """A rule that does not compile; the message is the real server's, with line, column and source line."""


Scope = dict[str, Type]


def is_assignable(wanted: Type, found: Type) -> bool:
    """Return whether a value of type `found` is valid where `wanted` is expected."""
    if "dyn" in {wanted.name, found.name}:
        return True
    if found.name == "null_type":
        return wanted.name in _NULLABLE or wanted.name == "null_type"
    if wanted.name != found.name or wanted.decl is not found.decl or len(wanted.params) != len(found.params):
        return False
    return all(is_assignable(one, other) for one, other in zip(wanted.params, found.params, strict=True))


def _bind(wanted: Type, found: Type, bound: Scope) -> bool:
    """Match an argument with a signature's type and bind its free types."""
    if wanted.name in _FREE:
        known = bound.get(wanted.name)
        if known is None or known.name in {"dyn", "null_type"}:
            bound[wanted.name] = found if known is None or known.name == "null_type" else known
            return known is None or is_assignable(known, found) or is_assignable(found, known)
        return is_assignable(known, found) or is_assignable(found, known)
    if found.name == "dyn" or not wanted.params:
        return is_assignable(wanted, found)
    if wanted.name != found.name or len(wanted.params) != len(found.params):
        return False
    return all(_bind(one, other, bound) for one, other in zip(wanted.params, found.params, strict=True))


def _resolve(wanted: Type, bound: Scope) -> Type:
    if wanted.name in _FREE:
        return bound.get(wanted.name, DYN)
    if not wanted.params:
        return wanted
    return Type(wanted.name, tuple(_resolve(one, bound) for one in wanted.params))


def _overload(name: str, signature: Signature) -> str:
    return f"{name}({','.join(str(one.name) for one in signature.args)})"


class Checker:
    """Checker of one expression, which it annotates with types. Faults raise RuleSyntaxError with their position."""

    def __init__(self, variables: Scope) -> None:
        self.scopes = [variables]
        self.used: set[str] = set()
        """Variables of the outermost scope that the expression reads."""

    def check(self, expr: Expr) -> Type:
        """Return the type of an expression, which it and all parts of it get."""
        expr.type = getattr(self, f"_{expr.kind}")(expr)
        found: Type = expr.type
        return found

    def _literal(self, expr: Expr) -> Type:
        value = expr.value
        if value is None:
            return NULL
        if isinstance(value, UInt):
            return UINT
        known = {bool: BOOL, int: INT, float: DOUBLE, str: STRING, bytes: BYTES}
        return known[type(value)]

    def _ident(self, expr: Expr) -> Type:
        for depth, scope in reversed(list(enumerate(self.scopes))):
            if expr.name in scope:
                if depth == 0:
                    self.used.add(expr.name)
                return scope[expr.name]
        if expr.name in TYPE_NAMES:
            return TYPE_NAMES[expr.name]
        raise RuleSyntaxError(expr.at, f"undeclared reference to '{expr.name}' (in container '')")

    def _field(self, expr: Expr, operand: Type, name: str) -> Type:
        if operand.name == "optional_type":
            return optional_of(self._field(expr, operand.params[0], name))
        if operand.name == "dyn":
            return DYN
        if operand.name == "map":
            return operand.params[1]
        if operand.decl is None or operand.decl.fields is None:
            raise RuleSyntaxError(expr.at, f"type '{operand}' does not support field selection")
        escaped = field_of(operand.decl, name)
        if escaped is None:
            raise RuleSyntaxError(expr.at, f"undefined field '{name}'")
        return operand.decl.fields[escaped].type

    def _select(self, expr: Expr) -> Type:
        assert expr.target is not None
        qualified = _qualified(expr)
        if qualified in TYPE_NAMES and not self._is_declared(qualified.split(".", 1)[0]):
            expr.kind, expr.name, expr.target = "ident", qualified, None
            return TYPE_NAMES[qualified]
        return self._field(expr, self.check(expr.target), expr.name)

    def _has(self, expr: Expr) -> Type:
        assert expr.target is not None
        self._field(expr, self.check(expr.target), expr.name)
        return BOOL

    def _is_declared(self, name: str) -> bool:
        return any(name in scope for scope in self.scopes)

    def _list(self, expr: Expr) -> Type:
        types = [self.check(one) for one in expr.args]
        plain = [
            one.params[0] if index in expr.optional and one.name == "optional_type" else one
            for index, one in enumerate(types)
        ]
        return list_of(self._same(expr.args, plain))

    def _map(self, expr: Expr) -> Type:
        types = [self.check(one) for one in expr.args]
        keys, values = types[::2], types[1::2]
        values = [
            one.params[0] if 2 * index in expr.optional and one.name == "optional_type" else one
            for index, one in enumerate(values)
        ]
        return map_of(self._same(expr.args[::2], keys), self._same(expr.args[1::2], values))

    def _same(self, items: list[Expr], types: list[Type]) -> Type:
        """Return the one type of all items."""
        found = types[0] if types else DYN
        for item, one in zip(items, types, strict=True):
            if not is_assignable(found, one) and not is_assignable(one, found):
                raise RuleSyntaxError(item.at, f"expected type '{found}' but found '{one}'")
            found = one if found.name == "null_type" else found
        return found

    def _call(self, expr: Expr) -> Type:
        if expr.name == "_?._":
            operand = self.check(expr.args[0])
            expr.args[1].type = STRING
            expr.overload = "_?._"
            found = self._field(expr, operand, expr.args[1].value)
            return found if found.name == "optional_type" and operand.name == "optional_type" else optional_of(found)
        name = self._function(expr)
        operands = [*([expr.target] if expr.target is not None else []), *expr.args]
        types = [self.check(one) for one in operands]
        return self._match(expr, name, types)

    def _function(self, expr: Expr) -> str:
        """Return the name of a function in the table. A namespace such as `sets` is part of it, not a receiver."""
        if expr.target is None:
            name = expr.name
        else:
            name = f".{expr.name}"
            qualified = f"{_qualified(expr.target)}.{expr.name}"
            if qualified[0] != "." and qualified in SIGNATURES and not self._is_declared(qualified.split(".", 1)[0]):
                expr.target, expr.name, name = None, qualified, qualified
        if name not in SIGNATURES:
            raise RuleSyntaxError(expr.at, f"undeclared reference to '{expr.name}' (in container '')")
        return name

    def _match(self, expr: Expr, name: str, types: list[Type]) -> Type:
        results, overloads = [], []
        for signature in SIGNATURES[name]:
            bound: Scope = {}
            if len(signature.args) == len(types) and all(
                _bind(wanted, found, bound) for wanted, found in zip(signature.args, types, strict=True)
            ):
                results.append(_resolve(signature.result, bound))
                overloads.append(_overload(name, signature))
        if not results:
            shown = f"'{types[0]}.({', '.join(map(str, types[1:]))})'" if name[0] == "." else _shown(types)
            raise RuleSyntaxError(expr.at, f"found no matching overload for '{expr.name}' applied to {shown}")
        expr.overload = "|".join(overloads)
        return results[0] if all(one == results[0] for one in results) else DYN

    def _macro(self, expr: Expr) -> Type:
        assert expr.target is not None
        over = self.check(expr.target)
        self.scopes.append(dict(zip(expr.variables, self._variable_types(expr, over), strict=True)))
        types = [self.check(one) for one in expr.args]
        self.scopes.pop()
        is_test = expr.name in {"all", "exists", "exists_one", "existsOne", "filter"}
        if (is_test or (not expr.name.startswith("opt") and len(types) == 2)) and not is_assignable(BOOL, types[0]):
            raise RuleSyntaxError(expr.args[0].at, f"expected type 'bool' but found '{types[0]}'")
        return self._macro_result(expr, over, types[-1])

    @staticmethod
    def _variable_types(expr: Expr, over: Type) -> list[Type]:
        is_optional = expr.name.startswith("opt")
        if over.name == "dyn":
            return [DYN] * len(expr.variables)
        if (is_optional and over.name != "optional_type") or (not is_optional and over.name not in {"list", "map"}):
            if is_optional:
                raise RuleSyntaxError(expr.at, f"found no matching overload for 'hasValue' applied to '{over}.()'")
            message = f"expression of type '{over}' cannot be range of a comprehension (must be list, map, or dynamic)"
            raise RuleSyntaxError(expr.target.at if expr.target is not None else expr.at, message)
        if is_optional or len(expr.variables) == 1:
            return [over.params[0]]
        return [INT, over.params[0]] if over.name == "list" else [over.params[0], over.params[1]]

    @staticmethod
    def _macro_result(expr: Expr, over: Type, last: Type) -> Type:
        match expr.name:
            case "filter":
                return over if over.name != "map" else list_of(over.params[0])
            case "map" | "transformList":
                return list_of(last)
            case "transformMap":
                return map_of(over.params[0] if over.name == "map" else INT, last) if over.name != "dyn" else DYN
            case "optMap":
                return optional_of(last)
            case "optFlatMap":
                return last
            case _:
                return BOOL


def _shown(types: list[Type]) -> str:
    return f"'({', '.join(map(str, types))})'"


def _qualified(expr: Expr) -> str:
    """Return `a.b` for a chain of names, else an empty text."""
    if expr.kind == "ident":
        return expr.name
    if expr.kind == "select" and expr.target is not None:
        head = _qualified(expr.target)
        return f"{head}.{expr.name}" if head else ""
    return ""


class Checked:
    """A rule's typed tree."""

    def __init__(self, source: str, variables: Scope) -> None:
        try:
            self.expr = parse(source)
            checker = Checker(variables)
            checker.check(self.expr)
        except RuleSyntaxError as fault:
            raise RuleTypeError(where(source, fault.at, str(fault))) from fault
        self.used = frozenset(checker.used)

    @property
    def type(self) -> Type:
        """Type of the value of the whole expression."""
        found: Type = self.expr.type
        return found


def check_rule(source: str, decl: Decl, *, optional_old: bool = False) -> Checked:
    """Return the typed tree of a rule on a declared value; raise RuleTypeError if it does not compile."""
    old = optional_of(decl.type) if optional_old else decl.type
    return Checked(source, {"self": decl.type, "oldSelf": old})
