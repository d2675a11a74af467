"""Validation of a CRD's CEL rules: form, types, cost, and use of oldSelf."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from wrpo_devcluster.apiserver.apis.errors import (
    Cause,
    forbidden_field,
    invalid_field,
    required_field,
    unsupported_field,
)
from wrpo_devcluster.apiserver.cel import cost as cel_cost
from wrpo_devcluster.apiserver.cel.check import Checked, RuleTypeError, check_rule
from wrpo_devcluster.apiserver.cel.types import BOOL, STRING, Decl, cardinality, declare
from wrpo_devcluster.apiserver.schema.schema import RULES
from wrpo_devcluster.client import JsonObject

_REASONS = ("FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired")
_TOLD = 4
"""Number of the most expensive rules that a refusal names."""
_PATH = re.compile(r"\.(?P<name>[^.\[\]']+|'(?:[^'\\]|\\.)*')|\['(?P<quoted>(?:[^'\\]|\\.)*)'\]")


def form(raw: JsonObject, path: str) -> list[Cause]:
    """Return the faults of rules that show without parsing the expressions."""
    causes: list[Cause] = []
    for index, rule in enumerate(raw.get(RULES) or ()):
        causes += _texts(rule, f"{path}.{RULES}[{index}]")
        causes += _field_path(rule, raw, f"{path}.{RULES}[{index}].fieldPath")
    return causes


def _texts(rule: JsonObject, path: str) -> list[Cause]:
    text, message = str(rule.get("rule") or "").strip(), rule.get("message") or ""
    causes = []
    if not text:
        causes.append(required_field(f"{path}.rule", "rule is not specified"))
    elif message and not message.strip():
        causes.append(invalid_field(f"{path}.message", message, "must be non-empty if specified"))
    elif "\n" in message.strip():
        causes.append(invalid_field(f"{path}.message", message, "must not contain line breaks"))
    elif "\n" in text and not message.strip():
        causes.append(required_field(f"{path}.message", "must be specified if rule contains line breaks"))
    expression = rule.get("messageExpression") or ""
    if expression and not expression.strip():
        causes.append(required_field(f"{path}.messageExpression", "must be non-empty if specified"))
    reason = rule.get("reason")
    if reason is not None and reason not in _REASONS:
        causes.append(unsupported_field(f"{path}.reason", reason, _REASONS))
    return causes


def _field_path(rule: JsonObject, raw: JsonObject, path: str) -> list[Cause]:
    text = rule.get("fieldPath") or ""
    if not text:
        return []
    if not text.strip():
        return [invalid_field(path, text, "must be non-empty if specified")]
    if "\n" in text:
        return [invalid_field(path, text, "must not contain line breaks")]
    _, why = follow(text, raw)
    return [invalid_field(path, text, f"fieldPath must be a valid path: {why}")] if why else []


def follow(text: str, raw: JsonObject, *, brackets: bool = True) -> tuple[JsonObject, str]:
    """Return the schema of the field that a path names, and why it is invalid; empty if it names a field."""
    at, now = 0, raw
    while at < len(text):
        match = _PATH.match(text, at)
        if match is None or (match["name"] is None and not brackets):
            return {}, f"expected {'[ or ' if brackets else ''}. but got: {text[at:]}"
        name = match["name"] if match["name"] is not None else re.sub(r"\\(.)", r"\1", match["quoted"])
        extra = now.get("additionalProperties")
        found = (now.get("properties") or {}).get(name) if now.get("properties") else extra
        if not isinstance(found, dict):
            return {}, "does not refer to a valid field"
        now, at = found, match.end()
    return now, ""


@dataclass(slots=True)
class _Costs:
    """Total cost of the rules of a schema."""

    total: int = 0
    most: list[tuple[int, str]] = field(default_factory=list)

    def add(self, cost: int, path: str) -> None:
        self.total += cost
        if cost >= cel_cost.TOTAL_LIMIT // 100:
            self.most = sorted([*self.most, (cost, path)], reverse=True)[:_TOLD]


@dataclass(frozen=True, slots=True)
class _Place:
    raw: JsonObject
    path: str
    count: int | None = 1
    """Greatest number of such values in one object; None if nothing bounds it."""
    uncorrelated: str = ""
    """Enclosing list or atomic map whose parts an update cannot identify; empty if there is none."""
    is_root: bool = False


def validate(raw: JsonObject, path: str) -> list[Cause]:
    """Return the faults of all rules of a schema whose form is valid."""
    costs = _Costs()
    causes = _walk(_Place(raw, path, is_root=True), costs)
    if costs.total > cel_cost.TOTAL_LIMIT:
        told = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"
        causes += [forbidden_field(at, told) for _, at in costs.most]
        what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema"
        causes.append(forbidden_field(path, _exceeds(what, costs.total, cel_cost.TOTAL_LIMIT)))
    return causes


def _exceeds(what: str, cost: int, limit: int) -> str:
    factor = cost / limit
    shown = "more than 100x" if factor > 100 else f"{max(factor, 1.1):.1f}x"
    return (
        f"{what} exceeds budget by factor of {shown} (try simplifying the rule, or adding maxItems, maxProperties, and"
        " maxLength where arrays, maps, and strings are declared)"
    )


def _walk(place: _Place, costs: _Costs) -> list[Cause]:
    causes = _rules(place, costs) if place.raw.get(RULES) else []
    for child in _children(place):
        causes += _walk(child, costs)
    return causes


def _children(place: _Place) -> list[_Place]:
    raw, path = place.raw, place.path
    within = place.uncorrelated or (path if raw.get("x-kubernetes-map-type") == "atomic" else "")
    found = [
        _Place(child, f"{path}.properties[{name}]", place.count, within)
        for name, child in (raw.get("properties") or {}).items()
    ]
    for name, bound in (("items", "maxItems"), ("additionalProperties", "maxProperties")):
        if isinstance(raw.get(name), dict):
            most = raw.get(bound)
            count = None if most is None or place.count is None else place.count * max(0, most)
            is_told_apart = name != "items" or raw.get("x-kubernetes-list-type") == "map"
            found.append(
                _Place(raw[name], f"{path}.{name}", count, place.uncorrelated or ("" if is_told_apart else path))
            )
    return found


def _rules(place: _Place, costs: _Costs) -> list[Cause]:
    is_root = place.is_root or bool(place.raw.get("x-kubernetes-embedded-resource"))
    decl = declare(place.raw, is_root=is_root)
    if decl is None:
        why = "Internal error: failed to construct type information for x-kubernetes-validations rules"
        return [Cause("InternalError", f"{place.path}.{RULES}", why)]
    causes: list[Cause] = []
    for index, rule in enumerate(place.raw[RULES]):
        causes += _rule(rule, decl, place, f"{place.path}.{RULES}[{index}]", costs)
    return causes


def _rule(rule: JsonObject, decl: Decl, place: _Place, path: str, costs: _Costs) -> list[Cause]:
    shown = {
        "Rule": rule["rule"], "Message": rule.get("message", ""),
        "MessageExpression": rule.get("messageExpression", ""),
        "Reason": rule.get("reason"), "FieldPath": rule.get("fieldPath", ""),
        "OptionalOldSelf": rule.get("optionalOldSelf"),
    }  # fmt: skip
    is_optional = bool(rule.get("optionalOldSelf"))
    try:
        checked = check_rule(rule["rule"], decl, optional_old=is_optional)
    except RuleTypeError as fault:
        causes = [invalid_field(f"{path}.rule", shown, f"compilation failed: {fault}")]
    else:
        causes = _boolean(checked, shown, path) or _expense(checked, decl, place, path, costs)
        causes += _looks_back(checked, rule, place, path)
    if rule.get("messageExpression"):
        causes += _message(rule, shown, decl, path, costs)
    return causes


def _boolean(checked: Checked, shown: JsonObject, path: str) -> list[Cause]:
    if checked.type != BOOL:
        return [invalid_field(f"{path}.rule", shown, "cel expression must evaluate to a bool")]
    return []


def _expense(checked: Checked, decl: Decl, place: _Place, path: str, costs: _Costs) -> list[Cause]:
    count = place.count if place.count is not None else cardinality(decl)
    cost = cel_cost.estimate(checked.expr, decl) * count
    costs.add(cost, f"{path}.rule")
    if cost <= cel_cost.LIMIT:
        return []
    return [forbidden_field(f"{path}.rule", _exceeds("estimated rule cost", cost, cel_cost.LIMIT))]


def _looks_back(checked: Checked, rule: JsonObject, place: _Place, path: str) -> list[Cause]:
    if "oldSelf" not in checked.used:
        if rule.get("optionalOldSelf") is None:
            return []
        why = "may not be set if oldSelf is not used in rule"
        return [invalid_field(f"{path}.optionalOldSelf", rule["optionalOldSelf"], why)]
    if not place.uncorrelated:
        return []
    why = f"oldSelf cannot be used on the uncorrelatable portion of the schema within {place.uncorrelated}"
    return [invalid_field(f"{path}.rule", rule["rule"], why)]


def _message(rule: JsonObject, shown: JsonObject, decl: Decl, path: str, costs: _Costs) -> list[Cause]:
    at = f"{path}.messageExpression"
    try:
        checked = check_rule(rule["messageExpression"], decl, optional_old=bool(rule.get("optionalOldSelf")))
    except RuleTypeError as fault:
        return [invalid_field(at, shown, f"messageExpression compilation failed: {fault}")]
    if checked.type != STRING:
        return [invalid_field(at, shown, "messageExpression must evaluate to a string")]
    cost = cel_cost.estimate(checked.expr, decl)
    costs.add(cost, at)
    if cost <= cel_cost.LIMIT:
        return []
    return [forbidden_field(at, _exceeds("estimated messageExpression cost", cost, cel_cost.LIMIT))]
