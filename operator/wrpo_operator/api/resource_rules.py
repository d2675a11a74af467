"""Rules of the API server and the scheduler about requests and limits.

Without a check of the spec, a violation would appear only when pods are created.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from wrpo_engine.contract.base import values_of
from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.pods import Resources
from wrpo_operator.api.spec import ExperimentSpec

_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)")
_FACTORS: dict[str, Decimal] = {
    "m": Decimal("0.001"), "": Decimal(1),
    **{suffix: Decimal(1000) ** (power + 1) for power, suffix in enumerate("kMGTPE")},
    **{f"{suffix}i": Decimal(1024) ** (power + 1) for power, suffix in enumerate("KMGTPE")},
}  # fmt: skip
_BYTES = re.compile(r"memory|ephemeral-storage|hugepages-.*")
_ACCELERATOR = re.compile(
    r"nvidia\.com/(gpu|mig-).*|amd\.com/.*|gpu\.intel\.com/.*|habana\.ai/.*|google\.com/tpu.*"
    r"|aws\.amazon\.com/neuron.*|huawei\.com/.*|[^/]*/[^/]*gpu[^/]*"
)
"""Compute devices, of which a node has one kind. Network cards and similar devices accompany GPUs."""
DEFAULT_GPU = "nvidia.com/gpu"


def amount(quantity: float | str) -> Decimal:
    """Return the value of a quantity; ValueError for another text."""
    match = _FORM.fullmatch(str(quantity))
    if match is None:
        raise ValueError(f"{quantity} is not a quantity")
    return Decimal(match[1]) * _FACTORS[match[2]]


def is_extended(name: str) -> bool:
    """Return whether a resource is a device: devices are counted in whole numbers and cannot be shared."""
    return "/" in name and "kubernetes.io/" not in name


def resource_errors(path: str, resources: Resources) -> Iterator[str]:
    """Yield every fault of one pod's requests and limits as a sentence that begins with the field's path."""
    yield from _fraction_errors(path, resources)
    yield from _limit_errors(path, resources)


def _fraction_errors(path: str, resources: Resources) -> Iterator[str]:
    for field, found in (("requests", resources.requests), ("limits", resources.limits)):
        for name, quantity in found.items():
            where = f'{path}.{field}["{name}"] is {quantity}'
            if amount(quantity) % 1 == 0:
                continue
            if is_extended(name):
                yield f"{where}: devices are counted in whole numbers; write 1 or more, or leave it out."
            elif _BYTES.fullmatch(name):
                yield f"{where}: that is a fraction of a byte; write bytes or a suffix such as Mi or Gi."


def _limit_errors(path: str, resources: Resources) -> Iterator[str]:
    for name, requested in resources.requests.items():
        limit = resources.limits.get(name)
        where = f'{path}.requests["{name}"] is {requested}'
        if limit is None:
            if is_extended(name):
                yield f"{where}, but limits has no {name}: devices need a limit; set limits instead of requests."
        elif amount(requested) > amount(limit):
            yield f"{where}, more than its limit {limit}: lower the request or raise the limit."
        elif is_extended(name) and amount(requested) != amount(limit):
            yield f"{where}, its limit {limit}: devices are not shared, both must be equal; set only limits."


def is_accelerator(name: str) -> bool:
    """Return whether a resource is a compute device."""
    return _ACCELERATOR.fullmatch(name) is not None


def accelerators_in(resources: Resources) -> dict[str, int]:
    """Return the compute devices of a pod's requests and limits, by resource; 0 if the spec rules them out."""
    found = {**resources.requests, **resources.limits}
    return {name: int(amount(quantity)) for name, quantity in found.items() if is_accelerator(name)}


def gpus_per_node(spec: ExperimentSpec, kind: str) -> int | None:
    """Return the GPUs per pod of a training stage, one of SFT or another; None if the spec does not set them."""
    own = spec.sft.gpus_per_node if STAGES[kind].section.name == "sft" else None
    return spec.training.gpus_per_node if own is None else own


def gpu_resource_name(spec: ExperimentSpec) -> str:
    """Return the name of the resource that gpusPerNode counts."""
    return spec.training.gpu_resource_name or DEFAULT_GPU


def accelerator_errors(spec: ExperimentSpec) -> Iterator[str]:
    """Yield an error for each training stage that requests two kinds of compute devices, because no node has both."""
    own = gpu_resource_name(spec)
    gangs = [definition for definition in STAGES.values() if definition.shape is Shape.TRAINING]
    counts = {definition.section.name: gpus_per_node(spec, definition.kind) for definition in gangs}
    for stage, gpus in counts.items():
        resources = spec.resources.of_section(stage)
        for name in sorted({*resources.requests, *resources.limits} - {own}) if gpus else ():
            if is_accelerator(name):
                yield (
                    f"spec.resources.{stage} requests {name} and {gpus} {own} (gpusPerNode), but no node has both; set"
                    f" spec.training.gpuResourceName to {name} and remove {name} from spec.resources.{stage}."
                )


def parallelism_errors(spec: ExperimentSpec) -> Iterator[str]:
    """Yield an error for each stage whose model is divided over more accelerators than its pods have.

    Pods without accelerators are not checked: they divide a model over processes.
    """
    common, shared = values_of(spec.sampling), spec.resources.of_section("sample")
    for index, source in enumerate(spec.sources):
        own = values_of(source.sampling)
        path = f"spec.sources[{index}].resources" if source.resources else "spec.resources.sample"
        if own or source.resources:
            yield from _parallelism(f"spec.sources[{index}]", common | own, path, source.resources or shared)
    for judge in spec.evaluation.judges:
        if judge.serve is not None:
            what = f"spec.evaluation.judges[{judge.name}].serve"
            path = f"{what}.resources" if judge.serve.resources else "spec.resources.judge"
            resources = judge.serve.resources or spec.resources.of_section("judge")
            yield from _parallelism(what, values_of(judge.serve), path, resources)
    for section in ("sample", "evaluate"):
        resources = spec.resources.of_section(section)
        yield from _parallelism("spec.sampling", common, f"spec.resources.{section}", resources)


def _parallelism(what: str, settings: Mapping[str, Any], path: str, resources: Resources) -> Iterator[str]:
    tensor = settings.get("tensor_parallel_size") or 1
    pipeline = settings["engine_args"].get("pipeline_parallel_size", 1)
    pipeline = pipeline if isinstance(pipeline, int) else 1  # the engine refuses other values
    for name, count in accelerators_in(resources).items():
        if 0 < count < tensor * pipeline:
            product = f"tensorParallelSize {tensor}"
            product += f" times engineArgs.pipeline_parallel_size {pipeline}" if pipeline > 1 else ""
            yield (
                f"{what} divides its model over {tensor * pipeline} accelerators ({product}), but {path} gives each pod"
                f" {count} {name}; set {name} to {tensor * pipeline}, lower tensorParallelSize, or remove {name} so "
                "that the operator chooses."
            )
