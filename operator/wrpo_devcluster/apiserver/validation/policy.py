"""Validation of admission policies and their bindings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wrpo_devcluster.apiserver.apis.errors import (
    Cause,
    duplicate_field,
    invalid_field,
    required_field,
    unsupported_field,
)
from wrpo_devcluster.apiserver.cel.check import RuleTypeError
from wrpo_devcluster.apiserver.validation.cel_rules import compile_untyped
from wrpo_devcluster.apiserver.validation.metadata import qualified_name
from wrpo_devcluster.client import JsonObject

VARIABLES = frozenset({"object", "oldObject", "request", "params", "namespaceObject", "variables", "authorizer"})
"""Names that an expression of a policy may use."""
_REASONS = ("Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized")
_ACTIONS = ("Audit", "Deny", "Warn")
_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")


def validate_policy(obj: JsonObject) -> list[Cause]:
    """Return the faults of a ValidatingAdmissionPolicy."""
    spec = obj["spec"]
    causes: list[Cause] = []
    if spec.get("failurePolicy") not in {"Fail", "Ignore"}:
        causes.append(unsupported_field("spec.failurePolicy", spec.get("failurePolicy"), ("Fail", "Ignore")))
    causes += _parameters(spec.get("paramKind"))
    causes += _constraints(spec.get("matchConstraints"), "spec.matchConstraints", is_required=True)
    if not spec.get("validations") and not spec.get("auditAnnotations"):
        why = "validations or auditAnnotations must contain at least one item"
        causes += [required_field(f"spec.{name}", why) for name in ("validations", "auditAnnotations")]
    for expression, path in _expressions(spec):
        causes += _expression(expression, path, has_parameters=spec.get("paramKind") is not None)
    for index, validation in enumerate(spec.get("validations") or ()):
        causes += _validation(validation, f"spec.validations[{index}]")
    for name in ("matchConditions", "variables"):
        causes += _names(spec.get(name) or (), f"spec.{name}", is_identifier=name == "variables")
    return causes


def validate_policy_binding(obj: JsonObject) -> list[Cause]:
    """Return the faults of a ValidatingAdmissionPolicyBinding."""
    spec = obj["spec"]
    causes = [] if spec.get("policyName") else [required_field("spec.policyName")]
    path, actions = "spec.validationActions", spec.get("validationActions") or []
    if not actions:
        causes.append(required_field(path, "at least one validation action is required"))
    for index, action in enumerate(actions):
        if action not in _ACTIONS:
            causes.append(unsupported_field(f"{path}[{index}]", action, _ACTIONS))
        elif action in actions[:index]:
            causes.append(duplicate_field(f"{path}[{index}]", action))
    if {"Deny", "Warn"} <= set(actions):
        why = (
            "must not contain both Deny and Warn (repeating the same validation failure information in the API"
            " response and headers serves no purpose)"
        )
        causes.append(invalid_field(path, actions, why))
    reference = spec.get("paramRef")
    if reference is not None and bool(reference.get("name")) == (reference.get("selector") is not None):
        causes.append(required_field("spec.paramRef", "one of name or selector must be specified"))
    return causes + _constraints(spec.get("matchResources"), "spec.matchResources", is_required=False)


def _parameters(kind: JsonObject | None) -> list[Cause]:
    if kind is None:
        return []
    return [required_field(f"spec.paramKind.{name}") for name in ("apiVersion", "kind") if not kind.get(name)]


def _constraints(match: JsonObject | None, path: str, *, is_required: bool) -> list[Cause]:
    if match is None:
        return [required_field(path)] if is_required else []
    causes: list[Cause] = []
    if is_required and not match.get("resourceRules"):
        causes.append(required_field(f"{path}.resourceRules"))
    if match.get("matchPolicy") not in {"Equivalent", "Exact"}:
        causes.append(unsupported_field(f"{path}.matchPolicy", match.get("matchPolicy"), ("Equivalent", "Exact")))
    for group in ("resourceRules", "excludeResourceRules"):
        for index, rule in enumerate(match.get(group) or ()):
            causes += _rule(rule, f"{path}.{group}[{index}]")
    return causes


def _rule(rule: JsonObject, path: str) -> list[Cause]:
    causes = []
    for name in ("apiGroups", "apiVersions", "resources", "operations"):
        if not rule.get(name):
            causes.append(required_field(f"{path}.{name}"))
        elif "*" in rule[name] and len(rule[name]) > 1 and name != "resources":
            why = "if '*' is present, must not specify other " + {
                "apiGroups": "API groups", "apiVersions": "API versions", "operations": "operations",
            }[name]  # fmt: skip
            causes.append(invalid_field(f"{path}.{name}", rule[name], why))
    causes += [
        unsupported_field(f"{path}.operations[{index}]", operation, _OPERATIONS)
        for index, operation in enumerate(rule.get("operations") or ())
        if operation not in _OPERATIONS
    ]
    if rule.get("scope") not in {"*", "Cluster", "Namespaced"}:
        causes.append(unsupported_field(f"{path}.scope", rule.get("scope"), ("*", "Cluster", "Namespaced")))
    return causes


def _expressions(spec: JsonObject) -> Iterator[tuple[str, str]]:
    """Yield (expression, path) of every required CEL expression."""
    for group in ("matchConditions", "variables", "validations"):
        for index, entry in enumerate(spec.get(group) or ()):
            yield entry.get("expression", ""), f"spec.{group}[{index}].expression"
            if entry.get("messageExpression"):
                yield entry["messageExpression"], f"spec.{group}[{index}].messageExpression"
    for index, annotation in enumerate(spec.get("auditAnnotations") or ()):
        yield annotation.get("valueExpression", ""), f"spec.auditAnnotations[{index}].valueExpression"


def _expression(expression: str, path: str, *, has_parameters: bool) -> list[Cause]:
    if not expression.strip():
        return [required_field(path, f"{path.rpartition('.')[2]} is not specified")]
    try:
        compile_untyped(expression, VARIABLES if has_parameters else VARIABLES - {"params"})
    except RuleTypeError as problem:
        return [invalid_field(path, expression, f"compilation failed: {problem}")]
    return []


def _validation(validation: JsonObject, path: str) -> list[Cause]:
    causes = []
    message = validation.get("message")
    if message and not message.strip():
        causes.append(invalid_field(f"{path}.message", message, "message must be non-empty if specified"))
    elif message and "\n" in message.strip():
        causes.append(invalid_field(f"{path}.message", message, "message must not contain line breaks"))
    elif not message and "\n" in validation.get("expression", "").strip():
        causes.append(required_field(f"{path}.message", "message must be specified if expression contains line breaks"))
    if validation.get("reason") and validation["reason"] not in _REASONS:
        causes.append(unsupported_field(f"{path}.reason", validation["reason"], _REASONS))
    return causes


def _names(entries: Sequence[JsonObject], path: str, *, is_identifier: bool) -> list[Cause]:
    causes: list[Cause] = []
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        name, at = entry.get("name", ""), f"{path}[{index}].name"
        if not name:
            causes.append(required_field(at))
        elif is_identifier and not name.isidentifier():
            causes.append(invalid_field(at, name, "name is not a valid CEL identifier"))
        elif not is_identifier:
            causes += qualified_name(name, at)
        if name in seen:
            causes.append(duplicate_field(at, name))
        seen.add(name)
    return causes
