"""Accelerators of a stage that generates responses with vLLM or Transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wrpo_operator.api.placement import MAX_ALTERNATIVES, Placement
from wrpo_operator.sizing.choosing import (
    MAX_SHARDS,
    cost_of,
    disk_gib,
    groups_of,
    host_memory_gib,
    largest_of,
    most_in_a_pod,
    most_pods,
    on_cpu,
    shared_memory_gib,
    size_of,
)
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.memory import GIB, gib, key_value_bytes, legal_tensor_parallel, loaded_bytes, usable_bytes
from wrpo_operator.sizing.requests import DoesNotFit, GenerationRequest

UTILIZATION = 0.90
REDUCED_UTILIZATION = 0.84
"""Share after the first OutOfMemory."""
SEQUENCES = 16
"""Sequences of full length that should fit into the cache at once; fewer are accepted where accelerators are small."""
USUAL_LENGTH = 4096
"""Tokens of a usual sequence. The stage limits vLLM to its longest prompt and maxTokens together."""
PROMPTS_PER_SHARD = 256
"""A shard with fewer prompts would spend most of its time on loading."""
_RUNTIME = 2.3 * GIB
"""Context, kernels, graphs and activations of each accelerator."""
_WEIGHT_OVERHEAD = 1.02 * 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A group, and how a pod divides the model over accelerators of it."""

    group: AcceleratorGroup
    tensor: int
    pipeline: int
    sequences: int

    @property
    def accelerators(self) -> int:
        """Return the accelerators of a pod."""
        return self.tensor * self.pipeline


def cached_tokens(request: GenerationRequest, sequences: int) -> int:
    """Return the tokens that the cache must hold: `sequences` usual ones, and at least one of the longest."""
    longest = min(request.max_model_length or USUAL_LENGTH, request.facts.context)
    return max(longest, sequences * min(longest, USUAL_LENGTH))


def need(request: GenerationRequest, *, tensor: int, pipeline: int, tokens: int) -> float:
    """Return the bytes that each accelerator needs."""
    facts = request.facts
    weights = loaded_bytes(facts, request.quantization) * _WEIGHT_OVERHEAD / (tensor * pipeline)
    divided = 1 if facts.latent_size is not None else min(tensor, facts.key_value_heads)
    return weights + _RUNTIME + key_value_bytes(facts) * tokens / (divided * pipeline)


def place_generation(request: GenerationRequest, inventory: Inventory) -> Placement | DoesNotFit:
    """Return the cheapest placement in which the model and its cache fit, or why there is none."""
    decided = on_cpu(request.facts, inventory, request.asked)
    if decided is not None:
        return decided
    groups = groups_of(inventory, request.asked)
    ways = _fitting(request, groups)
    steps = [(ways[0], UTILIZATION), *((way, REDUCED_UTILIZATION) for way in _larger(ways))] if ways else []
    if request.step >= len(steps):
        return _refusal(request, groups)
    way, share = steps[request.step]
    return _placement(request, way, share, [other for other in ways if other is not way])


def _fitting(request: GenerationRequest, groups: tuple[AcceleratorGroup, ...]) -> list[Way]:
    """Return the ways that fit with the most sequences that any way allows, cheapest first."""
    sequences = SEQUENCES
    while sequences:
        found = [
            way
            for way in _ways(request, groups, sequences)
            if need(request, tensor=way.tensor, pipeline=way.pipeline, tokens=cached_tokens(request, sequences))
            <= usable_bytes(way.group, UTILIZATION)
        ]
        if found:
            return sorted(found, key=lambda way: (way.pipeline > 1, *cost_of(way.group, way.accelerators), way.tensor))
        sequences //= 2
    return []


def _ways(request: GenerationRequest, groups: tuple[AcceleratorGroup, ...], sequences: int) -> Iterator[Way]:
    asked = request.asked
    for group in groups:
        most = most_in_a_pod(group, request.max_accelerators) if request.backend == "vLLM" else 1
        for tensor in legal_tensor_parallel(request.facts, most):
            if asked.tensor_parallel not in (None, tensor):
                continue
            for pipeline in range(1, most // tensor + 1):
                if asked.pipeline_parallel not in (None, pipeline):
                    continue
                if asked.accelerators in (None, tensor * pipeline):
                    yield Way(group=group, tensor=tensor, pipeline=pipeline, sequences=sequences)


def _larger(ways: list[Way]) -> Iterator[Way]:
    """Yield the first way, then those with more memory than all before."""
    most = 0
    for way in ways:
        memory = way.accelerators * way.group.memory_mib
        if memory > most:
            yield way
            most = memory


def _placement(request: GenerationRequest, way: Way, share: float, others: list[Way]) -> Placement:
    asked, shared = request.asked, shared_memory_gib(way.accelerators)
    weights = loaded_bytes(request.facts, request.quantization)
    pods = min(
        most_pods(way.group, way.accelerators, request.max_accelerators),
        max(1, (request.prompts or MAX_SHARDS * PROMPTS_PER_SHARD) // PROMPTS_PER_SHARD),
        MAX_SHARDS,
    )
    return Placement(
        accelerator=way.group.name,
        resource=way.group.resource,
        per_pod=way.accelerators,
        pods=asked.pods or pods,
        tensor_parallel_size=way.tensor,
        pipeline_parallel_size=way.pipeline,
        gpu_memory_utilization=share if request.backend == "vLLM" else None,
        memory_gib=asked.memory_gib or host_memory_gib(weights, shared),
        ephemeral_storage_gib=asked.ephemeral_storage_gib or disk_gib(request.facts, cached=request.cached),
        shared_memory_gib=shared,
        node_labels=dict(way.group.labels),
        step=request.step,
        arithmetic=_arithmetic(request, way, share),
        alternatives=tuple(_describe(other) for other in others[:MAX_ALTERNATIVES]),
    )


def _arithmetic(request: GenerationRequest, way: Way, share: float) -> str:
    tokens = cached_tokens(request, way.sequences)
    needed = need(request, tensor=way.tensor, pipeline=way.pipeline, tokens=tokens)
    weights = loaded_bytes(request.facts, request.quantization)
    return (
        f"weights {gib(weights)} over {way.accelerators}, cache of {tokens} tokens, {gib(_RUNTIME)} for the runtime: "
        f"{gib(needed)} of {gib(usable_bytes(way.group, share))} ({share:.0%} of {way.group.name})"
    )


def _describe(way: Way) -> str:
    parts = f"tensor parallel {way.tensor}" + (f", pipeline parallel {way.pipeline}" if way.pipeline > 1 else "")
    return f"{size_of(way.group, way.accelerators)}, {parts}"


def _refusal(request: GenerationRequest, groups: tuple[AcceleratorGroup, ...]) -> DoesNotFit:
    needed = need(request, tensor=1, pipeline=1, tokens=cached_tokens(request, 1))
    largest = largest_of(groups, request.max_accelerators)
    return DoesNotFit(
        needs=gib(needed),
        largest=largest,
        message=f"The model needs {gib(needed)} of accelerator memory in one pod; the largest pod has {largest}. Add "
        f"nodes with larger accelerators, set quantization: fp8, or reduce maxModelLength.",
    )
