"""Accelerators that a cluster offers, as far as the operator knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorGroup:
    """Equal accelerators: nodes of one product, one Kueue flavor, or one profile of the chart's values."""

    name: str
    """For messages: the product, the flavor or the profile, e.g. NVIDIA-H100-80GB-HBM3."""
    resource: str
    """Name of the resource that pods request, e.g. nvidia.com/gpu, amd.com/gpu, nvidia.com/mig-3g.40gb."""
    memory_mib: int
    """Memory of one accelerator."""
    per_node: int
    """Accelerators of one node: the most that one pod can get."""
    nodes: int | None = None
    """Nodes of the group. None: unknown, e.g. because an autoscaler adds them."""
    quota: int | None = None
    """Accelerators that the queue grants at once. None: no queue, or no limit."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Node labels that select the group, so that all pods of a gang get the same product."""
    compute_capability: float | None = None
    """CUDA compute capability, e.g. 9.0. None: unknown or not CUDA."""
    is_slice: bool = False
    """A part of a device (MIG): no tensor parallelism, one per pod."""
    price_per_hour: float | None = None
    """Price of one accelerator for an hour, in the currency of the chart's values."""

    @property
    def total(self) -> int | None:
        """Return the number of accelerators that can be in use at once; None if unknown."""
        known = [amount for amount in (self.quota, self.nodes and self.nodes * self.per_node) if amount is not None]
        return min(known, default=None)


def with_unique_names(groups: Iterable[AcceleratorGroup]) -> tuple[AcceleratorGroup, ...]:
    """Return groups of which no two have one name: resource and memory distinguish those that had."""
    found = tuple(groups)
    for tail in ("{0.name} {0.resource}", "{0.name} of {0.memory_mib} MiB"):
        counts = Counter(group.name for group in found)
        found = tuple(replace(g, name=tail.format(g)) if counts[g.name] > 1 else g for g in found)
    counts = Counter(group.name for group in found)
    return tuple(
        replace(group, name=f"{group.name} ({place})") if counts[group.name] > 1 else group
        for place, group in enumerate(found)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All groups, and where they come from."""

    groups: tuple[AcceleratorGroup, ...] = ()
    """Empty: a cluster without accelerators, which runs small models on CPUs."""
    source: str
    """For messages: e.g. `the labels of 4 nodes`, `queue team-a`, `profile h100 of the chart's values`."""
    faults: tuple[str, ...] = ()
    """Sentences about accelerators that cannot be used, e.g. nodes without memory labels; each names the remedy."""

    @property
    def description(self) -> str:
        """Return the source and its faults, for messages."""
        return "; ".join((self.source, *self.faults))
