"""What one node offers, read from its labels and its allocatable resources.

Labels come from NVIDIA's GPU feature discovery, AMD's node labeller and Intel's device plugin; where they lack the
memory, labels of clouds and the name of the product show it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from wrpo_operator.api.resource_rules import amount
from wrpo_operator.sizing.products import known_memory_mib
from wrpo_operator.sizing.resource_names import (
    PRODUCT_LABELS,
    is_other_accelerator,
    is_sized,
    is_slice,
    mig_memory_mib,
)

Labels = Mapping[str, str]
MEMORY_LABELS = {
    "nvidia.com": "nvidia.com/gpu.memory",
    "amd.com": "amd.com/gpu.vram",
    "gpu.intel.com": "gpu.intel.com/product",
}
"""Vendor -> the label from which the memory is read first, for messages."""
DISCOVERIES = {
    "nvidia.com": "GPU feature discovery (part of NVIDIA's GPU operator)",
    "amd.com": "AMD's node labeller",
    "gpu.intel.com": "Intel's node feature rules",
}
PRESENCE = {
    "nvidia.com/gpu.present": "nvidia.com/gpu",
    "cloud.google.com/gke-accelerator": "nvidia.com/gpu",
    "karpenter.k8s.aws/instance-gpu-count": "nvidia.com/gpu",
    "amd.com/gpu.product-name": "amd.com/gpu",
    "beta.amd.com/gpu.product-name": "amd.com/gpu",
    "gpu.intel.com/product": "gpu.intel.com/i915",
}
"""Label that a node with devices has -> the resource that its device plugin should offer."""
_CLOUD_PRODUCTS = (
    "cloud.google.com/gke-accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
    "k8s.amazonaws.com/accelerator",
    "gpu.nvidia.com/model",
    "gpu.nvidia.com/class",
)
"""Labels in which clouds name the product."""
_CLOUD_MEMORY = {"karpenter.k8s.aws/instance-gpu-memory": 1, "gpu.nvidia.com/vram": 1024}
"""Labels in which clouds state the memory of one GPU, and their unit in MiB."""
_COUNT_LABELS = (
    "nvidia.com/gpu.count",
    "cloud.google.com/gke-accelerator-count",
    "karpenter.k8s.aws/instance-gpu-count",
)
_REPLICAS = ("nvidia.com/gpu.replicas", "cloud.google.com/gke-max-shared-clients-per-gpu")
_PARTITION = "cloud.google.com/gke-gpu-partition-size"
_POSSIBLE_MIB = range(1024, 2**22)
"""Memory of one accelerator. Smaller or larger values of a label are in another unit, or wrong."""
_VRAM = re.compile(r"([0-9]+)\s*(K|M|G|T)(i?B)?", re.IGNORECASE)
_VRAM_MIB = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
UNREAD_LABELS = frozenset({"nvidia.com/gfd.timestamp"})
"""Labels that change often and that no one selects."""


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint that keeps pods away."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


@dataclass(frozen=True, slots=True)
class NodeFact:
    """The part of a node with accelerators, or with labels of some, that decides who may use them."""

    name: str
    labels: Labels = field(default_factory=dict)
    devices: Mapping[str, int] = field(default_factory=dict)
    """Resource of an accelerator -> allocatable amount, 0 if the node has some but none is healthy."""
    taints: tuple[Taint, ...] = ()
    is_ready: bool = True
    is_cordoned: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """Equal accelerators of one node."""

    resource: str
    count: int
    product: str
    """As the node's labels name it; empty if they do not."""
    memory_mib: int | None
    """None: the labels do not show it."""
    pin: tuple[str, str] | None
    """The label that selects nodes with this product."""
    compute_capability: float | None
    is_slice: bool


def node_fact(node: Mapping[str, Any], extra: Iterable[str] = ()) -> NodeFact | None:
    """Return the accelerators of a Node object; None for one without accelerators.

    `extra` are further resources to look for, e.g. those of profiles.
    """
    metadata, spec, status = (_mapping(node.get(part)) for part in ("metadata", "spec", "status"))
    labels = {
        str(key): str(value) for key, value in _mapping(metadata.get("labels")).items() if key not in UNREAD_LABELS
    }
    allocatable, capacity = _mapping(status.get("allocatable")), _mapping(status.get("capacity"))
    wanted = frozenset(extra)
    names = {*allocatable, *capacity}
    devices = {
        name: whole_number(allocatable.get(name))
        for name in sorted(names)
        if (is_sized(name) or is_other_accelerator(name) or name in wanted)
        and max(whole_number(allocatable.get(name)), whole_number(capacity.get(name))) > 0
    }
    if not devices and not any(label in labels for label in PRESENCE):
        return None
    conditions = {entry.get("type"): entry.get("status") for entry in status.get("conditions") or ()}
    return NodeFact(
        name=str(metadata.get("name") or ""),
        labels=labels,
        devices=devices,
        taints=taints_of(spec.get("taints")),
        is_ready=conditions.get("Ready") == "True",
        is_cordoned=bool(spec.get("unschedulable")),
    )


def taints_of(raw: Any) -> tuple[Taint, ...]:
    """Return the taints of a list that keep pods away; PreferNoSchedule does not."""
    return tuple(
        Taint(str(taint.get("key") or ""), str(taint.get("value") or ""), str(taint.get("effect") or ""))
        for taint in raw or ()
        if taint.get("effect") != "PreferNoSchedule"
    )


def offer_of(labels: Labels, resource: str, count: int) -> Offer:
    """Return what a node with these labels offers of a resource."""
    named = _product(labels, resource)
    memory = _memory_mib(labels, resource, named[1] if named else "")
    replicas = _replicas(labels) if resource.startswith("nvidia.com/gpu") else 1
    product = named[1] if named else ""
    is_part = is_slice(resource) or replicas > 1 or "-MIG-" in product or _PARTITION in labels
    return Offer(
        resource=resource,
        count=count,
        product=product,
        memory_mib=memory // replicas if memory else None,
        pin=named,
        compute_capability=_compute_capability(labels) if resource.startswith("nvidia.com/") else None,
        is_slice=is_part,
    )


def labelled_count(labels: Labels) -> int | None:
    """Return the number of accelerators of a node by labels alone, where the node itself cannot be read."""
    return next((count for label in _COUNT_LABELS if (count := whole_number(labels.get(label))) > 0), None)


def whole_number(quantity: Any) -> int:
    """Return a quantity of devices; 0 if it is none."""
    try:
        return int(amount(quantity)) if quantity is not None else 0
    except (ValueError, KeyError, InvalidOperation):
        return 0


def _product(labels: Labels, resource: str) -> tuple[str, str] | None:
    """Return the label that names the product, and its value."""
    own = [PRODUCT_LABELS[resource]] if resource in PRODUCT_LABELS else [f"{resource}.product"]
    if resource.startswith("nvidia.com/mig-"):
        own.append("nvidia.com/gpu.product")
    if resource.startswith("amd.com/"):
        own = ["amd.com/gpu.product-name", "beta.amd.com/gpu.product-name"]
    clouds = _CLOUD_PRODUCTS if resource.startswith("nvidia.com/") else ()
    for label in (*own, *clouds):
        if labels.get(label):
            return label, labels[label]
    counted = "beta.amd.com/gpu.product-name."
    found = sorted(label for label in labels if label.startswith(counted)) if resource.startswith("amd.com/") else []
    return (found[0], found[0].removeprefix(counted)) if len(found) == 1 else None


def _memory_mib(labels: Labels, resource: str, product: str) -> int | None:
    """Return the memory of one accelerator before it is shared; None if nothing shows it."""
    vendor = resource.partition("/")[0]
    if vendor == "amd.com":
        whole = _vram_mib(labels) or known_memory_mib(product)
        return None if is_slice(resource) else whole
    if vendor != "nvidia.com":
        return known_memory_mib(product)
    if is_slice(resource):
        return _stated_mib(labels, f"{resource}.memory") or mig_memory_mib(resource)
    stated = _stated_mib(labels, MEMORY_LABELS[vendor])
    if stated:
        return stated
    if labels.get(_PARTITION):
        return mig_memory_mib(labels[_PARTITION])
    if "-MIG-" in product:
        return mig_memory_mib(product.rpartition("-MIG-")[2])
    clouds = (_stated_mib(labels, label, unit) for label, unit in _CLOUD_MEMORY.items())
    return next((memory for memory in clouds if memory), None) or known_memory_mib(product)


def _stated_mib(labels: Labels, label: str, unit: int = 1) -> int | None:
    """Return the memory that a label states in so many MiB; None if there is none, or no accelerator has as much."""
    memory = whole_number(labels.get(label)) * unit
    return memory if memory in _POSSIBLE_MIB else None


def _vram_mib(labels: Labels) -> int | None:
    """Return AMD's VRAM, which is a label's value or, in the old form, a part of its name: gpu.vram.64G=8."""
    forms = [labels.get(f"{prefix}amd.com/gpu.vram", "") for prefix in ("", "beta.")]
    old = "beta.amd.com/gpu.vram."
    forms += [label.removeprefix(old) for label in labels if label.startswith(old)]
    sizes = [_VRAM.fullmatch(form.strip()) for form in forms]
    found = {int(int(size[1]) * _VRAM_MIB[size[2].upper()]) for size in sizes if size}
    return min(found) if found else None


def _replicas(labels: Labels) -> int:
    """Return how many pods share one GPU by time-slicing or MPS; each can count on its part of the memory only."""
    return max(1, *(whole_number(labels.get(label)) for label in _REPLICAS))


def _compute_capability(labels: Labels) -> float | None:
    for prefix in ("nvidia.com/gpu.compute", "nvidia.com/cuda.compute"):
        major, minor = labels.get(f"{prefix}.major", ""), labels.get(f"{prefix}.minor", "0")
        if major.isdecimal() and minor.isdecimal():
            return float(Decimal(f"{major}.{minor}"))
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
