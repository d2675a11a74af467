"""Accelerators of a training stage: states of parameters and optimizer, activations, and what keeps them small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from wrpo_operator.api.placement import MAX_ALTERNATIVES, Placement
from wrpo_operator.sizing.choosing import (
    advice,
    cost_of,
    disk_gib,
    groups_of,
    host_memory_gib,
    largest_of,
    limits_of,
    most_in_a_pod,
    on_cpu,
    shared_memory_gib,
    size_of,
)
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.memory import gib, usable_bytes
from wrpo_operator.sizing.requests import DoesNotFit, TrainingRequest
from wrpo_operator.sizing.training_memory import Setup, host_states, need, states, zero_stage

USABLE = 0.92
MICRO_BATCH_TOKENS = 8192
MIN_MICRO_BATCH_TOKENS = 1024
"""Smallest automatic micro-batch; a longer row is alone in its forward pass."""
MOST_NODES = 4
"""Nodes of a gang where the number of nodes is unknown."""
OFFLOADS = {"none": 0, "optimizer": 1, "optimizer-and-parameters": 3}
"""Offload -> ZeRO stage that it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A setup on a group. `remedy` counts what was given up: the lower, the better."""

    group: AcceleratorGroup
    setup: Setup
    remedy: int

    @property
    def rank(self) -> tuple[int, int, int, tuple[float, float, str], bool]:
        """Return what options are ordered by. With states in host memory, more accelerators share the slower steps."""
        ranks = 0 if self.setup.offload == "none" else -self.setup.ranks
        cost = cost_of(self.group, self.setup.ranks)
        return self.remedy, -self.setup.tokens, ranks, cost, self.setup.checkpointing


def place_training(request: TrainingRequest, inventory: Inventory) -> Placement | DoesNotFit:
    """Return the placement that trains with the fewest remedies, and among these the cheapest; or why there is none.

    In this order: all activations kept; gradient checkpointing; smaller micro-batches; several nodes; optimizer states
    in host memory; parameters there too. What the user set is not varied.
    """
    asked = request.asked
    decided = on_cpu(request.facts, inventory, asked)
    if decided is not None:
        return decided
    groups = groups_of(inventory, asked)
    options = sorted(
        (option for group in groups for option in _options(request, group) if _fits(request, option)),
        key=lambda option: option.rank,
    )
    if not options:
        return _refusal(request, inventory, groups)
    steps = list(_ladder(request, options[0]))
    if request.step >= len(steps):
        return _exhausted(request, steps[-1])
    return _placement(request, steps[request.step], options)


def _fits(request: TrainingRequest, option: Option) -> bool:
    return need(request, option.setup) <= usable_bytes(option.group, USABLE)


def _options(request: TrainingRequest, group: AcceleratorGroup) -> Iterator[Option]:
    """Yield all setups on a group that leave what the user set as it is."""
    most_tokens = request.micro_batch_tokens or MICRO_BATCH_TOKENS
    sizes = [most_tokens] if request.micro_batch_tokens else _halved(most_tokens)
    fixed = request.gradient_checkpointing
    for (pods, per_pod), offload in product(_gangs(request, group), _offloads(request)):
        is_more = pods > (request.asked.pods or 1)
        remedy = 100 * list(OFFLOADS).index(offload) + 10 * is_more
        for checkpointing, tokens in product([False, True] if fixed is None else [fixed], sizes):
            if fixed is None and not checkpointing and tokens < most_tokens:
                continue  # Checkpointing comes before smaller micro-batches.
            # Kept activations save a quarter of the time, which is not worth additional nodes.
            lost = 2 if tokens < most_tokens else int(checkpointing and not is_more)
            setup = Setup(per_pod=per_pod, pods=pods, tokens=tokens, checkpointing=checkpointing, offload=offload)
            yield Option(group=group, setup=setup, remedy=remedy + lost)


def _halved(tokens: int) -> list[int]:
    found = [tokens]
    while found[-1] // 2 >= MIN_MICRO_BATCH_TOKENS:
        found.append(found[-1] // 2)
    return found


def _offloads(request: TrainingRequest) -> list[str]:
    if request.offload is not None:
        return [request.offload]
    return [name for name, needed in OFFLOADS.items() if zero_stage(request) >= needed]


def _gangs(request: TrainingRequest, group: AcceleratorGroup) -> Iterator[tuple[int, int]]:
    """Yield (pods, accelerators of each): parts of one node that divide it, then several whole nodes."""
    asked = request.asked
    most = most_in_a_pod(group, request.max_accelerators)
    total = [limit for limit in (group.quota, request.max_accelerators) if limit is not None]
    sizes = [number for number in range(1, most + 1) if group.per_node % number == 0 or number == most]
    if asked.accelerators is not None:
        sizes = [asked.accelerators] if asked.accelerators <= most else []
    nodes = 1 if group.is_slice else group.nodes or MOST_NODES
    for per_pod in sizes:
        counts = [asked.pods] if asked.pods else range(1, nodes + 1 if per_pod == sizes[-1] else 2)
        for pods in counts:
            if pods <= max(nodes, asked.pods or 0) and all(pods * per_pod <= limit for limit in total):
                yield pods, per_pod


def _ladder(request: TrainingRequest, first: Option) -> Iterator[Option]:
    """Yield the first option, then options that need less memory after each OutOfMemory."""
    yield first
    setup = first.setup
    for change in _changes(request, first):
        changed = replace(setup, **change)
        if need(request, changed) < need(request, setup):
            setup = changed
            yield replace(first, setup=setup)


def _changes(request: TrainingRequest, first: Option) -> Iterator[dict[str, Any]]:
    """Yield what can be given up, one after the other: the size of micro-batches, speed, host memory, accelerators."""
    setup = first.setup
    if request.micro_batch_tokens is None and setup.tokens // 2 >= MIN_MICRO_BATCH_TOKENS:
        yield {"tokens": setup.tokens // 2}
    if request.gradient_checkpointing is None:
        yield {"checkpointing": True}
    yield from ({"offload": offload} for offload in _offloads(request))
    for pods, per_pod in sorted(_gangs(request, first.group), key=lambda gang: gang[0] * gang[1]):
        if pods * per_pod > setup.ranks:
            yield {"pods": pods, "per_pod": per_pod}


def _placement(request: TrainingRequest, option: Option, options: list[Option]) -> Placement:
    asked, setup, group = request.asked, option.setup, option.group
    shared = shared_memory_gib(setup.per_pod)
    others = dict.fromkeys(_describe(other) for other in options if _describe(other) != _describe(option))
    return Placement(
        accelerator=group.name,
        resource=group.resource,
        per_pod=setup.per_pod,
        pods=setup.pods,
        micro_batch_tokens=setup.tokens,
        gradient_checkpointing=setup.checkpointing,
        offload=setup.offload,
        memory_gib=asked.memory_gib
        or host_memory_gib(request.facts.weight_bytes, shared, host_states(request, setup) / setup.pods),
        ephemeral_storage_gib=asked.ephemeral_storage_gib or disk_gib(request.facts, cached=request.cached),
        shared_memory_gib=shared,
        node_labels=dict(group.labels),
        step=request.step,
        arithmetic=_arithmetic(request, option),
        alternatives=tuple(others)[:MAX_ALTERNATIVES],
    )


def _arithmetic(request: TrainingRequest, option: Option) -> str:
    setup = option.setup
    kept = "gradient checkpointing" if setup.checkpointing else "no gradient checkpointing"
    moved = "" if setup.offload == "none" else f", {setup.offload} in host memory"
    return (
        f"states of {gib(states(request, setup) * setup.ranks)} over {setup.ranks}, micro-batches of {setup.tokens} "
        f"tokens, {kept}{moved}: {gib(need(request, setup))} of {gib(usable_bytes(option.group, USABLE))} usable each "
        f"({USABLE:.0%} of {option.group.name})"
    )


def _describe(option: Option) -> str:
    setup = option.setup
    parts = [size_of(option.group, setup.per_pod) + (f" on each of {setup.pods} nodes" if setup.pods > 1 else "")]
    parts += ["gradient checkpointing"] if setup.checkpointing else []
    parts += [f"offload {setup.offload}"] if setup.offload != "none" else []
    return ", ".join(parts)


def _refusal(request: TrainingRequest, inventory: Inventory, groups: tuple[AcceleratorGroup, ...]) -> DoesNotFit:
    tokens = request.micro_batch_tokens or MIN_MICRO_BATCH_TOKENS
    recomputes = request.gradient_checkpointing is not False
    one = Setup(per_pod=1, pods=1, tokens=tokens, checkpointing=recomputes, offload="none")
    needs = f"{gib(states(request, one))} for parameters, gradients and optimizer, divided over all accelerators"
    largest = largest_of(groups, request.max_accelerators)
    remedies = ["add nodes with more or larger accelerators", *_smaller(request)]
    remedies += limits_of(groups, request.max_accelerators)
    return DoesNotFit(
        needs=needs,
        largest=largest,
        message=f"Training this model ({request.facts.model_type}, {request.facts.parameters / 1e9:.2f}e9 parameters) "
        f"needs {needs}, and {gib(need(request, one) - states(request, one))} more on each; the largest pod can have "
        f"{largest} ({inventory.description}). {advice(remedies)}",
    )


def _smaller(request: TrainingRequest) -> list[str]:
    """Return the settings that would reduce the memory."""
    found = {
        "zeroStage: 3": request.zero_stage < 3,
        "gradientAccumulationDtype: bfloat16": request.precision == "bfloat16"
        and request.accumulation_dtype == "float32",
        "optimizerMoments: 8bit": request.moments != "8bit",
        "gradientCheckpointing: true": request.gradient_checkpointing is False,
        "offload: optimizer-and-parameters": request.offload in ("none", "optimizer"),
        "lora": request.lora_rank is None,
    }
    tokens = request.micro_batch_tokens or 0
    lower = [f"lower microBatchTokens, which is {tokens}"] if tokens > MIN_MICRO_BATCH_TOKENS else []
    return [*lower, *(f"set {name}" for name, helps in found.items() if helps)]


def _exhausted(request: TrainingRequest, last: Option) -> DoesNotFit:
    return DoesNotFit(
        needs=f"more than {_describe(last)}",
        largest=_describe(last),
        message=f"Memory was exhausted {request.step} times, at last on {_describe(last)}, and there is no larger "
        f"placement. Either reduce maxLength, {', or '.join(['add larger accelerators', *_smaller(request)])}.",
    )
