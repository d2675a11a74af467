"""CEL rules of custom resources (x-kubernetes-validations), with transition rules and ratcheting."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from wrpo_devcluster.apiserver.apis.errors import Cause
from wrpo_devcluster.apiserver.cel.check import Checked, RuleTypeError, check_rule
from wrpo_devcluster.apiserver.cel.eval import Run, compile_expr
from wrpo_devcluster.apiserver.cel.functions import EvaluationError, Optional, view
from wrpo_devcluster.apiserver.cel.types import DYN, Decl, declare
from wrpo_devcluster.apiserver.schema import typed
from wrpo_devcluster.apiserver.schema.fieldset import key_element
from wrpo_devcluster.apiserver.schema.schema import RULES, Node
from wrpo_devcluster.client import JsonObject

_REASONS = {"FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate"}
_MESSAGE_BYTES = 5 * 1024
"""Longest message of a messageExpression, in characters."""


@dataclass(frozen=True, slots=True)
class _Rule:
    raw: JsonObject
    run: Run | None
    message: Run | None
    uses_old: bool
    fault: str
    """Why it does not compile; empty if it does."""

    @property
    def shown(self) -> str:
        return str(self.raw.get("message") or self.raw["rule"]).strip()


@dataclass(frozen=True, slots=True)
class _Rules:
    decl: Decl | None
    rules: list[_Rule]


def _compile_one(raw: JsonObject, decl: Decl) -> _Rule:
    is_optional = bool(raw.get("optionalOldSelf"))
    try:
        checked: Checked = check_rule(raw["rule"], decl, optional_old=is_optional)
    except RuleTypeError as fault:
        return _Rule(raw, None, None, uses_old=False, fault=str(fault))
    message = None
    if raw.get("messageExpression"):
        try:
            message = compile_expr(check_rule(raw["messageExpression"], decl, optional_old=is_optional).expr)
        except RuleTypeError:
            message = None
    return _Rule(raw, compile_expr(checked.expr), message, "oldSelf" in checked.used, "")


def _compiled(node: Node) -> _Rules:
    if node.compiled is None:
        decl = declare(node.raw, is_root=node.is_root)
        written = [raw for raw in node.raw.get(RULES) or () if str(raw.get("rule", "")).strip()]
        node.compiled = _Rules(decl, [_compile_one(raw, decl) for raw in written] if decl is not None else [])
    found: _Rules = node.compiled
    return found


@lru_cache(maxsize=2048)
def compile_untyped(expression: str, names: frozenset[str]) -> Run:
    """Return an expression as a function of variables of any type; raise RuleTypeError if it does not compile."""
    return compile_expr(Checked(expression, dict.fromkeys(names, DYN)).expr)


def check_rules(
    node: Node, value: Any, old: Any = typed.ABSENT, path: str = "", *, is_kept: bool = False
) -> list[Cause]:
    """Return the faults of `value`. `old` is the stored value, ABSENT on create or if it cannot be identified.

    Ratcheting, as in the real server: only transition rules apply to what an update does not change. If the old
    value cannot be identified, it is unchanged if the value around it is (`is_kept`). The real server evaluates the
    other rules too, and turns their faults into warnings.
    """
    if not node.has_rules or value is None:
        return []
    is_kept = is_kept if old is typed.ABSENT else typed.same(value, old)
    if is_kept and not node.has_transition_rules:
        return []
    causes: list[Cause] = []
    compiled = _compiled(node)
    rules = [rule for rule in compiled.rules if not is_kept or rule.uses_old]
    if rules:
        causes += _check_node(node, replace(compiled, rules=rules), value, old, path)
    if isinstance(value, dict):
        for name, item in value.items():
            child = node.properties.get(name)
            at = f"{path}.{name}" if path else name
            if child is None:
                child, at = node.additional, f"{path}[{name}]"
            if child is not None:
                before = old.get(name, typed.ABSENT) if isinstance(old, dict) else typed.ABSENT
                causes += check_rules(child, item, before, at, is_kept=is_kept)
    elif isinstance(value, list) and node.items is not None:
        previous = _previous_items(node, old)
        for index, item in enumerate(value):
            causes += check_rules(node.items, item, previous(item), f"{path}[{index}]", is_kept=is_kept)
    return causes


def _previous_items(node: Node, old: Any) -> Callable[[Any], Any]:
    """Return a lookup of previous items. Only items of keyed lists can be identified between two states."""
    if node.list_type != "map" or not isinstance(old, list):
        return lambda _item: typed.ABSENT
    known = {key_element(node.list_keys, item, node.key_defaults): item for item in old if isinstance(item, dict)}
    return lambda item: (
        known.get(key_element(node.list_keys, item, node.key_defaults), typed.ABSENT)
        if isinstance(item, dict)
        else typed.ABSENT
    )


def _check_node(node: Node, compiled: _Rules, value: Any, old: Any, path: str) -> list[Cause]:
    causes = []
    scope = {"self": view(compiled.decl, value)}
    has_old = old is not typed.ABSENT and old is not None
    if has_old:
        scope["oldSelf"] = view(compiled.decl, old)
    optional = {**scope, "oldSelf": Optional((scope["oldSelf"],) if has_old else ())}
    for rule in compiled.rules:
        is_optional = bool(rule.raw.get("optionalOldSelf"))
        if rule.uses_old and not has_old and not is_optional:
            continue
        found = _evaluate(node, rule, optional if is_optional else scope, value, path)
        causes += [found] if found is not None else []
    return causes


def _evaluate(node: Node, rule: _Rule, scope: dict[str, Any], value: Any, path: str) -> Cause | None:
    if rule.run is None:
        return Cause("FieldValueInvalid", path or "<nil>", f'Invalid value: "{node.type}": {rule.fault}')
    try:
        if rule.run(scope) is True:
            return None
    except EvaluationError as fault:
        if str(fault).startswith("no such overload"):
            why = f"'{fault}': call arguments did not match a supported operator, function or macro signature for rule"
        else:
            why = f"{fault} evaluating rule"
        text = f'Invalid value: "{node.type}": {why}: {rule.shown}'
        return Cause("FieldValueInvalid", path or "<nil>", text)
    return _cause(node, rule, scope, value, path)


def _message(rule: _Rule, scope: dict[str, Any]) -> str:
    if rule.message is not None:
        try:
            found = rule.message(scope)
        except EvaluationError:
            found = ""
        text = found.strip() if isinstance(found, str) else ""
        if text and "\n" not in text and len(text.encode()) <= _MESSAGE_BYTES:
            return text
    return str(rule.raw["message"]).strip() if rule.raw.get("message") else f"failed rule: {rule.shown}"


def _cause(node: Node, rule: _Rule, scope: dict[str, Any], value: Any, path: str) -> Cause:
    reason = rule.raw.get("reason") or "FieldValueInvalid"
    reason = reason if reason in _REASONS else "FieldValueInvalid"
    message = _message(rule, scope)
    literal = "" if node.type in {"object", "array"} else f"{json.dumps(value, default=str)}: "
    prefix = {
        "FieldValueInvalid": f"Invalid value: {literal}",
        "FieldValueForbidden": "Forbidden: ",
        "FieldValueRequired": "Required value: ",
        "FieldValueDuplicate": f"Duplicate value: {literal}",
    }[reason]
    field = f"{path}{rule.raw.get('fieldPath') or ''}".lstrip(".")
    return Cause(reason, field or "<nil>", prefix + message)
