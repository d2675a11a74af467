"""Accelerators of a stage that scores responses with a reward model."""

from __future__ import annotations

from wrpo_operator.api.placement import Placement
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
)
from wrpo_operator.sizing.inventory import Inventory
from wrpo_operator.sizing.memory import GIB, gib, key_value_bytes, loaded_bytes, usable_bytes
from wrpo_operator.sizing.requests import DoesNotFit, ScoringRequest

USABLE = 0.90
BATCH_TOKENS = 16384
MIN_BATCH_TOKENS = 1024
RESPONSES_PER_SHARD = 1024
_RUNTIME = 2.3 * GIB


def need(request: ScoringRequest, batch_tokens: int) -> float:
    """Return the bytes that the accelerator needs."""
    facts = request.facts
    activations = batch_tokens * (key_value_bytes(facts) // facts.layers + 24 * facts.hidden_size)
    return loaded_bytes(facts) * 1.05 + _RUNTIME + activations


def place_scoring(request: ScoringRequest, inventory: Inventory) -> Placement | DoesNotFit:
    """Return the cheapest placement in which the reward model fits, or why there is none."""
    decided = on_cpu(request.facts, inventory, request.asked)
    if decided is not None:
        return decided
    groups = groups_of(inventory, request.asked)
    tokens = request.batch_tokens or BATCH_TOKENS >> request.step
    fitting = sorted(
        (
            group
            for group in groups
            if most_in_a_pod(group, request.max_accelerators) and need(request, tokens) <= usable_bytes(group, USABLE)
        ),
        key=lambda group: cost_of(group, 1),
    )
    exhausted = tokens < MIN_BATCH_TOKENS or (request.batch_tokens is not None and request.step > 0)
    if not fitting or exhausted:
        largest = largest_of(groups, 1)
        needed = gib(need(request, max(tokens, MIN_BATCH_TOKENS)))
        return DoesNotFit(
            needs=needed,
            largest=largest,
            message=f"The reward model needs {needed} on one accelerator; the largest pod has {largest}. Add nodes "
            f"with larger accelerators or name a smaller reward model.",
        )
    group = fitting[0]
    shards = min(
        most_pods(group, 1, request.max_accelerators),
        max(1, (request.responses or MAX_SHARDS * RESPONSES_PER_SHARD) // RESPONSES_PER_SHARD),
        MAX_SHARDS,
    )
    return Placement(
        accelerator=group.name,
        resource=group.resource,
        per_pod=1,
        pods=request.asked.pods or shards,
        micro_batch_tokens=tokens,
        memory_gib=request.asked.memory_gib or host_memory_gib(loaded_bytes(request.facts), None),
        ephemeral_storage_gib=request.asked.ephemeral_storage_gib or disk_gib(request.facts, cached=request.cached),
        node_labels=dict(group.labels),
        step=request.step,
        arithmetic=f"{gib(need(request, tokens))} of {gib(usable_bytes(group, USABLE))}, batches of {tokens} tokens",
    )
