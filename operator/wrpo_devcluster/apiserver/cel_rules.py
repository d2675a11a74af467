"""x-kubernetes-validations: CEL rules of custom resources, with transition rules and ratcheting."""

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
from wrpo_devcluster.apiserver.schema import META, RULES, Node
from wrpo_devcluster.client import JsonObject

_REASONS = {"FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate"}
_RESERVED = {
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import",
    "let", "loop", "package", "namespace", "return", "var", "void", "while",
}  # fmt: skip
_IDENTIFIER = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_SELF = re.compile(r"\b(?:self|oldSelf)\b(?:\s*\.\s*([A-Za-z_]\w*)(?!\w)(?!\s*\())?")
_METADATA = f"{META}.ObjectMeta"
_METADATA_SHOWN = frozenset({"name", "generateName"})
"""All that rules may see of an object's metadata."""


class RuleError(ValueError):
    """A rule that does not compile."""


@lru_cache(maxsize=2048)
def compile_rule(rule: str) -> cel.Program:
    try:
        return cel.compile(rule)
    except ValueError as problem:
        raise RuleError(str(problem)) from problem


@lru_cache(maxsize=2048)
def uses_old(rule: str) -> bool:
    """Is it a transition rule?"""
    return "oldSelf" in compile_rule(rule).variables()


@lru_cache(maxsize=2048)
def fields_read(expression: str) -> frozenset[str] | None:
    """Fields of self (and oldSelf) that an expression can see; None where it may look at self as a whole.

    Invariant: an expression has the same value for two selves that agree in these fields.
    """
    names = [match[1] for match in _SELF.finditer(expression)]
    return None if None in names else frozenset(names)


@lru_cache(maxsize=4096)
def escape(name: str) -> str | None:
    """How a property is called in rules; None where it cannot be reached."""
    if name in _RESERVED:
        return f"__{name}__"
    escaped = (
        name.replace("__", "__underscores__").replace(".", "__dot__").replace("-", "__dash__").replace("/", "__slash__")
    )
    return escaped if _IDENTIFIER.match(escaped) else None


def cel_value(node: Node, value: Any, only: frozenset[str] | None = None) -> Any:
    """Return the value as rules see it: declared properties under their escaped names, numbers as their schema says.

    With `only`, of an object just the fields so called.
    """
    if isinstance(value, dict):
        if node.definition == _METADATA:
            only = _METADATA_SHOWN
        out = {}
        for name, item in value.items():
            child = node.properties.get(name)
            if child is not None:
                shown = escape(name)
                is_seen = shown is not None and (only is None or shown in only)
                if is_seen and not (item is None and child.nullable):
                    out[shown] = cel_value(child, item)
            elif node.additional is not None and (only is None or name in only):
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


def check_rules(
    node: Node, value: Any, old: Any = typed.ABSENT, path: str = "", *, is_kept: bool = False
) -> list[Cause]:
    """Faults of `value`; `old` is the stored value, ABSENT on create or where it cannot be told which it was.

    Ratcheting, as in the real server: what an update leaves as it was is asked transition rules only. Where the old
    value cannot be told, it was left if the value around it was (`is_kept`). The real server evaluates the other rules
    too, and turns their faults into warnings.
    """
    if not node.has_rules or value is None:
        return []
    is_kept = is_kept if old is typed.ABSENT else typed.same(value, old)
    if is_kept and not node.has_transition_rules:
        return []
    causes: list[Cause] = []
    rules = [rule for rule in node.raw.get(RULES) or () if not is_kept or uses_old(rule["rule"])]
    if rules:
        causes += _check_node(node, rules, value, old, path)
    if isinstance(value, dict):
        for name, item in value.items():
            child = node.properties.get(name) or node.additional
            if child is not None:
                before = old.get(name, typed.ABSENT) if isinstance(old, dict) else typed.ABSENT
                causes += check_rules(child, item, before, f"{path}.{name}" if path else name, is_kept=is_kept)
    elif isinstance(value, list) and node.items is not None:
        previous = _previous_items(node, old)
        for index, item in enumerate(value):
            causes += check_rules(node.items, item, previous(item), f"{path}[{index}]", is_kept=is_kept)
    return causes


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


def _fields_of(expressions: list[str]) -> frozenset[str] | None:
    """Fields that these expressions can see; None for all."""
    found: set[str] = set()
    for expression in expressions:
        fields = fields_read(expression)
        if fields is None:
            return None
        found |= fields
    return frozenset(found)


def _check_node(node: Node, rules: list[JsonObject], value: Any, old: Any, path: str) -> list[Cause]:
    causes = []
    expressions = [rule[name] for rule in rules for name in ("rule", "messageExpression") if rule.get(name)]
    only = _fields_of(expressions)
    variables = {"self": cel_value(node, value, only)}
    if old is not typed.ABSENT and any("oldSelf" in expression for expression in expressions):
        variables["oldSelf"] = cel_value(node, old, only)
    plain = _context(variables)
    for rule in rules:
        context = plain
        if uses_old(rule["rule"]):
            if rule.get("optionalOldSelf"):
                wrapped = (
                    cel.OptionalValue.of(variables["oldSelf"]) if "oldSelf" in variables else cel.OptionalValue.none()
                )
                context = _context({**variables, "oldSelf": wrapped})
            elif "oldSelf" not in variables:
                continue
        try:
            passed = compile_rule(rule["rule"]).execute(context) is True
            failure = ""
        except Exception as problem:  # noqa: BLE001  (the library raises many types; all mean the rule failed)
            passed, failure = False, str(problem)
        if not passed:
            causes.append(_cause(rule, context, value, path, failure))
    return causes


def _cause(rule: JsonObject, context: cel.Context, value: Any, path: str, failure: str) -> Cause:
    message = rule.get("message") or f"failed rule: {rule['rule']}"
    if "messageExpression" in rule:
        try:
            found = compile_rule(rule["messageExpression"]).execute(context)
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
