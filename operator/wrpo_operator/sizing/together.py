"""Accelerators of a stage that holds several models in the memory of one pod."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.contract.spreading import spread
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
    size_of,
)
from wrpo_operator.sizing.generation import PROMPTS_PER_SHARD, longest_sequence
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.memory import (
    GIB,
    RUNTIME_BYTES,
    WEIGHT_OVERHEAD,
    gib,
    key_value_bytes,
    loaded_bytes,
    usable_bytes,
    width_of,
)
from wrpo_operator.sizing.requests import DoesNotFit, GenerationRequest, ScoringRequest
from wrpo_operator.sizing.scoring import USABLE, batches_of, pass_bytes

CANDIDATE_TOKENS = 16384
"""Prompt and response tokens of one batch of Transformers' sampler."""
_SHOWN = 6
"""Models up to which the arithmetic has each of them."""
Together: TypeAlias = Sequence[GenerationRequest | ScoringRequest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Memory of one of the models, in bytes."""

    weights: int
    cached: int
    """Keys and values."""
    passing: int
    """What one forward pass needs. The models take turns, so the largest one counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A number of accelerators of a group, with the models that each of them holds."""

    group: AcceleratorGroup
    residents: tuple[tuple[Resident, ...], ...]
    batch_tokens: int | None
    """Tokens of one forward pass of a reward model. None: there is none."""

    @property
    def need(self) -> int:
        """Return the bytes that the fullest accelerator needs."""
        return max(map(_need, self.residents))

    @property
    def free(self) -> int:
        """Return the bytes that are left on the fullest accelerator; negative if the models do not fit."""
        return usable_bytes(self.group, USABLE) - self.need

    @property
    def accelerators(self) -> int:
        return len(self.residents)


def place_together(requests: Together, inventory: Inventory) -> Placement | DoesNotFit:
    """Return the cheapest placement in which all models fit at once, or why there is none.

    A model is whole on one accelerator. Those that only generate are spread over the accelerators of a pod; next to
    a reward model all of them are on the first one.
    """
    first = requests[0]
    decided = on_cpu(_as_one(requests), inventory, first.asked)
    if decided is not None:
        return decided
    groups = groups_of(inventory, first.asked)
    steps = _ladder(requests, groups)
    if not steps:
        return _refusal(requests, inventory, groups)
    if first.step >= len(steps):
        return _exhausted(first.step, steps[-1])
    way = steps[first.step]
    return _placement(requests, way, [other for other in steps if other.group != way.group])


def _as_one(requests: Together) -> ModelFacts:
    """Return facts with the kinds and the stored bytes of all models together."""
    kinds = " + ".join(dict.fromkeys(request.facts.model_type for request in requests))
    total = sum(request.facts.weight_bytes for request in requests)
    return requests[0].facts.model_copy(update={"model_type": kinds, "weight_bytes": total})


def residents_of(requests: Together, batch_tokens: int | None) -> tuple[Resident, ...]:
    """Return the memory of each model, reward models with batches of so many tokens."""
    return tuple(
        _generating(request) if isinstance(request, GenerationRequest) else _scoring(request, batch_tokens or 0)
        for request in requests
    )


def _generating(request: GenerationRequest) -> Resident:
    facts, tokens = request.facts, longest_sequence(request)
    if not request.one_by_one:
        cached = key_value_bytes(facts, request.dtype) * max(tokens, CANDIDATE_TOKENS)
        return Resident(weights=loaded_bytes(facts, None, request.dtype), cached=cached, passing=0)
    # Transformers keeps the stored format, and the scores of all tokens of a prompt are needed.
    weights = facts.weight_bytes if request.dtype == "auto" else loaded_bytes(facts, None, request.dtype)
    scores = facts.vocabulary * width_of(request.dtype) * tokens
    return Resident(weights=weights, cached=key_value_bytes(facts, request.dtype) * tokens, passing=scores)


def _scoring(request: ScoringRequest, tokens: int) -> Resident:
    weights = loaded_bytes(request.facts, None, request.dtype)
    return Resident(weights=weights, cached=0, passing=pass_bytes(request, tokens))


def _need(residents: Sequence[Resident]) -> int:
    """Return the bytes that an accelerator with these models needs."""
    lasting = sum(int(each.weights * WEIGHT_OVERHEAD) + each.cached for each in residents)
    return RUNTIME_BYTES + lasting + max((each.passing for each in residents), default=0)


def _ladder(requests: Together, groups: tuple[AcceleratorGroup, ...]) -> list[_Way]:
    """Return the first way that fits, then ways with strictly more room after each OutOfMemory."""
    steps: list[_Way] = []
    for way in _ways(requests, groups):
        if way.free >= (steps[-1].free + 1 if steps else 0):
            steps.append(way)
    return steps


def _ways(requests: Together, groups: tuple[AcceleratorGroup, ...]) -> Iterator[_Way]:
    """Yield all ways, the preferred one first: usual batches, then the lowest cost."""
    scored = [request for request in requests if isinstance(request, ScoringRequest)]
    for tokens in batches_of(scored[0]) if scored else [None]:
        residents = residents_of(requests, tokens)
        ways = [
            _Way(group=group, residents=_spread(residents, number), batch_tokens=tokens)
            for group in groups
            for number in range(1, _most(requests, most_in_a_pod(group, requests[0].max_accelerators)) + 1)
        ]
        yield from sorted(ways, key=lambda way: cost_of(way.group, way.accelerators))


def _most(requests: Together, accelerators: int) -> int:
    """Return how many of a pod's accelerators the models can use."""
    if any(isinstance(request, ScoringRequest) for request in requests):
        return min(1, accelerators)
    return min(len(requests), accelerators)


def _spread(residents: Sequence[Resident], number: int) -> tuple[tuple[Resident, ...], ...]:
    places = spread([each.weights for each in residents], number)
    return tuple(
        tuple(each for each, at in zip(residents, places, strict=True) if at == place) for place in range(number)
    )


def _placement(requests: Together, way: _Way, others: Sequence[_Way]) -> Placement:
    first = requests[0]
    asked, prompts = first.asked, first.prompts if isinstance(first, GenerationRequest) else None
    pods = min(most_pods(way.group, way.accelerators, first.max_accelerators), MAX_SHARDS)
    disks = [disk_gib(request.facts, cached=request.cached) or 0 for request in requests]
    largest = max(each.weights for part in way.residents for each in part)
    return Placement(
        accelerator=way.group.name,
        resource=way.group.resource,
        per_pod=way.accelerators,
        pods=asked.pods or max(1, min(pods, (prompts or MAX_SHARDS * PROMPTS_PER_SHARD) // PROMPTS_PER_SHARD)),
        micro_batch_tokens=way.batch_tokens,
        # Transformers has a whole model in host memory before it moves to its accelerator.
        memory_gib=host_memory_gib(0, None, more=largest),
        ephemeral_storage_gib=sum(disks) or None,
        node_labels=dict(way.group.labels),
        step=first.step,
        arithmetic=_arithmetic(requests, way),
        alternatives=tuple(dict.fromkeys(size_of(other.group, other.accelerators) for other in others))[
            :MAX_ALTERNATIVES
        ],
    )


def _arithmetic(requests: Together, way: _Way) -> str:
    residents = residents_of(requests, way.batch_tokens)
    fullest = max(way.residents, key=_need)
    held = "" if way.accelerators == 1 else f", {len(fullest)} of {len(residents)} models on the fullest"
    batches = f", batches of {way.batch_tokens} tokens" if way.batch_tokens is not None else ""
    return (
        f"weights of {_sum([each.weights for each in residents])}, caches of "
        f"{_sum([each.cached for each in residents])}{batches} on {way.accelerators} x {way.group.name}{held}: "
        f"{gib(way.need)} of {gib(usable_bytes(way.group, USABLE))} usable ({USABLE:.0%})"
    )


def _sum(amounts: Sequence[int]) -> str:
    """Return an addition as text."""
    known = [amount for amount in amounts if amount]
    total = gib(sum(amounts))
    if len(known) > _SHOWN or len(known) < 2:
        return total
    return f"{' + '.join(f'{amount / GIB:.1f}' for amount in known)} = {total}"


def _refusal(requests: Together, inventory: Inventory, groups: tuple[AcceleratorGroup, ...]) -> DoesNotFit:
    scored = [request for request in requests if isinstance(request, ScoringRequest)]
    residents = residents_of(requests, batches_of(scored[0])[-1] if scored else None)
    best = max(groups, key=lambda group: (group.memory_mib, group.name))
    number = next(
        (
            number
            for number in range(1, _most(requests, len(requests)) + 1)
            if max(map(_need, _spread(residents, number))) <= usable_bytes(best, USABLE)
        ),
        None,
    )
    whole = _need(residents) if scored else max(_need([each]) for each in residents)
    needs = size_of(best, number) + " in one pod" if number else f"an accelerator with {gib(whole)} usable"
    most = _most(requests, requests[0].max_accelerators or len(requests))
    largest = largest_of(groups, most)
    remedies = ["add nodes with more or larger accelerators", "name fewer or smaller models"]
    remedies += limits_of(groups, requests[0].max_accelerators) if number else []
    return DoesNotFit(
        needs=needs,
        largest=largest,
        message=f"The stage holds {len(requests)} models at once, with weights of "
        f"{_sum([each.weights for each in residents])}, and needs {needs}; the largest pod can use {largest} "
        f"({inventory.description}). {advice(remedies)}",
    )


def _exhausted(step: int, last: _Way) -> DoesNotFit:
    size = size_of(last.group, last.accelerators)
    return DoesNotFit(
        needs=f"more than {size} in one pod",
        largest=size,
        message=f"Memory was exhausted {step} times, at last on {size}, and there is no larger placement. Either name "
        "fewer or smaller models, or add larger accelerators.",
    )
