"""Which nodes the pods of an experiment may use: node selector, required node affinity, tolerations. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.sizing.offers import NodeFact, Taint
from wrpo_operator.sizing.resource_names import implied_tolerations


@dataclass(frozen=True, slots=True)
class Tolerated:
    """A toleration; an empty key or effect means all."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def covers(self, taint: Taint) -> bool:
        """Return whether a pod with it may run on a node with the taint."""
        if self.effect not in {"", taint.effect}:
            return False
        if self.operator == "Exists":
            return self.key in {"", taint.key}
        return (self.key, self.value) == (taint.key, taint.value)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One expression of a node affinity."""

    key: str
    operator: str
    values: tuple[str, ...] = ()
    is_field: bool = False
    """It is about metadata.name, the only field that Kubernetes selects by."""

    def holds(self, node: NodeFact) -> bool:
        """Return whether a node meets it."""
        value = node.name if self.is_field else node.labels.get(self.key)
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case "Gt" | "Lt":
                return self._compares(value)
            case _:
                return False

    def _compares(self, value: str | None) -> bool:
        try:
            have, bound = int(value or ""), int(self.values[0])
        except (ValueError, IndexError):
            return False
        return have > bound if self.operator == "Gt" else have < bound


@dataclass(frozen=True, slots=True)
class Selection:
    """Conditions on nodes. Equal selections have the same nodes."""

    labels: tuple[tuple[str, str], ...] = ()
    """Labels that a node must have."""
    tolerations: tuple[Tolerated, ...] = ()
    terms: tuple[tuple[Requirement, ...], ...] = ()
    """Node affinity: all requirements of at least one term; empty: no affinity."""

    def matches(self, node: NodeFact) -> bool:
        """Return whether node selector and affinity allow the node."""
        if any(node.labels.get(key) != value for key, value in self.labels):
            return False
        return not self.terms or any(term and all(part.holds(node) for part in term) for term in self.terms)

    def untolerated(self, taints: Iterable[Taint], resource: str) -> Taint | None:
        """Return the first taint that pods with a resource do not tolerate; see `implied_tolerations`."""
        implied = implied_tolerations(resource)
        for taint in taints:
            if taint.key not in implied and not any(toleration.covers(taint) for toleration in self.tolerations):
                return taint
        return None


def selection_of(spec: ExperimentSpec) -> Selection:
    """Return the conditions that spec.scheduling and spec.podTemplate set."""
    pod = _mapping(_mapping(spec.pod_template).get("spec"))
    labels = {**spec.scheduling.node_selector, **_mapping(pod.get("nodeSelector"))}
    node_affinity = _mapping(_mapping(pod.get("affinity")).get("nodeAffinity"))
    required = _mapping(node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution"))
    written = [toleration.model_dump(by_alias=True) for toleration in spec.scheduling.tolerations]
    return Selection(
        labels=tuple(sorted((str(key), str(value)) for key, value in labels.items())),
        tolerations=tolerations_of([*written, *_list(pod.get("tolerations"))]),
        terms=tuple(_term(_mapping(term)) for term in _list(required.get("nodeSelectorTerms"))),
    )


def tolerations_of(raw: Iterable[Any]) -> tuple[Tolerated, ...]:
    """Return tolerations of their JSON form."""
    return tuple(
        Tolerated(
            key=str(entry.get("key") or ""),
            operator=str(entry.get("operator") or "Equal"),
            value=str(entry.get("value") or ""),
            effect=str(entry.get("effect") or ""),
        )
        for entry in map(_mapping, raw)
    )


def claims_devices(spec: ExperimentSpec) -> bool:
    """Return whether pods get devices by ResourceClaims (DRA), whose memory nothing here shows."""
    pod = _mapping(_mapping(spec.pod_template).get("spec"))
    return bool(_list(pod.get("resourceClaims")))


def _term(term: Mapping[str, Any]) -> tuple[Requirement, ...]:
    parts = [(entry, False) for entry in _list(term.get("matchExpressions"))]
    parts += [(entry, True) for entry in _list(term.get("matchFields"))]
    return tuple(
        Requirement(
            key=str(entry.get("key") or ""),
            operator=str(entry.get("operator") or ""),
            values=tuple(str(value) for value in _list(entry.get("values"))),
            is_field=is_field,
        )
        for entry, is_field in parts
        if isinstance(entry, Mapping)
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
