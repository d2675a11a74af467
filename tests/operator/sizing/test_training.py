"""Accelerators of training: the table of an 8B model, memory-saving options, and laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sizing_support import (
    LLAMA_8B,
    MEMORY_MIB,
    QWEN_72B,
    cards,
    cluster,
    facts,
    placed,
    refused,
    some_facts,
    some_groups,
)

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.placement import Placement
from wrpo_operator.sizing.inventory import AcceleratorGroup
from wrpo_operator.sizing.memory import GIB, MIB
from wrpo_operator.sizing.requests import Asked, DoesNotFit, TrainingRequest
from wrpo_operator.sizing.training import OFFLOADS, USABLE, place_training
from wrpo_operator.sizing.training_memory import Setup, activations, fixed, logits, need, states

EIGHT = facts(LLAMA_8B)
PLAIN = TrainingRequest(facts=EIGHT)
# Accelerators of one node and their size in GB; GiB of states on each; all GiB but the logits with and without
# gradient checkpointing at 8192 tokens; the choice: accelerators, checkpointing, offload.
TABLE = [
    (8, 80, 16.8, 26, 66, (8, False, "none")),
    (4, 80, 33.7, 43, 83, (4, True, "none")),
    (2, 80, 67.3, 77, 116, (2, True, "optimizer")),
    (1, 80, 134.6, 144, 184, (1, True, "optimizer")),
    (1, 141, 134.6, 144, 184, (1, False, "optimizer")),
    (2, 141, 67.3, 77, 116, (2, False, "none")),
    (8, 40, 16.8, 26, 66, (8, True, "none")),
    (8, 24, 16.8, 26, 66, (8, True, "optimizer")),
]


def train(number: int, gigabytes: int, **changes: Any) -> Placement:
    return placed(place_training(replace(PLAIN, **changes), cluster(cards(gigabytes, per_node=number))))


@pytest.mark.parametrize(("number", "gigabytes", "state", "kept", "whole", "choice"), TABLE)
def test_the_memory_of_an_8b_model_and_the_choice(
    number: int, gigabytes: int, state: float, kept: int, whole: int, choice: tuple[int, bool, str]
) -> None:
    setup = Setup(per_pod=number, pods=1, tokens=8192, checkpointing=True, offload="none")
    assert round(states(PLAIN, setup) / GIB, 1) == state
    base = states(PLAIN, setup) + fixed(PLAIN)
    assert round((base + activations(EIGHT, 8192, checkpointing=True)) / GIB) == kept
    assert round((base + activations(EIGHT, 8192, checkpointing=False)) / GIB) == whole
    found = train(number, gigabytes)
    assert (found.per_pod, found.gradient_checkpointing, found.offload) == choice
    assert found.micro_batch_tokens == 8192


def test_parts_that_do_not_shrink_with_accelerators() -> None:
    assert round(fixed(PLAIN) / GIB, 1) == 6.0
    assert round(activations(EIGHT, 8192, checkpointing=True) / GIB, 1) == 3.3
    assert round(activations(EIGHT, 1, checkpointing=False) / MIB, 1) == 5.4
    # Two chunks of 2093 tokens in fp32, and 2 GiB of their softmax.
    assert round(logits(EIGHT, 8192) / GIB, 1) == 4.0


@pytest.mark.parametrize(
    ("changes", "bytes_each"),
    [
        ({}, 18),
        ({"accumulation_dtype": "bfloat16"}, 16),
        ({"moments": "bfloat16"}, 14),
        ({"accumulation_dtype": "bfloat16", "moments": "8bit"}, 10),
        ({"precision": "float32"}, 20),
    ],
)
def test_bytes_of_a_parameter(changes: dict[str, Any], bytes_each: int) -> None:
    setup = Setup(per_pod=1, pods=1, tokens=8192, checkpointing=True, offload="none")
    assert states(replace(PLAIN, **changes), setup) == bytes_each * EIGHT.parameters


@pytest.mark.parametrize(("stage", "bytes_each"), [(3, 18 / 4), (2, 2 + 16 / 4), (1, 6 + 12 / 4), (0, 6 + 12 / 4)])
def test_zero_stages_divide_less_and_less(stage: Any, bytes_each: float) -> None:
    setup = Setup(per_pod=4, pods=1, tokens=8192, checkpointing=True, offload="none")
    assert states(replace(PLAIN, zero_stage=stage), setup) == bytes_each * EIGHT.parameters
    single = replace(PLAIN, zero_stage=0, precision="float32")
    assert states(single, setup) == 20 * EIGHT.parameters


def test_a_reference_in_memory_is_counted_and_divided() -> None:
    setup = Setup(per_pod=2, pods=1, tokens=8192, checkpointing=True, offload="none")
    more = states(replace(PLAIN, reference="in-memory"), setup) - states(PLAIN, setup)
    assert more == EIGHT.parameters


def test_fewer_bytes_of_gradients_and_moments_let_an_8b_model_be_trained_on_few_accelerators() -> None:
    one = train(1, 141, accumulation_dtype="bfloat16")
    assert (one.offload, one.gradient_checkpointing, one.micro_batch_tokens) == ("none", True, 1024)
    assert train(1, 141, accumulation_dtype="bfloat16", moments="8bit").offload == "none"
    assert train(2, 80, accumulation_dtype="bfloat16").offload == "none"
    adapters = train(1, 24, lora_rank=16)
    assert (adapters.offload, adapters.per_pod, adapters.gradient_checkpointing) == ("none", 1, True)


def test_several_nodes_come_before_host_memory() -> None:
    found = placed(place_training(replace(PLAIN, facts=facts(QWEN_72B)), cluster(cards(80, nodes=4))))
    assert (found.pods, found.per_pod, found.offload) == (4, 8, "none")
    assert placed(place_training(PLAIN, cluster(cards(24, nodes=2)))).pods == 2


def test_the_host_holds_checkpoints_and_offloaded_states() -> None:
    assert train(8, 80).memory_gib == 16 + 8 + 90
    assert train(1, 80).memory_gib == 16 + 180
    assert train(8, 80).shared_memory_gib == 8
    assert train(8, 80, lora_rank=16).memory_gib == 16 + 1
    assert train(8, 80).ephemeral_storage_gib == 18
    assert train(8, 80, cached=True).ephemeral_storage_gib is None


def test_the_arithmetic_names_states_tokens_and_memory() -> None:
    assert train(8, 80).arithmetic == (
        "states of 134.6 GiB over 8, micro-batches of 8192 tokens, no gradient checkpointing: 69.8 GiB of 73.3 GiB "
        "usable each (92% of card-80)"
    )
    assert "4 x card-80 of 79.6 GiB, gradient checkpointing" in train(8, 80).alternatives


def test_what_the_user_sets_holds() -> None:
    found = train(8, 80, asked=Asked(accelerators=4, memory_gib=300, ephemeral_storage_gib=9), micro_batch_tokens=4096)
    assert (found.per_pod, found.micro_batch_tokens, found.memory_gib) == (4, 4096, 300)
    assert found.ephemeral_storage_gib == 9
    assert train(8, 80, gradient_checkpointing=True).gradient_checkpointing is True
    assert train(8, 80, offload="optimizer").offload == "optimizer"
    two = placed(place_training(replace(PLAIN, asked=Asked(pods=2)), cluster(cards(80, nodes=4))))
    assert two.pods == 2
    assert train(8, 80, asked=Asked(accelerators=0)).accelerator == ""
    without = train(4, 80, gradient_checkpointing=False)
    assert (without.gradient_checkpointing, without.micro_batch_tokens) == (False, 4096)


def test_a_cap_or_quota_bounds_the_gang() -> None:
    assert train(8, 80, max_accelerators=4).per_pod == 4
    quota = placed(place_training(PLAIN, cluster(cards(80, nodes=4, quota=2))))
    assert (quota.per_pod, quota.pods) == (2, 1)


def test_what_cannot_be_trained_is_refused_with_need_largest_and_remedies() -> None:
    request = replace(PLAIN, facts=facts(QWEN_72B), offload="none")
    found = refused(place_training(request, cluster(cards(24, per_node=4))))
    assert found.message == (
        "Training this model (qwen2, 72.71e9 parameters) needs 1218.8 GiB for parameters, gradients and optimizer, "
        "divided over all accelerators, and 10.7 GiB more on each; the largest pod can have 4 x card-24 of 24.0 GiB "
        "(the labels of the nodes). Either add nodes with more or larger accelerators, or set "
        "gradientAccumulationDtype: bfloat16, or set optimizerMoments: 8bit, or set "
        "offload: optimizer-and-parameters, or set lora."
    )


def test_a_size_of_micro_batches_that_cannot_fit_is_named_with_the_memory_that_it_needs() -> None:
    request = replace(PLAIN, micro_batch_tokens=1_000_000, gradient_checkpointing=False)
    message = refused(place_training(request, cluster(cards(80)))).message
    assert "or lower microBatchTokens, which is 1000000, or set gradientAccumulationDtype: bfloat16" in message
    assert "or set gradientCheckpointing: true" in message
    more = float(message.split("accelerators, and ")[1].split(" GiB more")[0])
    assert more > 5000, "activations of 5.4 MiB a token"


def test_a_remedy_that_the_engine_would_refuse_is_not_named() -> None:
    request = replace(PLAIN, facts=facts(QWEN_72B), precision="float32", zero_stage=2)
    message = refused(place_training(request, cluster(cards(24)))).message
    assert "or set zeroStage: 3, or set optimizerMoments: 8bit, or set lora" in message
    assert "gradientAccumulationDtype" not in message


def test_after_out_of_memory_micro_batches_shrink_then_activations_states_and_ranks() -> None:
    group = cards(80, nodes=2)
    steps = [place_training(replace(PLAIN, step=step), cluster(group)) for step in range(8)]
    found = [
        (step.micro_batch_tokens, step.gradient_checkpointing, step.offload, step.accelerators)
        for step in steps
        if isinstance(step, Placement)
    ]
    assert found == [
        (8192, False, "none", 8),
        (4096, False, "none", 8),
        (4096, True, "none", 8),
        (4096, True, "optimizer", 8),
        (4096, True, "optimizer-and-parameters", 8),
        (4096, True, "optimizer-and-parameters", 16),
    ]
    assert refused(steps[6]).message.startswith(
        "Memory was exhausted 6 times, at last on 8 x card-80 of 79.6 GiB on each of 2 nodes, gradient checkpointing"
    )


def setup_of(found: Placement) -> Setup:
    assert found.micro_batch_tokens is not None
    assert found.gradient_checkpointing is not None
    assert found.offload is not None
    return Setup(
        per_pod=found.per_pod,
        pods=found.pods,
        tokens=found.micro_batch_tokens,
        checkpointing=found.gradient_checkpointing,
        offload=found.offload,
    )


@settings(max_examples=40)
@given(
    model=some_facts(), groups=some_groups(), cap=st.none() | st.integers(1, 64), stage=st.sampled_from([0, 1, 2, 3])
)
def test_a_placement_fits_the_memory_and_keeps_the_limits_at_every_step_and_the_ladder_ends(
    model: ModelFacts, groups: tuple[AcceleratorGroup, ...], cap: int | None, stage: Any
) -> None:
    request = TrainingRequest(facts=model, max_accelerators=cap, zero_stage=stage)
    previous = float("inf")
    for step in range(100):
        found = place_training(replace(request, step=step), cluster(*groups))
        if isinstance(found, DoesNotFit):
            return
        (group,) = [group for group in groups if group.name == found.accelerator]
        needed = need(request, setup_of(found))
        assert needed <= USABLE * group.memory_mib * MIB
        assert needed < previous
        previous = needed
        assert found.per_pod <= (1 if group.is_slice else group.per_node)
        assert found.pods <= (4 if group.nodes is None else group.nodes)
        assert found.offload is not None
        assert stage >= OFFLOADS[found.offload] or stage == 0
        for limit in (cap, group.quota):
            assert limit is None or found.accelerators <= limit
    raise AssertionError("the ladder does not end")


@settings(max_examples=40)
@given(model=some_facts(), number=st.sampled_from([1, 2, 4, 8]))
def test_more_memory_never_needs_more_remedies(model: ModelFacts, number: int) -> None:
    ranks = []
    for size in sorted(MEMORY_MIB):
        found = place_training(TrainingRequest(facts=model), cluster(cards(size, per_node=number)))
        if isinstance(found, Placement):
            assert found.micro_batch_tokens is not None
            assert found.offload is not None
            moved = list(OFFLOADS).index(found.offload)
            ranks.append((moved, -found.micro_batch_tokens, found.gradient_checkpointing))
        else:
            ranks.append((9, 0, True))
    assert ranks == sorted(ranks, reverse=True)
