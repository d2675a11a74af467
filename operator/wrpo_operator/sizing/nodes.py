"""Nodes -> Inventory: equal accelerators of the nodes that an experiment may use, and why others are not used. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory, with_unique_names
from wrpo_operator.sizing.offers import DISCOVERIES, MEMORY_LABELS, PRESENCE, NodeFact, Offer, offer_of
from wrpo_operator.sizing.profiles import Profile, price_of
from wrpo_operator.sizing.resource_names import is_other_accelerator, listed
from wrpo_operator.sizing.selection import Selection

CLOSE = 0.05
"""Largest difference of memory that drivers of one product report."""
PROFILE_REMEDY = "describe them in accelerators.profiles of the chart's values"


@dataclass(frozen=True, slots=True)
class _Found:
    """An offer of a node that the experiment may use."""

    node: NodeFact
    offer: Offer
    name: str
    memory_mib: int


@dataclass(frozen=True, slots=True)
class Usable:
    """Groups of the usable nodes, and sentences about the others."""

    groups: tuple[AcceleratorGroup, ...]
    num_nodes: int
    faults: tuple[str, ...]


def node_inventory(
    nodes: Sequence[NodeFact],
    selection: Selection,
    profiles: Sequence[Profile] = (),
    prices: Mapping[str, float] | None = None,
    *,
    num_nodes: int | None = None,
) -> Inventory:
    """Return the accelerators of nodes that are Ready, schedulable, tolerated and selected.

    Profiles supply the memory that labels lack. `num_nodes` counts all nodes, those without accelerators included.
    """
    found = usable(nodes, selection, profiles, prices or {})
    count = found.num_nodes if found.groups else num_nodes if num_nodes is not None else len(nodes)
    source = f"the labels of {count} {'node' if count == 1 else 'nodes'}"
    return Inventory(groups=found.groups, source=source, faults=found.faults)


def usable(
    nodes: Iterable[NodeFact], selection: Selection, profiles: Sequence[Profile], prices: Mapping[str, float]
) -> Usable:
    """Return the groups of the nodes that may be used."""
    excluded: dict[tuple[str, ...], list[str]] = {}
    """(cause, resource, ...) -> names of nodes"""
    found: list[_Found] = []
    for node in nodes:
        for cause, offer in _judged(node, selection, profiles):
            if isinstance(offer, _Found):
                found.append(offer)
            else:
                excluded.setdefault(cause, []).append(node.name)
    is_any_left = bool(found)
    faults = [
        _sentence(cause, names)
        for cause, names in sorted(excluded.items())
        if not (is_any_left and cause[0] == "unselected")
    ]
    groups = sorted(_groups(found, prices), key=lambda group: (group.resource, group.name, group.memory_mib))
    return Usable(with_unique_names(groups), len({each.node.name for each in found}), tuple(faults))


def _judged(
    node: NodeFact, selection: Selection, profiles: Sequence[Profile]
) -> Iterator[tuple[tuple[str, ...], _Found | None]]:
    """Yield each offer of a node that may be used, or the cause why not."""
    if not node.devices:
        label = next(label for label in PRESENCE if label in node.labels)
        is_relevant = node.is_ready and not node.is_cordoned and selection.matches(node)
        if is_relevant and node.labels[label] not in {"false", "0"}:
            yield ("no devices", PRESENCE[label], label), None
        return
    for resource, count in node.devices.items():
        cause = _exclusion(node, selection, resource, count)
        if cause is not None:
            yield cause, None
            continue
        offer = offer_of(node.labels, resource, count)
        profile = next((each for each in profiles if each.describes(resource, offer.product, node.labels)), None)
        memory = offer.memory_mib or (profile.memory_mib if profile else None)
        if memory is None:
            yield _unknown(node, offer), None
        else:
            name = offer.product or (profile.name if profile else resource)
            yield (), _Found(node, offer, name, memory)


def _exclusion(node: NodeFact, selection: Selection, resource: str, count: int) -> tuple[str, ...] | None:
    if not selection.matches(node):
        return ("unselected", resource)
    if not node.is_ready:
        return ("not ready", resource)
    if node.is_cordoned:
        return ("cordoned", resource)
    taint = selection.untolerated(node.taints, resource)
    if taint is not None:
        return ("tainted", resource, str(taint))
    return ("unhealthy", resource) if count == 0 else None


def _unknown(node: NodeFact, offer: Offer) -> tuple[str, ...]:
    if is_other_accelerator(offer.resource):
        return ("not sized", offer.resource)
    label = MEMORY_LABELS.get(offer.resource.partition("/")[0], "")
    return ("no memory", offer.resource, label, node.labels.get(label, ""))


def _sentence(cause: tuple[str, ...], names: list[str]) -> str:
    """Return the sentence about nodes that are not used, with its remedy."""
    is_one = len(names) == 1
    who = f"{'Node' if is_one else 'Nodes'} {listed(names)}"
    is_are, has_have, offers, does = ("is", "has", "offers", "does") if is_one else ("are", "have", "offer", "do")
    resource = cause[1]
    match cause[0]:
        case "unselected":
            return (
                f"{who} with {resource} {does} not match the experiment's node selector or affinity. "
                f"Change spec.scheduling.nodeSelector or spec.podTemplate."
            )
        case "not ready":
            return f"{who} with {resource} {is_are} not Ready. `kubectl describe node` shows why."
        case "cordoned":
            return f"{who} with {resource} {is_are} cordoned. `kubectl uncordon` makes nodes schedulable."
        case "tainted":
            return (
                f"{who} with {resource} {has_have} the taint {cause[2]}, which the experiment does not tolerate. "
                f"Tolerate it in spec.scheduling.tolerations to use {'it' if is_one else 'them'}."
            )
        case "unhealthy":
            return (
                f"{who} {has_have} {resource}, of which none is allocatable. "
                f"Check the pods of the device plugin on {'it' if is_one else 'them'}."
            )
        case "no devices":
            return (
                f"{who} {has_have} the label {cause[2]} but {offers} no {resource}. Install its device plugin. "
                f"Devices that are allocated by ResourceClaims (DRA) are not sized: set the stages' resources."
            )
        case "not sized":
            return f"{who} {offers} {resource}, whose memory no label states. To use it, {PROFILE_REMEDY}."
        case _:
            return _memory_sentence(f"{who} {offers} {resource}", cause)


def _memory_sentence(start: str, cause: tuple[str, ...]) -> str:
    vendor = cause[1].partition("/")[0]
    tool = DISCOVERIES.get(vendor)
    if tool is None:
        return f"{start}, whose memory no label states. To use it, {PROFILE_REMEDY}."
    label, value = cause[2], cause[3]
    lack = f"with {label}={value}, which is no known size" if value else f"without the label {label}"
    return f"{start} {lack}, so its memory is unknown. Install {tool}, or {PROFILE_REMEDY}."


def _groups(found: Iterable[_Found], prices: Mapping[str, float]) -> Iterator[AcceleratorGroup]:
    """Yield one group for each resource, product and memory; slightly different memory counts as equal."""
    alike: dict[tuple[str, str, bool], list[_Found]] = {}
    for each in found:
        alike.setdefault((each.offer.resource, each.name, each.offer.is_slice), []).append(each)
    for members in alike.values():
        parts = list(_by_memory(members))
        for part in parts:
            group = _group(part, prices)
            yield group if len(parts) == 1 else _with_memory_label(group, part)


def _by_memory(members: list[_Found]) -> Iterator[list[_Found]]:
    """Split offers of one product where their memory differs by more than drivers explain."""
    part: list[_Found] = []
    for each in sorted(members, key=lambda member: (member.memory_mib, member.node.name)):
        if part and each.memory_mib > part[0].memory_mib * (1 + CLOSE):
            yield part
            part = []
        part.append(each)
    yield part


def _group(part: list[_Found], prices: Mapping[str, float]) -> AcceleratorGroup:
    first = part[0]
    counts = [each.offer.count for each in part]
    pins = {each.offer.pin for each in part}
    pin = pins.pop() if len(pins) == 1 else None
    value = first.node.labels.get(pin[0], "") if pin else ""
    is_pinned = pin is not None and all(each.node.labels.get(pin[0]) == value for each in part)
    capabilities = [each.offer.compute_capability for each in part if each.offer.compute_capability is not None]
    is_even = min(counts) == max(counts)
    return AcceleratorGroup(
        name=first.name,
        resource=first.offer.resource,
        memory_mib=first.memory_mib,
        per_node=max(counts),
        nodes=len(part),
        # Nodes of several sizes, or with broken devices, hold fewer than the largest one suggests.
        quota=None if is_even else sum(counts),
        labels={pin[0]: value} if pin and is_pinned else {},
        compute_capability=min(capabilities, default=None),
        is_slice=first.offer.is_slice,
        price_per_hour=price_of(prices, first.name),
    )


def _with_memory_label(group: AcceleratorGroup, part: list[_Found]) -> AcceleratorGroup:
    """Distinguish a group from one with the same product and other memory by the label of the memory."""
    label = MEMORY_LABELS.get(group.resource.partition("/")[0], "")
    values = {each.node.labels.get(label) for each in part}
    value = values.pop() if len(values) == 1 else None
    return replace(group, labels={**group.labels, label: value}) if value else group
