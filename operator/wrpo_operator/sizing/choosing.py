"""What all stages share when they choose among groups of accelerators."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.placement import Placement
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.memory import CPU_MODEL_BYTES, GIB, MIB, gib
from wrpo_operator.sizing.requests import Asked, DoesNotFit

MAX_SHARDS = 256
"""Limit of `shards` in the spec."""
_MIN_HOST_GIB = 16
_HOST_GIB = 8
_DISK_GIB = 2


def groups_of(inventory: Inventory, asked: Asked) -> tuple[AcceleratorGroup, ...]:
    """Return the groups of known memory whose resource the user allows."""
    return tuple(
        group
        for group in inventory.groups
        if group.memory_mib > 0 and group.per_node > 0 and asked.resource in (None, group.resource)
    )


def on_cpu(facts: ModelFacts, inventory: Inventory, asked: Asked) -> Placement | DoesNotFit | None:
    """Return the placement on CPUs or why there is none; None if there are accelerators to choose among."""
    if asked.accelerators == 0:
        return _cpu(asked, "as set in the spec")
    if groups_of(inventory, asked):
        return None
    small = facts.weight_bytes <= CPU_MODEL_BYTES
    if small and not inventory.groups and asked.accelerators is None and asked.resource is None:
        return _cpu(asked, f"weights of {gib(facts.weight_bytes)}, no accelerators ({inventory.description})")
    found = ", ".join(sorted({group.resource for group in inventory.groups}))
    wanted = asked.resource or "accelerators"
    return DoesNotFit(
        needs=f"{wanted} for weights of {gib(facts.weight_bytes)}",
        largest=f"{found} of unknown memory or not allowed" if found else "no accelerators",
        message=f"The model ({facts.model_type}, weights of {gib(facts.weight_bytes)}) needs {wanted}; the cluster has "
        f"{found or 'none'} that can be used ({inventory.description}). Either add nodes with accelerators, describe "
        f"them in spec.accelerator, or set 0 accelerators for this stage to run it on the CPU.",
    )


def _cpu(asked: Asked, arithmetic: str) -> Placement:
    return Placement(
        pods=asked.pods or 1,
        memory_gib=asked.memory_gib,
        ephemeral_storage_gib=asked.ephemeral_storage_gib,
        arithmetic=arithmetic,
    )


def most_in_a_pod(group: AcceleratorGroup, most: int | None) -> int:
    """Return the accelerators that one pod can get: those of a node, within the queue's and the experiment's limits."""
    limits = [1 if group.is_slice else group.per_node, group.quota, most]
    return min(limit for limit in limits if limit is not None)


def cost_of(group: AcceleratorGroup, accelerators: int) -> tuple[float, float, str]:
    """Return what groups are ordered by: the price if it is known, then the memory that is taken."""
    price = float("inf") if group.price_per_hour is None else group.price_per_hour * accelerators
    return price, accelerators * group.memory_mib, group.name


def most_pods(group: AcceleratorGroup, per_pod: int, most: int | None) -> int:
    """Return the pods of `per_pod` accelerators that can run at once; those of one node if the number is unknown."""
    limits = [(1 if group.nodes is None else group.nodes) * (group.per_node // per_pod)]
    limits += [limit // per_pod for limit in (group.quota, most) if limit is not None]
    return max(1, min(limits))


def host_memory_gib(weights: float, shared_memory_gib: int | None, more: float = 0.0) -> int:
    """Return a pod's memory request: loading the weights, /dev/shm, and `more` bytes."""
    return max(_MIN_HOST_GIB, ceil(weights * 0.1 / GIB + _HOST_GIB)) + (shared_memory_gib or 0) + ceil(more / GIB)


def shared_memory_gib(per_pod: int) -> int | None:
    """Return the limit of /dev/shm, over which the processes of several accelerators exchange data."""
    return None if per_pod < 2 else max(2, per_pod)


def disk_gib(facts: ModelFacts, *, cached: bool) -> int | None:
    """Return the local disk for a model that each pod downloads; None with a model cache."""
    return None if cached else ceil(facts.weight_bytes * 1.05 / GIB) + _DISK_GIB


def size_of(group: AcceleratorGroup, number: int) -> str:
    """Return a number of accelerators as text."""
    return f"{number} x {group.name} of {group.memory_mib * MIB / GIB:.1f} GiB"


def advice(remedies: Sequence[str]) -> str:
    """Return remedies as a sentence."""
    text = ", or ".join(remedies)
    return f"Either {text}." if len(remedies) > 1 else f"{text[:1].upper()}{text[1:]}."


def limits_of(groups: tuple[AcceleratorGroup, ...], most: int | None) -> list[str]:
    """Return as remedies the limits that keep a pod from getting all accelerators of a node."""
    nodes = max(group.per_node for group in groups)
    found = [] if most is None or most >= nodes else [f"raise scheduling.maxGpus, which is {most}"]
    quotas = [group.quota for group in groups if group.quota is not None and group.quota < group.per_node]
    return [*found, *([f"raise the queue's quota, which is {max(quotas)}"] if quotas else [])]


def largest_of(groups: tuple[AcceleratorGroup, ...], most: int | None) -> str:
    """Return the pod with the most accelerator memory as text."""
    best = max(groups, key=lambda group: (most_in_a_pod(group, most) * group.memory_mib, group.name))
    return size_of(best, max(0, most_in_a_pod(best, most)))
