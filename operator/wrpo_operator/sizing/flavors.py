"""Kueue's objects -> Inventory: the flavors and quotas behind a LocalQueue. Pure.

Quotas are upper bounds: what a ClusterQueue may use if no other one of its cohort does. Whether a child is admitted now
is Kueue's decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory, with_unique_names
from wrpo_operator.sizing.nodes import PROFILE_REMEDY, usable
from wrpo_operator.sizing.offers import NodeFact, labelled_count, offer_of, taints_of, whole_number
from wrpo_operator.sizing.profiles import Profile, group_of, price_of
from wrpo_operator.sizing.resource_names import is_other_accelerator, is_sized
from wrpo_operator.sizing.selection import Selection, tolerations_of

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QueueObjects:
    """Kueue's objects as the API server returns them."""

    queue: str
    """Name of the LocalQueue."""
    cluster_queue: str
    """Name of the ClusterQueue to which the LocalQueue points."""
    cluster_queues: Mapping[str, Object] = field(default_factory=dict)
    """All ClusterQueues by name, because those of one cohort lend to each other."""
    cohorts: Mapping[str, Object] = field(default_factory=dict)
    """All Cohorts by name; a cohort may exist without one."""
    flavors: Mapping[str, Object] = field(default_factory=dict)
    """All ResourceFlavors by name."""


@dataclass(frozen=True, slots=True)
class _Quota:
    """What a ClusterQueue, or a Cohort, has of one resource in one flavor."""

    resource: str
    flavor: str
    nominal: int
    borrowing: int | None
    """None: no limit."""
    lending: int | None


def queue_inventory(
    objects: QueueObjects,
    nodes: Sequence[NodeFact] | None,
    selection: Selection,
    profiles: Sequence[Profile] = (),
    prices: Mapping[str, float] | None = None,
) -> Inventory | None:
    """Return the accelerators that a LocalQueue grants; None if its ClusterQueue does not exist.

    `nodes` is None if nodes are not read: labels of the flavors, or profiles with their names, then show the size.
    """
    own = objects.cluster_queues.get(objects.cluster_queue)
    if own is None:
        return None
    groups: list[AcceleratorGroup] = []
    faults: list[str] = []
    extra = {profile.resource for profile in profiles}
    known = _Knowledge(nodes, selection, profiles, prices or {})
    for quota in _quotas(own):
        if not (is_sized(quota.resource) or is_other_accelerator(quota.resource) or quota.resource in extra):
            continue
        granted = _granted(quota, own, objects)
        where = f"ClusterQueue {objects.cluster_queue}, flavor {quota.flavor}"
        if granted == 0:
            faults.append(f"{where} grants no {quota.resource}: its nominalQuota is 0 and it cannot borrow. Raise it.")
            continue
        found, problems = known.of_flavor(quota, objects.flavors.get(quota.flavor))
        groups += [replace(group, quota=_least(group.quota, granted)) for group in found]
        faults += [f"{where}: {problem}" for problem in problems]
        faults += [
            f"{where} grants {granted} {quota.resource}, fewer than the {group.per_node} of one node, so no pod gets "
            f"more than {granted}. Raise the quota for larger pods."
            for group in found
            if granted < group.per_node and not group.is_slice
        ]
    if not groups and not faults:
        faults.append(f"ClusterQueue {objects.cluster_queue} covers no accelerators. Add one to its resourceGroups.")
    return Inventory(groups=with_unique_names(groups), source=f"queue {objects.queue}", faults=tuple(faults))


def cluster_queue_of(local_queue: Object) -> str:
    """Return the name of the ClusterQueue to which a LocalQueue points."""
    return str((local_queue.get("spec") or {}).get("clusterQueue") or "")


@dataclass(frozen=True, slots=True)
class _Knowledge:
    """Where the size of a flavor's accelerators may be found."""

    nodes: Sequence[NodeFact] | None
    """None: nodes are not read."""
    selection: Selection
    profiles: Sequence[Profile]
    prices: Mapping[str, float]

    def of_flavor(self, quota: _Quota, flavor: Object | None) -> tuple[list[AcceleratorGroup], list[str]]:
        """Return the groups of a flavor without its quota, and what is wrong with it."""
        if flavor is None:
            return [], ["the ResourceFlavor does not exist. Create it."]
        spec = flavor.get("spec") or {}
        labels = {str(key): str(value) for key, value in (spec.get("nodeLabels") or {}).items()}
        own = tolerations_of(spec.get("tolerations") or ())
        inside = replace(
            self.selection,
            labels=tuple(sorted({**dict(self.selection.labels), **labels}.items())),
            tolerations=(*self.selection.tolerations, *own),
        )
        taint = inside.untolerated(taints_of(spec.get("nodeTaints")), quota.resource)
        if taint is not None:
            return [], [f"it has the taint {taint}, which the experiment does not tolerate. Add a toleration."]
        found = usable(self.nodes, inside, self.profiles, self.prices) if self.nodes is not None else None
        told = [] if found is None else [fault for fault in found.faults if quota.resource in fault]
        groups = [] if found is None else [group for group in found.groups if group.resource == quota.resource]
        if groups:
            return [replace(group, labels={**labels, **group.labels}) for group in groups], told
        group = self._by_profile(quota, labels) or self._by_labels(quota, labels)
        if group is not None:
            return [group], []
        unknown = f"neither nodes nor its labels show the size of {quota.resource}. Add a profile named {quota.flavor}"
        return [], told or [f"{unknown}: {PROFILE_REMEDY}."]

    def _by_profile(self, quota: _Quota, labels: Mapping[str, str]) -> AcceleratorGroup | None:
        """Return what a profile with the flavor's name, else one that describes its labels, shows."""
        alike = [profile for profile in self.profiles if profile.resource == quota.resource]
        named = [profile for profile in alike if profile.name == quota.flavor]
        offer = offer_of(labels, quota.resource, 1)
        chosen = named or [
            profile
            for profile in alike
            if (profile.product or profile.node_labels) and profile.describes(quota.resource, offer.product, labels)
        ]
        if not chosen:
            return None
        profile = chosen[0]
        group = group_of(profile, quota.flavor, self.prices)
        return replace(group, labels={**labels, **group.labels}, is_slice=offer.is_slice)

    def _by_labels(self, quota: _Quota, labels: Mapping[str, str]) -> AcceleratorGroup | None:
        """Return what the flavor's labels alone show: the product's memory, and the accelerators of a node."""
        offer = offer_of(labels, quota.resource, 1)
        count = 1 if offer.is_slice else labelled_count(labels)
        if offer.memory_mib is None or count is None:
            return None
        return AcceleratorGroup(
            name=offer.product or quota.flavor,
            resource=quota.resource,
            memory_mib=offer.memory_mib,
            per_node=count,
            labels=dict(labels),
            compute_capability=offer.compute_capability,
            is_slice=offer.is_slice,
            price_per_hour=price_of(self.prices, offer.product or quota.flavor, quota.flavor),
        )


def _quotas(holder: Object) -> Iterator[_Quota]:
    """Yield the quotas of a ClusterQueue or a Cohort."""
    for group in (holder.get("spec") or {}).get("resourceGroups") or ():
        for flavor in group.get("flavors") or ():
            for entry in flavor.get("resources") or ():
                yield _Quota(
                    resource=str(entry.get("name") or ""),
                    flavor=str(flavor.get("name") or ""),
                    nominal=whole_number(entry.get("nominalQuota")),
                    borrowing=_limit(entry.get("borrowingLimit")),
                    lending=_limit(entry.get("lendingLimit")),
                )


def _granted(quota: _Quota, own: Object, objects: QueueObjects) -> int:
    """Return the most that a ClusterQueue can use: its quota and what its cohort lends."""
    cohort = _cohort_of(own)
    if not cohort:
        return quota.nominal
    root = _root(cohort, objects.cohorts)
    others = [
        other
        for other in objects.cluster_queues.values()
        if other is not own and _cohort_of(other) and _root(_cohort_of(other), objects.cohorts) == root
    ]
    others += [found for name, found in objects.cohorts.items() if _root(name, objects.cohorts) == root]
    lent = sum(_lends(found) for other in others for found in _quotas(other) if _is_alike(found, quota))
    return quota.nominal + (lent if quota.borrowing is None else min(quota.borrowing, lent))


def _is_alike(one: _Quota, other: _Quota) -> bool:
    return (one.resource, one.flavor) == (other.resource, other.flavor)


def _lends(quota: _Quota) -> int:
    return quota.nominal if quota.lending is None else min(quota.nominal, quota.lending)


def _cohort_of(cluster_queue: Object) -> str:
    """Return the cohort; its field is `cohort`, or `cohortName` in newer versions."""
    spec = cluster_queue.get("spec") or {}
    return str(spec.get("cohortName") or spec.get("cohort") or "")


def _root(cohort: str, cohorts: Mapping[str, Object]) -> str:
    """Return the topmost ancestor of a cohort."""
    seen: set[str] = set()
    while cohort not in seen:
        seen.add(cohort)
        spec = (cohorts.get(cohort) or {}).get("spec") or {}
        cohort = str(spec.get("parentName") or spec.get("parent") or cohort)
    return cohort


def _limit(value: Any) -> int | None:
    return None if value is None else whole_number(value)


def _least(*amounts: int | None) -> int | None:
    return min((amount for amount in amounts if amount is not None), default=None)


def fault_of_missing(queue: str, namespace: str, cluster_queue: str | None) -> str:
    """Return the sentence about a LocalQueue that does not exist, or one that points to nothing."""
    if cluster_queue is None:
        return (
            f"LocalQueue {queue} does not exist in namespace {namespace}. Create it, or correct "
            f"spec.scheduling.queueName."
        )
    return f"LocalQueue {queue} points to ClusterQueue {cluster_queue!r}, which does not exist. Create it."


def names_of(objects: Iterable[Object]) -> dict[str, Object]:
    """Return objects by name."""
    return {str((obj.get("metadata") or {}).get("name") or ""): obj for obj in objects}
