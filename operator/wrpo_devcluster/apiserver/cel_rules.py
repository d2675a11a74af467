"""x-kubernetes-validations: CEL rules of custom resources, with transition rules."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cel

from wrpo_devcluster.apiserver import quantity, typed
from wrpo_devcluster.apiserver.errors import Cause
from wrpo_devcluster.apiserver.fieldset import key_element
from wrpo_devcluster.apiserver.schema import Node
from wrpo_devcluster.client import JsonObject

_REASONS = {"FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate"}
_RESERVED = {
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import",
    "let", "loop", "package", "namespace", "return", "var", "void", "while",
}  # fmt: skip
_IDENTIFIER = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


class RuleError(ValueError):
    """A rule that does not compile."""


@lru_cache(maxsize=2048)
def compile_rule(rule: str) -> cel.Program:
    try:
        return cel.compile(rule)
    except ValueError as problem:
        raise RuleError(str(problem)) from problem


def _uses_old(program: cel.Program) -> bool:
    return "oldSelf" in program.variables()


def escape(name: str) -> str | None:
    """How a property is called in rules; None where it cannot be reached."""
    if name in _RESERVED:
        return f"__{name}__"
    escaped = (
        name.replace("__", "__underscores__").replace(".", "__dot__").replace("-", "__dash__").replace("/", "__slash__")
    )
    return escaped if _IDENTIFIER.match(escaped) else None


def cel_value(node: Node, value: Any) -> Any:
    """Return the value as rules see it: declared properties under their escaped names, numbers as their schema says."""
    if isinstance(value, dict):
        out = {}
        for name, item in value.items():
            child = node.properties.get(name)
            if child is not None:
                shown = escape(name)
                if shown is not None and not (item is None and child.nullable):
                    out[shown] = cel_value(child, item)
            elif node.additional is not None:
                out[name] = cel_value(node.additional, item)
        return out
    if isinstance(value, list):
        return [cel_value(node.items, item) for item in value] if node.items is not None else value
    if node.type == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _split(text: str, separator: str) -> list[str]:
    return text.split(separator) if separator else list(text)


def _find(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    return match.group(0) if match else ""


def _is_quantity(text: str) -> bool:
    try:
        quantity.parse(text)
    except ValueError:
        return False
    return True


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "split": _split,
    "lowerAscii": lambda text: text.lower(),
    "upperAscii": lambda text: text.upper(),
    "trim": lambda text: text.strip(),
    "replace": lambda text, old, new: text.replace(old, new),
    "substring": lambda text, start, end=None: text[start:end],
    "indexOf": lambda text, part: text.index(part) if part in text else -1,
    "lastIndexOf": lambda text, part: text.rindex(part) if part in text else -1,
    "join": lambda items, separator="": separator.join(items),
    "find": _find,
    "findAll": lambda text, pattern: [match.group(0) for match in re.finditer(pattern, text)],
    "sum": sum,
    "isSorted": lambda items: items == sorted(items),
    "isQuantity": _is_quantity,
}


def _context(variables: dict[str, Any]) -> cel.Context:
    return cel.Context(variables=variables, functions=_FUNCTIONS)


def check_rules(node: Node, value: Any, old: Any = typed.ABSENT, path: str = "") -> list[Cause]:
    """Faults of `value`; `old` is the stored value, ABSENT on create or where it cannot be told which it was."""
    causes: list[Cause] = []
    rules = node.raw.get("x-kubernetes-validations")
    if rules and value is not None:
        causes += _check_node(node, rules, value, old, path)
    if isinstance(value, dict):
        for name, item in value.items():
            child = node.properties.get(name) or node.additional
            if child is not None and item is not None:
                before = old.get(name, typed.ABSENT) if isinstance(old, dict) else typed.ABSENT
                causes += check_rules(child, item, before, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and node.items is not None and _has_rules(node.items):
        previous = _previous_items(node, old)
        for index, item in enumerate(value):
            before = previous(item)
            causes += check_rules(node.items, item, before, f"{path}[{index}]")
    return causes


def _has_rules(node: Node) -> bool:
    below = [
        *node.properties.values(),
        *([node.items] if node.items else []),
        *([node.additional] if node.additional else []),
    ]
    return bool(node.raw.get("x-kubernetes-validations")) or any(map(_has_rules, below))


def _previous_items(node: Node, old: Any) -> Callable[[Any], Any]:
    """Only items of keyed lists can be told apart between two states."""
    if node.list_type != "map" or not isinstance(old, list):
        return lambda _item: typed.ABSENT
    known = {key_element(node.list_keys, item, node.key_defaults): item for item in old if isinstance(item, dict)}
    return lambda item: (
        known.get(key_element(node.list_keys, item, node.key_defaults), typed.ABSENT)
        if isinstance(item, dict)
        else typed.ABSENT
    )


def _check_node(node: Node, rules: list[JsonObject], value: Any, old: Any, path: str) -> list[Cause]:
    causes = []
    variables = {"self": cel_value(node, value)}
    if old is not typed.ABSENT:
        variables["oldSelf"] = cel_value(node, old)
    for rule in rules:
        program = compile_rule(rule["rule"])
        if _uses_old(program):
            if rule.get("optionalOldSelf"):
                wrapped = (
                    cel.OptionalValue.of(variables["oldSelf"]) if "oldSelf" in variables else cel.OptionalValue.none()
                )
                scope = {**variables, "oldSelf": wrapped}
            elif "oldSelf" not in variables:
                continue
            else:
                scope = variables
        else:
            scope = variables
        try:
            passed = program.execute(_context(scope)) is True
            failure = ""
        except Exception as problem:  # noqa: BLE001  (the library raises many types; all mean the rule failed)
            passed, failure = False, str(problem)
        if not passed:
            causes.append(_cause(rule, scope, value, path, failure))
    return causes


def _cause(rule: JsonObject, scope: dict[str, Any], value: Any, path: str, failure: str) -> Cause:
    message = rule.get("message") or f"failed rule: {rule['rule']}"
    if "messageExpression" in rule:
        try:
            found = compile_rule(rule["messageExpression"]).execute(_context(scope))
            message = found if isinstance(found, str) and found else message
        except Exception:  # noqa: BLE001  (a message that cannot be made falls back to the fixed one)
            message = rule.get("message") or message
    if failure:
        message = f"{message} (evaluation failed: {failure})"
    field = path + (rule.get("fieldPath") or "")
    reason = rule.get("reason", "FieldValueInvalid")
    reason = reason if reason in _REASONS else "FieldValueInvalid"
    prefix = {
        "FieldValueInvalid": "Invalid value: ",
        "FieldValueForbidden": "Forbidden: ",
        "FieldValueRequired": "Required value: ",
        "FieldValueDuplicate": f"Duplicate value: {json.dumps(value, default=str)}: ",
    }[reason]
    return Cause(reason, field.lstrip(".") or "<nil>", prefix + message)
