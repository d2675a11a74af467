"""Accelerators of a stage that scores responses with a reward model, which runs on one accelerator."""

from __future__ import annotations

from wrpo_operator.api.placement import MAX_ALTERNATIVES, Placement
from wrpo_operator.sizing.choosing import (
    MAX_SHARDS,
    cost_of,
    disk_gib,
    groups_of,
    host_memory_gib,
    most_in_a_pod,
    most_pods,
    on_cpu,
    size_of,
)
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.memory import (
    HALF,
    RUNTIME_BYTES,
    WEIGHT_OVERHEAD,
    gib,
    layer_activations,
    loaded_bytes,
    usable_bytes,
    width_of,
)
from wrpo_operator.sizing.requests import DoesNotFit, ScoringRequest

USABLE = 0.90
BATCH_TOKENS = 16384
MIN_BATCH_TOKENS = 1024
RESPONSES_PER_SHARD = 1024
"""A shard with fewer responses would spend most of its time on loading."""


def need(request: ScoringRequest, tokens: int) -> float:
    """Return the bytes that the accelerator needs for forward passes of so many tokens."""
    weights = loaded_bytes(request.facts, None, request.dtype) * WEIGHT_OVERHEAD
    return weights + RUNTIME_BYTES + pass_bytes(request, tokens)


def pass_bytes(request: ScoringRequest, tokens: int) -> int:
    """Return the bytes that a forward pass of so many tokens needs next to the weights."""
    return tokens * layer_activations(request.facts) * width_of(request.dtype) // HALF


def batches_of(request: ScoringRequest) -> list[int]:
    """Return the sizes of batches to try, usual ones first: what the user set, or halved down to the smallest."""
    if request.batch_tokens:
        return [request.batch_tokens]
    return [BATCH_TOKENS >> times for times in range((BATCH_TOKENS // MIN_BATCH_TOKENS).bit_length())]


def place_scoring(request: ScoringRequest, inventory: Inventory) -> Placement | DoesNotFit:
    """Return the cheapest placement in which the reward model fits, or why there is none.

    Smaller batches are chosen only where no accelerator has room for usual ones.
    """
    asked = request.asked
    decided = on_cpu(request.facts, inventory, asked)
    if decided is not None:
        return decided
    groups = groups_of(inventory, asked)
    steps = _ladder(request, groups)
    if request.step >= len(steps):
        return _refusal(request, inventory, groups, last=steps[-1] if steps else None)
    group, tokens = steps[request.step]
    pods = min(most_pods(group, 1, request.max_accelerators), MAX_SHARDS)
    responses = request.responses or MAX_SHARDS * RESPONSES_PER_SHARD
    return Placement(
        accelerator=group.name,
        resource=group.resource,
        per_pod=asked.accelerators or 1,
        pods=asked.pods or max(1, min(pods, responses // RESPONSES_PER_SHARD)),
        micro_batch_tokens=tokens,
        memory_gib=asked.memory_gib or host_memory_gib(loaded_bytes(request.facts, None, request.dtype), None),
        ephemeral_storage_gib=asked.ephemeral_storage_gib or disk_gib(request.facts, cached=request.cached),
        node_labels=dict(group.labels),
        step=request.step,
        arithmetic=f"weights of {gib(loaded_bytes(request.facts, None, request.dtype))}, batches of {tokens} tokens: "
        f"{gib(need(request, tokens))} of {gib(usable_bytes(group, USABLE))} usable ({USABLE:.0%} of {group.name})",
        alternatives=tuple(
            dict.fromkeys(size_of(other, 1) for other, _ in steps if other.name != group.name),
        )[:MAX_ALTERNATIVES],
    )


def _ladder(request: ScoringRequest, groups: tuple[AcceleratorGroup, ...]) -> list[tuple[AcceleratorGroup, int]]:
    """Return groups and batch sizes that fit: usual batches first, on the cheapest group; then what has more room."""
    usable = sorted(
        (
            group
            for group in groups
            if most_in_a_pod(group, request.max_accelerators) >= (request.asked.accelerators or 1)
        ),
        key=lambda group: cost_of(group, 1),
    )
    found = [
        (group, tokens)
        for tokens in batches_of(request)
        for group in usable
        if need(request, tokens) <= usable_bytes(group, USABLE)
    ]
    steps = found[:1]
    for group, tokens in found[1:]:
        previous, size = steps[-1]
        if (tokens < size and group.memory_mib >= previous.memory_mib) or (
            tokens == size and group.memory_mib > previous.memory_mib
        ):
            steps.append((group, tokens))
    return steps


def _refusal(
    request: ScoringRequest,
    inventory: Inventory,
    groups: tuple[AcceleratorGroup, ...],
    last: tuple[AcceleratorGroup, int] | None,
) -> DoesNotFit:
    tokens = request.batch_tokens or MIN_BATCH_TOKENS
    needs, largest = gib(need(request, tokens)), max(groups, key=lambda group: (group.memory_mib, group.name))
    room = f"{gib(usable_bytes(largest, USABLE))} of {size_of(largest, 1)}"
    if last is not None:
        message = (
            f"Memory was exhausted {request.step} times, at last on {size_of(last[0], 1)} with batches of {last[1]} "
            f"tokens, and there is no larger placement. Either reduce reward.batchTokens, or add larger accelerators."
        )
    else:
        weights = gib(loaded_bytes(request.facts, None, request.dtype))
        message = (
            f"The reward model ({request.facts.model_type}, weights of {weights}) needs {needs} on one accelerator; "
            f"the largest has {room} ({inventory.description}). Either add nodes with larger accelerators, name a "
            f"smaller reward model, or let a server run it (reward.endpoint)."
        )
    return DoesNotFit(needs=needs, largest=room, message=message)
