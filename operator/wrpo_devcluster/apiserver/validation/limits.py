"""Validation of LimitRanges, ResourceQuotas and PodDisruptionBudgets."""

from __future__ import annotations

import re
from typing import Any

from wrpo_devcluster import quantity
from wrpo_devcluster.apiserver.apis.errors import (
    Cause,
    duplicate_field,
    forbidden_field,
    invalid_field,
    unsupported_field,
)
from wrpo_devcluster.apiserver.validation.metadata import qualified_name
from wrpo_devcluster.client import JsonObject

_NOT_NEGATIVE = "must be greater than or equal to 0"
_PERCENT = re.compile(r"[0-9]+%")
STANDARD_RESOURCES = frozenset(
    {
        "pods", "services", "replicationcontrollers", "resourcequotas", "secrets", "configmaps",
        "persistentvolumeclaims", "services.nodeports", "services.loadbalancers", "cpu", "memory",
        "ephemeral-storage", "storage", "requests.cpu", "requests.memory", "requests.storage",
        "requests.ephemeral-storage", "limits.cpu", "limits.memory", "limits.ephemeral-storage",
    }
)  # fmt: skip
_COUNTS = frozenset(
    {
        "pods", "services", "replicationcontrollers", "resourcequotas", "secrets", "configmaps",
        "persistentvolumeclaims", "services.nodeports", "services.loadbalancers",
    }
)  # fmt: skip
_SCOPES = (
    "BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "PriorityClass", "Terminating",
    "VolumeAttributesClass",
)  # fmt: skip


def validate_quota(obj: JsonObject) -> list[Cause]:
    """Return the faults of a ResourceQuota."""
    causes: list[Cause] = []
    for name, value in (obj["spec"].get("hard") or {}).items():
        path = f"spec.hard[{name}]"
        causes += _resource_name(name, path)
        amount = quantity.parse(value)
        if amount < 0:
            causes.append(invalid_field(path, value, _NOT_NEGATIVE))
        if (name in _COUNTS or name.startswith("count/")) and amount != int(amount):
            causes.append(invalid_field(path, value, "must be an integer"))
    return causes + [
        unsupported_field("spec.scopes", scope, _SCOPES)
        for scope in obj["spec"].get("scopes") or ()
        if scope not in _SCOPES
    ]


def _resource_name(name: str, path: str) -> list[Cause]:
    causes = qualified_name(name, path)
    if not causes and "/" not in name and name not in STANDARD_RESOURCES:
        causes.append(invalid_field(path, name, "must be a standard resource type or fully qualified"))
    return causes


def validate_limit_range(obj: JsonObject) -> list[Cause]:
    """Return the faults of a LimitRange."""
    causes: list[Cause] = []
    seen: set[str] = set()
    for index, limit in enumerate(obj["spec"].get("limits") or ()):
        path, kind = f"spec.limits[{index}]", limit.get("type", "")
        causes += qualified_name(kind, f"{path}.type")
        if kind in seen:
            causes.append(duplicate_field(f"{path}.type", kind))
        seen.add(kind)
        if kind == "Pod":
            causes += [
                forbidden_field(f"{path}.{name}", "may not be specified when `type` is 'Pod'")
                for name in ("default", "defaultRequest")
                if limit.get(name)
            ]
        causes += _order(limit, path)
    return causes


def _order(limit: JsonObject, path: str) -> list[Cause]:
    """Return the faults of bounds that violate min <= defaultRequest <= default <= max."""
    causes: list[Cause] = []
    names = ("min", "defaultRequest", "default", "max")
    resources = sorted({resource for name in names for resource in limit.get(name) or ()})
    for resource in resources:
        given = {name: limit[name][resource] for name in names if resource in (limit.get(name) or {})}
        for low_at, low in enumerate(names):
            for high in names[low_at + 1 :]:
                if low in given and high in given and quantity.parse(given[low]) > quantity.parse(given[high]):
                    # The fault is reported at the inner field: min and the defaults must fit max.
                    blamed = low if (low, high) != ("min", "defaultRequest") else high
                    relation = f"{low} value {given[low]} is greater than {high} value {given[high]}"
                    causes.append(invalid_field(f"{path}.{blamed}[{resource}]", given[blamed], relation))
    for resource, value in sorted((limit.get("maxLimitRequestRatio") or {}).items()):
        if quantity.parse(value) < 1:
            at = f"{path}.maxLimitRequestRatio[{resource}]"
            causes.append(invalid_field(at, value, f"ratio {value} is less than 1"))
    return causes


def validate_budget(obj: JsonObject) -> list[Cause]:
    """Return the faults of a PodDisruptionBudget."""
    spec = obj["spec"]
    causes: list[Cause] = []
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        causes.append(invalid_field("spec", spec, "minAvailable and maxUnavailable cannot be both set"))
    for name in ("minAvailable", "maxUnavailable"):
        if spec.get(name) is not None:
            causes += _count_or_percent(spec[name], f"spec.{name}")
    policy = spec.get("unhealthyPodEvictionPolicy")
    if policy is not None and policy not in {"IfHealthyBudget", "AlwaysAllow"}:
        choices = ("AlwaysAllow", "IfHealthyBudget")
        causes.append(unsupported_field("spec.unhealthyPodEvictionPolicy", policy, choices))
    return causes


def _count_or_percent(value: Any, path: str) -> list[Cause]:
    if isinstance(value, int):
        return [invalid_field(path, value, _NOT_NEGATIVE)] if value < 0 else []
    if not _PERCENT.fullmatch(value):
        why = (
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex"
            " used for validation is '[0-9]+%')"
        )
        return [invalid_field(path, value, why)]
    return [invalid_field(path, value, "must not be greater than 100%")] if int(value[:-1]) > 100 else []
