"""Accelerators of a stage that generates responses with vLLM or Transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.placement import MAX_ALTERNATIVES, Placement
from wrpo_operator.sizing.choosing import (
    MAX_SHARDS,
    advice,
    cost_of,
    disk_gib,
    groups_of,
    host_memory_gib,
    largest_of,
    limits_of,
    most_in_a_pod,
    most_pods,
    on_cpu,
    shared_memory_gib,
    size_of,
)
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.memory import (
    RUNTIME_BYTES,
    WEIGHT_OVERHEAD,
    gib,
    key_value_bytes,
    legal_tensor_parallel,
    loaded_bytes,
    usable_bytes,
)
from wrpo_operator.sizing.requests import DoesNotFit, GenerationRequest

UTILIZATION = 0.90
REDUCED_UTILIZATION = 0.84
"""Share after the first OutOfMemory."""
SEQUENCES = 16
"""Sequences of full length whose cache should fit at once."""
USUAL_LENGTH = 4096
"""Tokens of a usual sequence. The stage limits vLLM to its longest prompt and maxTokens together."""
PROMPTS_PER_SHARD = 256
"""A shard with fewer prompts would spend most of its time on loading."""
PIPELINE = "pipeline_parallel_size"
"""vLLM's argument for the groups of layers of a model."""
LARGEST_POD = 64
"""Accelerators up to which a refusal states how many would be needed."""
FP8_CAPABILITY = 8.9
"""CUDA compute capability from which vLLM computes in fp8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A group, and how a pod divides the model over accelerators of it."""

    group: AcceleratorGroup
    tensor: int
    pipeline: int
    share: float = UTILIZATION
    """Share of the accelerators' memory that is used."""

    @property
    def accelerators(self) -> int:
        """Return the accelerators of a pod."""
        return self.tensor * self.pipeline

    @property
    def rank(self) -> tuple[bool, tuple[float, float, str], int]:
        """Return what ways are ordered by: tensor parallelism alone, then the costs."""
        return self.pipeline > 1, cost_of(self.group, self.accelerators), self.pipeline


def cached_tokens(request: GenerationRequest, sequences: int) -> int:
    """Return the tokens that the cache must hold: `sequences` usual ones, and at least one of the longest."""
    longest = longest_sequence(request)
    return max(longest, sequences * min(longest, USUAL_LENGTH))


def longest_sequence(request: GenerationRequest) -> int:
    """Return the tokens of the longest sequence, which the model's context limits."""
    context = request.facts.context
    usual = context if request.whole_context else USUAL_LENGTH
    return min(request.max_model_length or usual, context)


def need(request: GenerationRequest, *, tensor: int, pipeline: int, tokens: int) -> float:
    """Return the bytes that each accelerator needs; of the stages of a pipeline the one with the most layers counts."""
    facts = request.facts
    layers = ceil(facts.layers / pipeline) / facts.layers
    weights = loaded_bytes(facts, request.quantization, request.dtype) * WEIGHT_OVERHEAD * layers / tensor
    return (
        weights
        + RUNTIME_BYTES
        + key_value_bytes(facts, request.dtype, request.cache_dtype) * layers * tokens / _copies_divided(facts, tensor)
    )


def room(request: GenerationRequest, way: Way) -> int:
    """Return the tokens whose keys and values fit next to the weights; negative if the weights do not fit."""
    free = usable_bytes(way.group, way.share) - need(request, tensor=way.tensor, pipeline=way.pipeline, tokens=0)
    each = need(request, tensor=way.tensor, pipeline=way.pipeline, tokens=1)
    each -= need(request, tensor=way.tensor, pipeline=way.pipeline, tokens=0)
    return int(free / each)


def place_generation(request: GenerationRequest, inventory: Inventory) -> Placement | DoesNotFit:
    """Return the cheapest placement in which the model and its cache fit, or why there is none.

    Preferred is the cheapest in which `SEQUENCES` sequences fit at once. Where none can, a pod gets all accelerators
    that it can use, if one sequence fits. Layers are distributed (pipeline parallelism) only if no legal
    tensor-parallel size suffices.
    """
    facts, asked = request.facts, request.asked
    decided = on_cpu(facts, inventory, asked)
    if decided is not None:
        return decided
    groups = groups_of(inventory, asked)
    if asked.tensor_parallel is not None and asked.tensor_parallel not in legal_tensor_parallel(
        facts, asked.tensor_parallel
    ):
        return _illegal(facts, asked.tensor_parallel)
    ways = _fitting(request, groups)
    steps = _ladder(request, ways)
    if not ways:
        return _refusal(request, inventory, groups)
    if request.step >= len(steps):
        return _exhausted(request, steps[-1])
    way = steps[request.step]
    others = [other for other in ways if (other.group, other.accelerators) != (way.group, way.accelerators)]
    return _placement(request, way, others)


def _fitting(request: GenerationRequest, groups: tuple[AcceleratorGroup, ...]) -> list[Way]:
    """Return the ways that fit, the preferred one first."""
    ways = list(_ways(request, groups))
    for candidates in ([way for way in ways if way.pipeline == 1], ways):
        good = [way for way in candidates if room(request, way) >= cached_tokens(request, SEQUENCES)]
        if good:
            return sorted(good, key=lambda way: way.rank)
        usable = [way for way in _largest_of_each(candidates) if room(request, way) >= cached_tokens(request, 1)]
        if usable:
            return sorted(usable, key=lambda way: way.rank)
    return []


def _largest_of_each(ways: Iterable[Way]) -> list[Way]:
    largest: dict[str, Way] = {}
    for way in ways:
        other = largest.get(way.group.name)
        if other is None or (way.accelerators, way.tensor) > (other.accelerators, other.tensor):
            largest[way.group.name] = way
    return list(largest.values())


def _ways(request: GenerationRequest, groups: tuple[AcceleratorGroup, ...]) -> Iterator[Way]:
    asked, layers = request.asked, request.facts.layers
    for group in groups:
        most = most_in_a_pod(group, request.max_accelerators)
        most = min(most, 1) if request.backend == "Transformers" else most
        for tensor in legal_tensor_parallel(request.facts, most):
            for pipeline in range(1, min(layers, most // tensor) + 1):
                if (
                    asked.tensor_parallel in (None, tensor)
                    and asked.pipeline_parallel in (None, pipeline)
                    and asked.accelerators in (None, tensor * pipeline)
                ):
                    yield Way(group=group, tensor=tensor, pipeline=pipeline, share=_share(request, UTILIZATION))


def _share(request: GenerationRequest, usual: float) -> float:
    """Return the share of the accelerators' memory that is used: what the user set, which only vLLM reads."""
    asked = request.asked.utilization
    return usual if asked is None or request.backend == "Transformers" else asked


def _ladder(request: GenerationRequest, ways: list[Way]) -> list[Way]:
    """Return the first way, then ways with strictly more room after each OutOfMemory."""
    found = ways[:1]
    most = 0
    for way in ways:
        memory = way.accelerators * way.group.memory_mib
        reduced = replace(way, share=_share(request, REDUCED_UTILIZATION))
        if memory > most and room(request, reduced) >= cached_tokens(request, 1):
            found += [] if reduced in found else [reduced]
            most = memory
    return found


def _placement(request: GenerationRequest, way: Way, others: list[Way]) -> Placement:
    asked, shared = request.asked, shared_memory_gib(way.accelerators)
    prompts = request.prompts or MAX_SHARDS * PROMPTS_PER_SHARD
    pods = min(most_pods(way.group, way.accelerators, request.max_accelerators), MAX_SHARDS)
    return Placement(
        accelerator=way.group.name,
        resource=way.group.resource,
        per_pod=way.accelerators,
        pods=asked.pods or max(1, min(pods, prompts // PROMPTS_PER_SHARD)),
        tensor_parallel_size=way.tensor,
        pipeline_parallel_size=way.pipeline,
        gpu_memory_utilization=way.share if request.backend == "vLLM" else None,
        memory_gib=asked.memory_gib
        or host_memory_gib(loaded_bytes(request.facts, request.quantization, request.dtype), shared),
        ephemeral_storage_gib=asked.ephemeral_storage_gib or disk_gib(request.facts, cached=request.cached),
        shared_memory_gib=shared,
        node_labels=dict(way.group.labels),
        step=request.step,
        arithmetic=_arithmetic(request, way),
        alternatives=tuple(_describe(other) for other in others[:MAX_ALTERNATIVES]),
    )


def _arithmetic(request: GenerationRequest, way: Way) -> str:
    tokens = room(request, way)
    fixed = need(request, tensor=way.tensor, pipeline=way.pipeline, tokens=0)
    longest = longest_sequence(request)
    held = tokens // longest
    sequences = "is 1 sequence" if held == 1 else f"are {held} sequences"
    return (
        f"weights of {gib(loaded_bytes(request.facts, request.quantization, request.dtype))} on {way.accelerators} x "
        f"{way.group.name}: {gib(fixed)} of {gib(usable_bytes(way.group, way.share))} usable each ({way.share:.0%}), "
        f"room for {tokens} tokens, which {sequences} of {longest}"
    )


def _describe(way: Way) -> str:
    layers = f", pipeline parallel {way.pipeline}" if way.pipeline > 1 else ""
    return f"{size_of(way.group, way.accelerators)}, tensor parallel {way.tensor}{layers}"


def _copies_divided(facts: ModelFacts, tensor: int) -> int:
    """Return into how many parts keys and values are divided; latent ones and copied heads are not."""
    return 1 if facts.latent_size is not None else min(tensor, facts.key_value_heads)


def _illegal(facts: ModelFacts, tensor: int) -> DoesNotFit:
    legal = ", ".join(map(str, legal_tensor_parallel(facts, LARGEST_POD)))
    widths = "the feed-forward widths" if facts.quantization is None else "the quantised groups of the widths"
    return DoesNotFit(
        needs=f"a tensor-parallel size of {legal}",
        largest=f"tensorParallelSize {tensor}",
        message=f"tensorParallelSize {tensor} cannot divide {facts.attention_heads} heads, {facts.key_value_heads} "
        f"key-value heads, {widths} and the vocabulary evenly. Set one of {legal}, or leave it unset.",
        final=True,
    )


def _refusal(request: GenerationRequest, inventory: Inventory, groups: tuple[AcceleratorGroup, ...]) -> DoesNotFit:
    largest = largest_of(groups, 1 if request.backend == "Transformers" else request.max_accelerators)
    weights = loaded_bytes(request.facts, request.quantization, request.dtype)
    best = max(groups, key=lambda group: (group.memory_mib, group.name))
    needs = _needed(request, best)
    remedies = ["add nodes with more or larger accelerators", *_quantisation(request, groups)]
    remedies += ["reduce maxModelLength"] if (request.max_model_length or 0) > USUAL_LENGTH else []
    remedies += ["set maxModelLength"] if request.whole_context and request.max_model_length is None else []
    share = _share(request, UTILIZATION)
    remedies += [f"raise gpuMemoryUtilization, which is {share:g}"] if share < UTILIZATION else []
    remedies += _other_sizes(request, groups)
    remedies += limits_of(groups, request.max_accelerators)
    return DoesNotFit(
        needs=needs,
        largest=largest,
        message=f"The model ({request.facts.model_type}, weights of {gib(weights)}) needs {needs}; the largest pod can "
        f"have {largest} ({inventory.description}). {advice(remedies)}",
    )


def _needed(request: GenerationRequest, group: AcceleratorGroup) -> str:
    """Return the fewest accelerators of a group with which one sequence would fit, on a node of any size."""
    limit, asked = 1 if request.backend == "Transformers" or group.is_slice else LARGEST_POD, request.asked
    for tensor in legal_tensor_parallel(request.facts, limit):
        way = Way(group=group, tensor=tensor, pipeline=asked.pipeline_parallel or 1, share=_share(request, UTILIZATION))
        if asked.tensor_parallel in (None, tensor) and room(request, way) >= cached_tokens(request, 1):
            return f"{size_of(group, way.accelerators)} in one pod"
    if limit == 1:
        whole = need(request, tensor=1, pipeline=1, tokens=cached_tokens(request, 1))
        return f"one accelerator with {gib(whole)} usable"
    return f"more than {size_of(group, LARGEST_POD)} in one pod"


def _other_sizes(request: GenerationRequest, groups: tuple[AcceleratorGroup, ...]) -> list[str]:
    """Return as a remedy to leave the sizes to the operator, if others than those that the user set fit."""
    asked = request.asked
    sizes = {"tensorParallelSize": asked.tensor_parallel, PIPELINE: asked.pipeline_parallel}
    given = [name for name, size in sizes.items() if size is not None]
    free = replace(request, asked=replace(asked, tensor_parallel=None, pipeline_parallel=None))
    return [f"leave {' and '.join(given)} unset"] if given and _fitting(free, groups) else []


def _quantisation(request: GenerationRequest, groups: tuple[AcceleratorGroup, ...]) -> list[str]:
    """Return quantisation as a remedy if it helps: fp8 where it is computed, else a checkpoint of 4 bits."""
    if request.facts.quantization or request.quantization or request.backend == "Transformers":
        return []
    for method, capability in (("fp8", FP8_CAPABILITY), ("awq", 0.0)):
        able = tuple(group for group in groups if (group.compute_capability or FP8_CAPABILITY) >= capability)
        if able and _fitting(replace(request, quantization=method), able):
            changed = "which changes the responses"
            return [
                f"set quantization: fp8, {changed}" if method == "fp8" else f"use a 4-bit checkpoint (AWQ), {changed}"
            ]
    return []


def _exhausted(request: GenerationRequest, last: Way) -> DoesNotFit:
    return DoesNotFit(
        needs=f"more than {size_of(last.group, last.accelerators)} in one pod",
        largest=size_of(last.group, last.accelerators),
        message=f"Memory was exhausted {request.step} times, at last on {size_of(last.group, last.accelerators)} with "
        f"{last.share:.0%} of their memory, and there is no larger placement. Reduce maxModelLength or max_num_seqs "
        f"(engineArgs), or add larger accelerators.",
    )
