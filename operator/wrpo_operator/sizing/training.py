"""Accelerators of a training stage."""

from __future__ import annotations

from wrpo_operator.api.placement import Placement
from wrpo_operator.sizing.choosing import (
    disk_gib,
    groups_of,
    host_memory_gib,
    largest_of,
    most_in_a_pod,
    on_cpu,
    shared_memory_gib,
)
from wrpo_operator.sizing.inventory import Inventory
from wrpo_operator.sizing.memory import GIB, gib, usable_bytes
from wrpo_operator.sizing.requests import DoesNotFit, TrainingRequest

USABLE = 0.92
MICRO_BATCH_TOKENS = 8192


def place_training(request: TrainingRequest, inventory: Inventory) -> Placement | DoesNotFit:
    """Return the fewest accelerators with which the model can be trained, or why there are none."""
    decided = on_cpu(request.facts, inventory, request.asked)
    if decided is not None:
        return decided
    groups = groups_of(inventory, request.asked)
    tokens = request.micro_batch_tokens or MICRO_BATCH_TOKENS >> request.step
    for group in sorted(groups, key=lambda group: group.memory_mib):
        for number in range(1, most_in_a_pod(group, request.max_accelerators) + 1):
            needed = 18 * request.facts.parameters / number + 6.1 * GIB + tokens * 0.43e6
            if needed <= usable_bytes(group, USABLE) and request.asked.accelerators in (None, number):
                return Placement(
                    accelerator=group.name,
                    resource=group.resource,
                    per_pod=number,
                    pods=request.asked.pods or 1,
                    micro_batch_tokens=tokens,
                    gradient_checkpointing=True,
                    offload=request.offload or "none",
                    memory_gib=host_memory_gib(
                        request.facts.weight_bytes, shared_memory_gib(number), 12 * request.facts.parameters
                    ),
                    ephemeral_storage_gib=disk_gib(request.facts, cached=request.cached),
                    shared_memory_gib=shared_memory_gib(number),
                    node_labels=dict(group.labels),
                    step=request.step,
                    arithmetic=f"{gib(needed)} of {gib(usable_bytes(group, USABLE))}",
                )
    largest = largest_of(groups, request.max_accelerators)
    return DoesNotFit(
        needs=gib(18 * request.facts.parameters),
        largest=largest,
        message=f"Training needs {gib(18 * request.facts.parameters)} of accelerator memory; the largest pod has "
        f"{largest}. Add accelerators or train adapters (lora).",
    )
