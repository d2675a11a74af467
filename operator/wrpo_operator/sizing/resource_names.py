"""Names of the resources that device plugins offer, and what pods that request them tolerate."""

from __future__ import annotations

import re
from collections.abc import Iterable

DEFAULT_RESOURCE = "nvidia.com/gpu"
PRODUCT_LABELS = {
    "nvidia.com/gpu": "nvidia.com/gpu.product",
    "nvidia.com/gpu.shared": "nvidia.com/gpu.product",
    "amd.com/gpu": "amd.com/gpu.product-name",
    "gpu.intel.com/i915": "gpu.intel.com/product",
    "gpu.intel.com/xe": "gpu.intel.com/product",
}
"""Resource -> the label in which the vendor's discovery writes the product."""
_MIG = re.compile(r"nvidia\.com/mig-(?P<slices>[0-9]+)g\.(?P<gb>[0-9]+)gb(\.[a-z0-9._-]+)?")
_PARTITION = re.compile(r"amd\.com/[a-z]px_nps[0-9]+")
_OTHERS = re.compile(
    r"habana\.ai/gaudi.*|google\.com/tpu|aws\.amazon\.com/neuron(core|device)?|huawei\.com/ascend.*|cambricon\.com/.*"
    r"|nvidia\.com/(GRID_.*|[ABGT][ABDHKMPUV][0-9]{3}.*)",
    re.IGNORECASE,
)
"""Accelerators whose memory no label states, pass-through devices of virtual machines among them."""


def is_sized(resource: str) -> bool:
    """Return whether the labels of nodes show the memory of this resource."""
    return resource in PRODUCT_LABELS or is_slice(resource)


def is_slice(resource: str) -> bool:
    """Return whether the resource is a part of a device by its name: MIG or a partition."""
    return _MIG.fullmatch(resource) is not None or _PARTITION.fullmatch(resource) is not None


def is_other_accelerator(resource: str) -> bool:
    """Return whether the resource is an accelerator whose size only a profile can show."""
    return not is_sized(resource) and _OTHERS.fullmatch(resource) is not None


def mig_memory_mib(resource: str) -> int | None:
    """Return the memory of a MIG slice by its name, in which it is rounded up by as much as an eighth."""
    match = _MIG.fullmatch(resource if resource.startswith("nvidia.com/") else f"nvidia.com/mig-{resource}")
    return None if match is None else int(match["gb"]) * 1024 * 7 // 8


def implied_tolerations(resource: str) -> tuple[str, ...]:
    """Return the keys of taints that pods requesting a resource tolerate, regardless of their value and effect.

    Nodes with accelerators usually have a taint of the resource's name. The operator renders these tolerations, as the
    admission plugin ExtendedResourceToleration would; slices also tolerate the taint of whole devices.
    """
    vendor = resource.partition("/")[0]
    whole = {"nvidia.com": "nvidia.com/gpu", "amd.com": "amd.com/gpu"}.get(vendor, resource)
    return tuple(dict.fromkeys((resource, whole)))


def listed(names: Iterable[str], *, most: int = 3) -> str:
    """Return names for a sentence: `a`, `a and b`, `a, b, c and 4 more`."""
    found = sorted(names)
    shown, rest = found[:most], len(found) - most
    tail = f"{rest} more" if rest > 0 else shown.pop() if len(shown) > 1 else ""
    return f"{', '.join(shown)} and {tail}" if tail else ", ".join(shown)
