"""Simulated nodes with accelerators: labels, amounts and taints as on real clusters, for `up --nodes`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from wrpo_devcluster.config import NodeConfig

_ITEM = re.compile(r"(?P<product>[A-Za-z0-9.-]+)=(?P<nodes>[0-9]+)x(?P<each>[0-9]+)")
MAX_NODES = 10_000
DISK = "7Ti"
"""Local disks of nodes with accelerators usually hold the weights of several models."""
CPU = "cpu"
"""Nodes without accelerators; `cpu=3x0` sets their number."""


@dataclass(frozen=True, slots=True)
class Product:
    """An accelerator, as its device plugin and its vendor's discovery describe it."""

    resource: str
    labels: Mapping[str, str] = field(default_factory=dict)
    count_label: str = ""
    taint: str = "nvidia.com/gpu"


def _nvidia(
    product: str, memory_mib: int, capability: str, family: str, *, resource: str = "nvidia.com/gpu"
) -> Product:
    major, _, minor = capability.partition(".")
    return Product(
        resource=resource,
        labels={
            "nvidia.com/gpu.present": "true",
            "nvidia.com/gpu.product": product,
            "nvidia.com/gpu.memory": str(memory_mib),
            "nvidia.com/gpu.family": family,
            "nvidia.com/gpu.compute.major": major,
            "nvidia.com/gpu.compute.minor": minor,
            "nvidia.com/gpu.replicas": "1",
            "nvidia.com/gpu.sharing-strategy": "none",
            "nvidia.com/cuda.driver.major": "580",
            "nvidia.com/mig.capable": "true" if major in {"8", "9", "10"} and minor == "0" else "false",
        },
        count_label="nvidia.com/gpu.count",
    )


def _slice(product: str, profile: str, memory_mib: int) -> Product:
    """Return slices of MIG with the strategy `mixed`."""
    resource = f"nvidia.com/mig-{profile}"
    whole = _nvidia(product, 81920, "8.0", "ampere", resource=resource)
    own = {f"{resource}.product": f"{product}-MIG-{profile}", f"{resource}.memory": str(memory_mib)}
    return Product(
        resource=resource,
        labels={**whole.labels, **own, "nvidia.com/mig.strategy": "mixed"},
        count_label=f"{resource}.count",
    )


def _amd(product: str, vram: str) -> Product:
    labels = {"amd.com/gpu.product-name": product, "amd.com/gpu.vram": vram, "amd.com/gpu.family": "AI"}
    return Product("amd.com/gpu", labels, taint="amd.com/gpu")


PRODUCTS: Mapping[str, Product] = {
    "b200": _nvidia("NVIDIA-B200", 183359, "10.0", "blackwell"),
    "h200": _nvidia("NVIDIA-H200", 143771, "9.0", "hopper"),
    "h100": _nvidia("NVIDIA-H100-80GB-HBM3", 81559, "9.0", "hopper"),
    "a100-80gb": _nvidia("NVIDIA-A100-SXM4-80GB", 81920, "8.0", "ampere"),
    "a100-40gb": _nvidia("NVIDIA-A100-SXM4-40GB", 40960, "8.0", "ampere"),
    "l40s": _nvidia("NVIDIA-L40S", 46068, "8.9", "ada-lovelace"),
    "a10g": _nvidia("NVIDIA-A10G", 23028, "8.6", "ampere"),
    "l4": _nvidia("NVIDIA-L4", 23034, "8.9", "ada-lovelace"),
    "t4": _nvidia("Tesla-T4", 15360, "7.5", "turing"),
    "a100-mig-1g.10gb": _slice("NVIDIA-A100-SXM4-80GB", "1g.10gb", 9728),
    "a100-mig-3g.40gb": _slice("NVIDIA-A100-SXM4-80GB", "3g.40gb", 40192),
    "mi300x": _amd("AMD_Instinct_MI300X_OAM", "192G"),
    "max-1550": Product("gpu.intel.com/i915", {"gpu.intel.com/product": "Max_1550"}, "gpu.intel.com/device.count", ""),
    "unlabelled": Product("nvidia.com/gpu"),
}
"""Name in `--nodes` -> product; `wrpo plan --accelerators` knows those of whole devices too. `unlabelled` has a device
plugin but no discovery of features."""


def parse_nodes(text: str, *, cpu: str, memory: str) -> tuple[NodeConfig, ...]:
    """Return the nodes of `h100=4x8,l40s=2x4`: product, number of nodes, accelerators of each.

    Nodes with accelerators have the taint that keeps other pods away, so a node without any is added unless `cpu=...`
    is given. Raises ValueError for another text.
    """
    found: list[NodeConfig] = []
    seen: set[str] = set()
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise ValueError(f"--nodes has {item.strip()!r}, which is not PRODUCT=NODESxEACH, e.g. h100=4x8")
        name, count, each = match["product"].lower(), int(match["nodes"]), int(match["each"])
        if name in seen:
            raise ValueError(f"--nodes has {name} twice. Add the numbers of its nodes, or leave one out")
        seen.add(name)
        _check(name, count, each)
        found += [_node(name, number, each, cpu=cpu, memory=memory) for number in range(count)]
    if CPU not in seen:
        found.append(_node(CPU, 0, 0, cpu=cpu, memory=memory))
    return tuple(found)


def _check(name: str, count: int, each: int) -> None:
    if name != CPU and name not in PRODUCTS:
        raise ValueError(f"--nodes has the product {name!r}. Products are {', '.join((*PRODUCTS, CPU))}")
    if not 1 <= count <= MAX_NODES:
        raise ValueError(f"--nodes has {count} nodes of {name}, which is not a number from 1 to {MAX_NODES}")
    least, most = (0, 0) if name == CPU else (1, 64)
    if not least <= each <= most:
        rule = "0" if name == CPU else f"a number from {least} to {most}"
        raise ValueError(f"--nodes has {each} accelerators for each node of {name}, which is not {rule}")


def _node(name: str, number: int, each: int, *, cpu: str, memory: str) -> NodeConfig:
    node = f"{name.replace('.', '-')}-{number}"
    if name == CPU:
        return NodeConfig(name=node, cpu=cpu, memory=memory, disk=DISK)
    product = PRODUCTS[name]
    labels = dict(product.labels)
    if product.count_label:
        labels[product.count_label] = str(each)
    taints = ({"key": product.taint, "value": "present", "effect": "NoSchedule"},) if product.taint else ()
    return NodeConfig(
        name=node,
        cpu=cpu,
        memory=memory,
        disk=DISK,
        labels=labels,
        taints=taints,
        extended={product.resource: str(each)},
    )
