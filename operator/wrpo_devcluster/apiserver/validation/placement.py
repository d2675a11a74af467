"""Validation of pod placement: node selectors, affinity, tolerations, topology spread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wrpo_devcluster.apiserver.apis.errors import (
    Cause,
    duplicate_field,
    forbidden_field,
    invalid_field,
    required_field,
    unsupported_field,
)
from wrpo_devcluster.apiserver.validation.metadata import label_selector, label_value, labels, qualified_name
from wrpo_devcluster.client import JsonObject

_REQUIRED, _PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_SET_OPERATORS, _ORDER_OPERATORS = frozenset({"In", "NotIn"}), frozenset({"Gt", "Lt"})
_NODE_OPERATORS = ("DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn")


def placement(spec: JsonObject, path: str) -> list[Cause]:
    """Return the faults of the fields of a pod spec that select nodes."""
    causes = labels(spec.get("nodeSelector") or {}, f"{path}.nodeSelector")
    affinity = spec.get("affinity") or {}
    causes += _node_affinity(affinity.get("nodeAffinity") or {}, f"{path}.affinity.nodeAffinity")
    for name in ("podAffinity", "podAntiAffinity"):
        causes += _pod_affinity(affinity.get(name) or {}, f"{path}.affinity.{name}")
    causes += _tolerations(spec.get("tolerations") or (), f"{path}.tolerations")
    return causes + _spread(spec.get("topologySpreadConstraints") or (), f"{path}.topologySpreadConstraints")


def _weighted(entries: Iterable[JsonObject], path: str) -> Iterator[tuple[JsonObject, str, list[Cause]]]:
    """Yield each preferred term with its path and the faults of its weight."""
    for index, entry in enumerate(entries):
        at, weight = f"{path}[{index}]", entry.get("weight", 0)
        faults = [] if 1 <= weight <= 100 else [invalid_field(f"{at}.weight", weight, "must be in the range 1-100")]
        yield entry, at, faults


def _node_affinity(affinity: JsonObject, path: str) -> list[Cause]:
    causes: list[Cause] = []
    required = affinity.get(_REQUIRED)
    if required is not None:
        at = f"{path}.{_REQUIRED}.nodeSelectorTerms"
        if not required.get("nodeSelectorTerms"):
            causes.append(required_field(at, "must have at least one node selector term"))
        for index, term in enumerate(required.get("nodeSelectorTerms") or ()):
            causes += _node_term(term, f"{at}[{index}]")
    for entry, at, faults in _weighted(affinity.get(_PREFERRED) or (), f"{path}.{_PREFERRED}"):
        causes += faults + _node_term(entry.get("preference") or {}, f"{at}.preference")
    return causes


def _node_term(term: JsonObject, path: str) -> list[Cause]:
    causes: list[Cause] = []
    for index, requirement in enumerate(term.get("matchExpressions") or ()):
        at = f"{path}.matchExpressions[{index}]"
        causes += _node_values(requirement, at)
        causes += qualified_name(requirement.get("key", ""), f"{at}.key")
    for index, requirement in enumerate(term.get("matchFields") or ()):
        at = f"{path}.matchFields[{index}]"
        if requirement.get("operator") not in _SET_OPERATORS:
            causes.append(unsupported_field(f"{at}.operator", requirement.get("operator"), sorted(_SET_OPERATORS)))
        elif len(requirement.get("values") or ()) != 1:
            why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"
            causes.append(required_field(f"{at}.values", why))
        if requirement.get("key") != "metadata.name":
            causes.append(invalid_field(f"{at}.key", requirement.get("key"), "not a valid field selector key"))
    return causes


def _node_values(requirement: JsonObject, path: str) -> list[Cause]:
    operator, values = requirement.get("operator", ""), requirement.get("values") or []
    if operator in _SET_OPERATORS:
        why = "must be specified when `operator` is 'In' or 'NotIn'"
        return [] if values else [required_field(f"{path}.values", why)]
    if operator in _ORDER_OPERATORS:
        why = "must be specified single value when `operator` is 'Lt' or 'Gt'"
        return [] if len(values) == 1 else [required_field(f"{path}.values", why)]
    if operator in _NODE_OPERATORS:
        why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
        return [forbidden_field(f"{path}.values", why)] if values else []
    return [invalid_field(f"{path}.operator", operator, "not a valid selector operator")]


def _pod_affinity(affinity: JsonObject, path: str) -> list[Cause]:
    causes: list[Cause] = []
    for index, term in enumerate(affinity.get(_REQUIRED) or ()):
        causes += _pod_term(term, f"{path}.{_REQUIRED}[{index}]")
    for entry, at, faults in _weighted(affinity.get(_PREFERRED) or (), f"{path}.{_PREFERRED}"):
        causes += faults + _pod_term(entry.get("podAffinityTerm") or {}, f"{at}.podAffinityTerm")
    return causes


def _pod_term(term: JsonObject, path: str) -> list[Cause]:
    causes = label_selector(term.get("labelSelector"), f"{path}.labelSelector")
    causes += label_selector(term.get("namespaceSelector"), f"{path}.namespaceSelector")
    key = term.get("topologyKey", "")
    if not key:
        return [*causes, required_field(f"{path}.topologyKey", "can not be empty")]
    return causes + qualified_name(key, f"{path}.topologyKey")


def _tolerations(tolerations: Iterable[JsonObject], path: str) -> list[Cause]:
    causes: list[Cause] = []
    for index, toleration in enumerate(tolerations):
        causes += _toleration(toleration, f"{path}[{index}]")
    return causes


def _toleration(toleration: JsonObject, path: str) -> list[Cause]:
    key, effect = toleration.get("key", ""), toleration.get("effect", "")
    causes = qualified_name(key, f"{path}.key") if key else []
    operator = toleration.get("operator", "")
    if not key and operator != "Exists":
        why = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
        causes.append(invalid_field(f"{path}.operator", operator, why))
    if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
        why = "effect must be 'NoExecute' when `tolerationSeconds` is set"
        causes.append(invalid_field(f"{path}.effect", effect, why))
    causes += _toleration_value(operator, toleration.get("value", ""), f"{path}.operator")
    if effect and effect not in _EFFECTS:
        causes.append(unsupported_field(f"{path}.effect", effect, _EFFECTS))
    return causes


def _toleration_value(operator: str, value: str, path: str) -> list[Cause]:
    if operator in {"", "Equal"}:
        return label_value(value, path)
    if operator == "Exists":
        return [invalid_field(path, value, "value must be empty when `operator` is 'Exists'")] if value else []
    return [unsupported_field(path, operator, ("Equal", "Exists"))]


def _spread(constraints: Iterable[JsonObject], path: str) -> list[Cause]:
    causes: list[Cause] = []
    seen: set[tuple[str, str]] = set()
    for index, constraint in enumerate(constraints):
        at, key, action = f"{path}[{index}]", constraint.get("topologyKey", ""), constraint.get("whenUnsatisfiable", "")
        skew = constraint.get("maxSkew", 0)
        if skew <= 0:
            causes.append(invalid_field(f"{at}.maxSkew", skew, "must be greater than zero"))
        if not key:
            causes.append(required_field(f"{at}.topologyKey", "can not be empty"))
        else:
            causes += qualified_name(key, f"{at}.topologyKey")
        if action not in {"DoNotSchedule", "ScheduleAnyway"}:
            choices = ("DoNotSchedule", "ScheduleAnyway")
            causes.append(unsupported_field(f"{at}.whenUnsatisfiable", action, choices))
        if (key, action) in seen:
            causes.append(duplicate_field(f"{at}.{{topologyKey, whenUnsatisfiable}}", f"{{{key}, {action}}}"))
        seen.add((key, action))
        causes += label_selector(constraint.get("labelSelector"), f"{at}.labelSelector")
    return causes
