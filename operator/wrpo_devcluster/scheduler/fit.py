"""Fit of a pod on a node, and the scheduler's message if no node fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from wrpo_devcluster import quantity
from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.objects import expression_holds, labels_of

Amounts = dict[str, Decimal]


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node, and the requests of the pods bound to it."""

    raw: JsonObject
    used: Mapping[str, Decimal] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the node."""
        return str(self.raw["metadata"]["name"])

    @property
    def allocatable(self) -> Amounts:
        """What pods may request of the node in all; its capacity if it does not say."""
        status = self.raw.get("status") or {}
        return {k: quantity.parse(v) for k, v in (status.get("allocatable") or status.get("capacity") or {}).items()}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Node to bind to, or why there is none."""

    node: str | None
    message: str = ""


def requests_of(pod: JsonObject) -> Amounts:
    """Return the requests of a pod: the sum over its containers, or its largest init container if that is more."""
    spec = pod["spec"]
    wanted = total(_container_requests(c) for c in spec["containers"])
    for container in spec.get("initContainers") or []:
        for name, amount in _container_requests(container).items():
            wanted[name] = max(wanted.get(name, Decimal(0)), amount)
    wanted["pods"] = Decimal(1)
    return wanted


def choose(pod: JsonObject, nodes: list[NodeView]) -> Verdict:
    """Choose the emptiest node on which the pod fits."""
    reasons: Counter[str] = Counter()
    fitting: list[NodeView] = []
    helpless = 0
    for node in nodes:
        why, could_ever_fit = _refusals(pod, node)
        if why:
            reasons.update(why)
            helpless += not could_ever_fit
        else:
            fitting.append(node)
    if fitting:
        return Verdict(min(fitting, key=lambda n: (_pressure(pod, n), n.name)).name)
    return Verdict(None, unschedulable_message(len(nodes), reasons, helpless))


def unschedulable_message(nodes: int, reasons: Counter[str], helpless: int) -> str:
    """Return the message in the real scheduler's form."""
    if not nodes:
        return "no nodes available to schedule pods"
    told = ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items()))
    preemption = []
    if helpless:
        preemption.append(f"{helpless} Preemption is not helpful for scheduling")
    if nodes > helpless:
        preemption.append(f"{nodes - helpless} No preemption victims found for incoming pod")
    return (
        f"0/{nodes} nodes are available: {told}. no new claims to deallocate, "
        f"preemption: 0/{nodes} nodes are available: {', '.join(preemption)}."
    )


def _refusals(pod: JsonObject, node: NodeView) -> tuple[list[str], bool]:
    """Return (why the node refuses, whether the pod would fit on the empty node)."""
    spec = pod["spec"]
    if node.raw["spec"].get("unschedulable"):
        return ["node(s) were unschedulable"], False
    taint = _untolerated(spec, node.raw)
    if taint is not None:
        return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"], False
    if not _selected(spec, node.raw):
        return ["node(s) didn't match Pod's node affinity/selector"], False
    wanted, allocatable = requests_of(pod), node.allocatable
    short = [
        name
        for name, amount in sorted(wanted.items())
        if amount > 0 and amount + node.used.get(name, Decimal(0)) > allocatable.get(name, Decimal(0))
    ]
    hopeless = any(wanted[name] > allocatable.get(name, Decimal(0)) for name in short)
    return [("Too many pods" if name == "pods" else f"Insufficient {name}") for name in short], not hopeless


def _untolerated(spec: JsonObject, node: JsonObject) -> JsonObject | None:
    for taint in node["spec"].get("taints") or []:
        if taint["effect"] == "PreferNoSchedule":
            continue
        if not any(_tolerates(t, taint) for t in spec.get("tolerations") or []):
            return taint  # type: ignore[no-any-return]
    return None


def _tolerates(toleration: dict[str, str], taint: dict[str, str]) -> bool:
    if toleration.get("effect") not in {None, "", taint["effect"]}:
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in {None, "", taint["key"]}
    return toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", "")


def _selected(spec: JsonObject, node: JsonObject) -> bool:
    labels = labels_of(node)
    if any(labels.get(name) != value for name, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if not affinity:
        return True
    return any(_term_holds(term, node, labels) for term in affinity.get("nodeSelectorTerms") or [])


def _term_holds(term: JsonObject, node: JsonObject, labels: dict[str, str]) -> bool:
    fields = {"metadata.name": node["metadata"]["name"]}
    expressions, by_field = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not by_field:
        return False
    return all(expression_holds(e, labels) for e in expressions) and all(expression_holds(e, fields) for e in by_field)


def _pressure(pod: JsonObject, node: NodeView) -> Decimal:
    """Return the used share of the node's scarcest resource with the pod; the lowest share is chosen."""
    wanted, allocatable = requests_of(pod), node.allocatable
    shares = [
        (node.used.get(name, Decimal(0)) + wanted.get(name, Decimal(0))) / whole
        for name, whole in allocatable.items()
        if whole > 0
    ]
    return max(shares, default=Decimal(0))


def _container_requests(container: JsonObject) -> Amounts:
    resources = container.get("resources") or {}
    merged = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: quantity.parse(value) for name, value in merged.items()}


def total(parts: Iterable[Amounts]) -> Amounts:
    """Return the sums of amounts by resource."""
    found: Amounts = {}
    for part in parts:
        for name, amount in part.items():
            found[name] = found.get(name, Decimal(0)) + amount
    return found
