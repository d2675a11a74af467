"""Accelerators of sampling: the table of the published run's models, and laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sizing_support import (
    DEEPSEEK,
    LLAMA_8B,
    MEMORY_MIB,
    MISTRAL_LARGE,
    PHI_MEDIUM,
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
from wrpo_operator.sizing.generation import (
    REDUCED_UTILIZATION,
    UTILIZATION,
    Way,
    cached_tokens,
    need,
    place_generation,
    room,
)
from wrpo_operator.sizing.inventory import AcceleratorGroup
from wrpo_operator.sizing.memory import GIB, MIB, key_value_bytes, legal_tensor_parallel
from wrpo_operator.sizing.requests import Asked, DoesNotFit, GenerationRequest

LENGTH = 4096
SIZES = (80, 141, 48, 40, 24)
TO_16 = (1, 2, 4, 8, 16)
TO_32 = (*TO_16, 32)
# Model, parameters in 1e9, weights in GiB, cache bytes of a token, legal tensor-parallel sizes; smallest legal size on
# accelerators of 80, 141, 48, 40 and 24 GB for 16 sequences, for one, and for 16 with fp8 weights; 1000 tokens of cache
# at the first of them. None: no legal size.
TABLE = [
    (LLAMA_8B, 8.03, 15.0, 131072, TO_32, (1, 1, 1, 1, 2), (1, 1, 1, 1, 1), (1, 1, 1, 1, 1), 437),
    (MISTRAL_LARGE, 122.61, 228.4, 360448, TO_32, (4, 4, 8, 8, 16), (4, 2, 8, 8, 16), (4, 2, 4, 8, 8), 98),
    ("google/gemma-2-27b-it", 27.23, 50.7, 376832, TO_32, (2, 1, 4, 4, 8), (1, 1, 2, 2, 4), (1, 1, 2, 2, 4), 241),
    (QWEN_72B, 72.71, 135.4, 327680, TO_32, (4, 2, 8, 8, 16), (4, 2, 4, 8, 8), (2, 1, 4, 4, 8), 434),
    (
        "meta-llama/Meta-Llama-3-70B-Instruct",
        70.55,
        131.4,
        327680,
        TO_32,
        (4, 2, 8, 8, 16),
        (4, 2, 4, 8, 8),
        (2, 1, 4, 4, 8),
        448,
    ),
    ("google/gemma-2-9b-it", 9.24, 17.2, 344064, TO_16, (1, 1, 2, 2, 4), (1, 1, 1, 1, 2), (1, 1, 1, 1, 2), 159),
    (
        "internlm/internlm2_5-20b-chat",
        19.86,
        37.0,
        196608,
        TO_16,
        (1, 1, 2, 2, 4),
        (1, 1, 2, 2, 4),
        (1, 1, 1, 1, 2),
        163,
    ),
    (DEEPSEEK, 235.74, 439.1, 69120, TO_32, (8, 4, 16, 16, 32), (8, 4, 16, 16, 32), (4, 2, 8, 8, 16), 165),
    (
        "deepseek-ai/DeepSeek-Coder-V2-Instruct-0724",
        235.74,
        439.1,
        69120,
        TO_32,
        (8, 4, 16, 16, 32),
        (8, 4, 16, 16, 32),
        (4, 2, 8, 8, 16),
        165,
    ),
    (
        "01-ai/Yi-1.5-34B-Chat",
        34.39,
        64.1,
        245760,
        (1, 2, 4, 8),
        (2, 1, 4, 4, 8),
        (2, 1, 2, 4, 4),
        (1, 1, 2, 2, 4),
        307,
    ),
    # 5 and 10 divide the heads, but not the vocabulary of 32064, which vLLM divides too.
    (PHI_MEDIUM, 13.96, 26.0, 204800, (1, 2), (1, 1, 2, 2, None), (1, 1, 1, 1, 2), (1, 1, 1, 1, 2), 218),
]
NAMES = [row[0].partition("/")[2] for row in TABLE]
Sizes = tuple[int | None, ...]


def smallest(request: GenerationRequest, gigabytes: int, sequences: int) -> int | None:
    """Return the smallest legal tensor-parallel size on a node of 32 accelerators."""
    group = cards(gigabytes, per_node=32)
    ways = [Way(group=group, tensor=size, pipeline=1) for size in legal_tensor_parallel(request.facts, 32)]
    return next((way.tensor for way in ways if room(request, way) >= cached_tokens(request, sequences)), None)


@pytest.mark.parametrize(("model", "billions", "gib", "cache", "legal"), [row[:5] for row in TABLE], ids=NAMES)
def test_the_shapes_of_the_published_run(
    model: str, billions: float, gib: float, cache: int, legal: tuple[int, ...]
) -> None:
    found = facts(model)
    assert round(found.parameters / 1e9, 2) == billions
    assert round(found.weight_bytes / GIB, 1) == gib
    assert key_value_bytes(found) == cache
    assert legal_tensor_parallel(found, 32) == legal


@pytest.mark.parametrize(
    ("model", "work", "fit", "fp8", "kilotokens"), [(row[0], *row[5:]) for row in TABLE], ids=NAMES
)
def test_the_tensor_parallel_sizes_of_the_published_run(
    model: str, work: Sizes, fit: Sizes, fp8: Sizes, kilotokens: int
) -> None:
    plain = GenerationRequest(facts=facts(model), max_model_length=LENGTH)
    assert tuple(smallest(plain, size, 16) for size in SIZES) == work
    assert tuple(smallest(plain, size, 1) for size in SIZES) == fit
    assert tuple(smallest(replace(plain, quantization="fp8"), size, 16) for size in SIZES) == fp8
    assert work[0] is not None
    assert round(room(plain, Way(group=cards(80), tensor=work[0], pipeline=1)) / 1000) == kilotokens


@pytest.mark.parametrize(
    ("model", "work"), [(row[0], [size for size in row[5] if size and size <= 8]) for row in TABLE], ids=NAMES
)
def test_the_placement_on_a_node_of_eight_is_the_smallest_size_of_the_table(model: str, work: list[int]) -> None:
    request = GenerationRequest(facts=facts(model), max_model_length=LENGTH)
    chosen = [place_generation(request, cluster(cards(size))) for size in SIZES]
    sizes = [found.tensor_parallel_size for found in chosen if isinstance(found, Placement)]
    assert sizes[: len(work)] == work


def test_small_accelerators_hold_fewer_sequences_before_the_layers_are_distributed() -> None:
    found = placed(place_generation(GenerationRequest(facts=facts(PHI_MEDIUM)), cluster(cards(24))))
    assert (found.tensor_parallel_size, found.pipeline_parallel_size) == (2, 1)
    assert found.arithmetic == (
        "weights of 26.0 GiB on 2 x card-24: 16.2 GiB of 21.6 GiB usable each (90%), room for 56254 tokens, which are "
        "13 sequences of 4096"
    )


def test_layers_are_distributed_where_no_legal_tensor_parallel_size_suffices() -> None:
    large = facts(PHI_MEDIUM).model_copy(update={"parameters": 60 * 10**9, "weight_bytes": 120 * 10**9})
    found = placed(place_generation(GenerationRequest(facts=large), cluster(cards(40))))
    assert (found.tensor_parallel_size, found.pipeline_parallel_size, found.per_pod) == (2, 2, 4)


def test_the_cheapest_group_that_fits_is_chosen_by_memory_and_by_price() -> None:
    groups = (cards(141, name="h200"), cards(80, name="h100"), cards(48, name="l40s"))
    request = GenerationRequest(facts=facts(QWEN_72B))
    by_memory = placed(place_generation(request, cluster(*groups)))
    assert (by_memory.accelerator, by_memory.per_pod) == ("h200", 2)
    assert by_memory.alternatives[:2] == (
        "4 x h100 of 79.6 GiB, tensor parallel 4",
        "8 x l40s of 45.0 GiB, tensor parallel 8",
    )
    priced = [replace(group, price_per_hour=price) for group, price in zip(groups, (9.0, 3.0, 1.0), strict=True)]
    assert placed(place_generation(request, cluster(*priced))).accelerator == "l40s"


def test_shards_use_all_nodes_within_queue_cap_and_prompts() -> None:
    four_nodes = cards(80, nodes=4)
    request = GenerationRequest(facts=facts(QWEN_72B), prompts=60_000)

    def pods(group: AcceleratorGroup, **changes: object) -> int:
        return placed(place_generation(replace(request, **changes), cluster(group))).pods  # type: ignore[arg-type]

    assert pods(four_nodes) == 8
    assert pods(four_nodes, max_accelerators=12) == 3
    assert pods(replace(four_nodes, quota=10)) == 2
    assert pods(replace(four_nodes, nodes=None)) == 2
    assert pods(four_nodes, prompts=600) == 2
    assert pods(four_nodes, prompts=3) == 1
    assert pods(replace(four_nodes, per_node=6)) == 4
    assert pods(four_nodes, asked=Asked(pods=5)) == 5


def test_what_does_not_fit_is_refused_with_need_largest_and_remedies() -> None:
    found = refused(place_generation(GenerationRequest(facts=facts(DEEPSEEK)), cluster(cards(40))))
    assert found.needs == "16 x card-40 of 40.0 GiB in one pod"
    assert found.largest == "8 x card-40 of 40.0 GiB"
    assert found.message == (
        "The model (deepseek_v2, weights of 439.1 GiB) needs 16 x card-40 of 40.0 GiB in one pod; the largest pod can "
        "have 8 x card-40 of 40.0 GiB (the labels of the nodes). Either add nodes with more or larger accelerators, or "
        "set quantization: fp8, which changes the responses."
    )
    old = cards(40, compute_capability=8.0)
    assert "or use a 4-bit checkpoint (AWQ), which changes the responses." in (
        refused(place_generation(GenerationRequest(facts=facts(DEEPSEEK)), cluster(old))).message
    )


ABOVE_A_NODE: dict[str, tuple[Asked, AcceleratorGroup, str, str]] = {
    "tensor parallelism": (Asked(tensor_parallel=16), cards(80), "16 x card-80 of 79.6 GiB in one pod",
                           "or leave tensorParallelSize unset."),
    "layers": (Asked(pipeline_parallel=200), cards(80), "200 x card-80 of 79.6 GiB in one pod",
               "or leave pipeline_parallel_size unset."),
    "both": (Asked(tensor_parallel=8, pipeline_parallel=2), cards(80), "16 x card-80 of 79.6 GiB in one pod",
             "or leave tensorParallelSize and pipeline_parallel_size unset."),
    "no other size fits": (Asked(tensor_parallel=4), cards(80, quota=1), "4 x card-80 of 79.6 GiB in one pod",
                           "accelerators, or raise the queue's quota, which is 1."),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "group", "needs", "remedy"), ABOVE_A_NODE.values(), ids=ABOVE_A_NODE.keys())
def test_sizes_that_the_user_set_above_a_pod_are_counted_and_named(
    asked: Asked, group: AcceleratorGroup, needs: str, remedy: str
) -> None:
    found = refused(place_generation(GenerationRequest(facts=facts(QWEN_72B), asked=asked), cluster(group)))
    assert found.needs == needs
    assert found.message.endswith(remedy)


def test_a_model_that_must_lie_on_one_accelerator_names_the_memory_that_it_needs() -> None:
    request = GenerationRequest(facts=facts(QWEN_72B), backend="Transformers")
    found = refused(place_generation(request, cluster(cards(80))))
    assert (found.needs, found.largest) == ("one accelerator with 148.6 GiB usable", "1 x card-80 of 79.6 GiB")
    assert found.message.endswith(". Add nodes with more or larger accelerators.")


@pytest.mark.parametrize(
    ("group", "cap", "remedy"),
    [
        (cards(80, quota=2), None, "or raise the queue's quota, which is 2"),
        (cards(80), 3, "or raise scheduling.maxGpus, which is 3"),
    ],
)
def test_a_quota_or_a_cap_below_one_pod_is_named(group: AcceleratorGroup, cap: int | None, remedy: str) -> None:
    request = GenerationRequest(facts=facts(MISTRAL_LARGE), max_accelerators=cap)
    assert remedy in refused(place_generation(request, cluster(group))).message


def test_weights_and_cache_in_float32_take_twice_the_memory() -> None:
    plain = GenerationRequest(facts=facts(QWEN_72B))
    wide = replace(plain, dtype="float32")
    way = Way(group=cards(141), tensor=8, pipeline=1)
    assert placed(place_generation(plain, cluster(cards(141)))).tensor_parallel_size == 2
    assert placed(place_generation(wide, cluster(cards(141)))).tensor_parallel_size == 4
    assert room(wide, way) < room(plain, way) / 2


def test_a_cache_in_fp8_holds_twice_the_tokens() -> None:
    plain = GenerationRequest(facts=facts(QWEN_72B))
    way = Way(group=cards(80), tensor=4, pipeline=1)
    half = replace(plain, cache_dtype="fp8")
    assert room(half, way) == pytest.approx(2 * room(plain, way), abs=2)
    assert room(replace(half, dtype="float32"), replace(way, tensor=8)) > 0
    for same in ("auto", "bfloat16", "int8_per_token_head"):
        assert room(replace(plain, cache_dtype=same), way) == room(plain, way), same


def test_the_share_of_memory_that_the_user_sets_holds_at_every_step() -> None:
    request = GenerationRequest(facts=facts(QWEN_72B), asked=Asked(utilization=0.5))
    steps = [place_generation(replace(request, step=step), cluster(cards(80))) for step in range(2)]
    assert [(placed(found).per_pod, placed(found).gpu_memory_utilization) for found in steps[:1]] == [(8, 0.5)]
    assert "at last on 8 x card-80 of 79.6 GiB with 50% of their memory" in refused(steps[1]).message
    tight = replace(request, asked=Asked(utilization=0.2))
    assert (
        "or raise gpuMemoryUtilization, which is 0.2." in refused(place_generation(tight, cluster(cards(80)))).message
    )


def test_a_server_without_a_limit_has_room_for_the_whole_context() -> None:
    request = GenerationRequest(facts=facts("meta-llama/Llama-3.1-8B-Instruct"))
    server, single = replace(request, whole_context=True), cluster(cards(24, per_node=1))
    assert placed(place_generation(request, single)).arithmetic.endswith("which are 6 sequences of 4096")
    assert refused(place_generation(server, single)).message.endswith("or set maxModelLength.")
    found = placed(place_generation(server, cluster(cards(24))))
    assert (found.per_pod, found.arithmetic[-29:]) == (2, "which is 1 sequence of 131072")
    assert placed(place_generation(replace(server, max_model_length=4096), single)).arithmetic.endswith("of 4096")


def test_a_slice_of_a_device_is_not_combined() -> None:
    slices = cards(40, is_slice=True, resource="nvidia.com/mig-3g.40gb", name="mig")
    assert placed(place_generation(GenerationRequest(facts=facts(LLAMA_8B)), cluster(slices))).per_pod == 1
    assert (
        "1 x mig of 40.0 GiB"
        in refused(place_generation(GenerationRequest(facts=facts(QWEN_72B)), cluster(slices))).message
    )


def test_transformers_runs_on_one_accelerator() -> None:
    request = GenerationRequest(facts=facts(QWEN_72B), backend="Transformers")
    assert refused(place_generation(request, cluster(cards(80)))).largest == "1 x card-80 of 79.6 GiB"
    small = placed(place_generation(replace(request, facts=facts(LLAMA_8B)), cluster(cards(80))))
    assert (small.per_pod, small.gpu_memory_utilization) == (1, None)


def test_an_illegal_tensor_parallel_size_of_the_user_is_refused_with_the_legal_ones() -> None:
    request = GenerationRequest(facts=facts(PHI_MEDIUM), asked=Asked(tensor_parallel=4))
    found = refused(place_generation(request, cluster(cards(80))))
    assert found.final
    assert found.message == (
        "tensorParallelSize 4 cannot divide 40 heads, 10 key-value heads, the feed-forward widths and the vocabulary "
        "evenly. Set one of 1, 2, or leave it unset."
    )


def test_what_the_user_sets_holds() -> None:
    asked = Asked(accelerators=8, pods=3, memory_gib=77, ephemeral_storage_gib=5)
    found = placed(place_generation(GenerationRequest(facts=facts(LLAMA_8B), asked=asked), cluster(cards(80))))
    assert (found.per_pod, found.tensor_parallel_size, found.pods) == (8, 8, 3)
    assert (found.memory_gib, found.ephemeral_storage_gib) == (77, 5)
    zero = placed(place_generation(GenerationRequest(facts=facts(QWEN_72B), asked=Asked(accelerators=0)), cluster()))
    assert (zero.accelerator, zero.per_pod) == ("", 0)
    amd = cards(80, resource="amd.com/gpu", name="amd")
    asked = Asked(resource="amd.com/gpu")
    chosen = placed(place_generation(GenerationRequest(facts=facts(LLAMA_8B), asked=asked), cluster(cards(24), amd)))
    assert chosen.resource == "amd.com/gpu"


def test_pods_request_memory_disk_and_shared_memory_for_the_model() -> None:
    plain = GenerationRequest(facts=facts(MISTRAL_LARGE))
    found = placed(place_generation(plain, cluster(cards(80))))
    assert (found.memory_gib, found.ephemeral_storage_gib, found.shared_memory_gib) == (35, 242, 4)
    assert placed(place_generation(replace(plain, cached=True), cluster(cards(80)))).ephemeral_storage_gib is None


def test_without_accelerators_small_models_run_on_cpus_and_large_ones_are_refused() -> None:
    small = facts("Qwen/Qwen2.5-3B-Instruct")
    found = placed(place_generation(GenerationRequest(facts=small), cluster()))
    assert (found.accelerator, found.per_pod) == ("", 0)
    assert found.arithmetic == "weights of 5.7 GiB, no accelerators (the labels of the nodes)"
    message = refused(place_generation(GenerationRequest(facts=facts(LLAMA_8B)), cluster())).message
    assert message == (
        "The model (llama, weights of 15.0 GiB) needs accelerators; the cluster has none that can be used (the labels "
        "of the nodes). Either add nodes with accelerators, describe them in spec.accelerator, or set 0 accelerators "
        "for this stage to run it on the CPU."
    )


def test_accelerators_of_unknown_memory_are_not_chosen_and_the_fault_is_repeated() -> None:
    fault = "node gpu-1 has no label nvidia.com/gpu.memory; install GPU feature discovery"
    message = refused(
        place_generation(GenerationRequest(facts=facts(LLAMA_8B)), cluster(cards(80, memory_mib=0), faults=(fault,)))
    ).message
    assert fault in message


def test_after_out_of_memory_the_share_falls_once_and_then_the_accelerators_grow_until_none_are_left() -> None:
    request = GenerationRequest(facts=facts(QWEN_72B))
    steps = [place_generation(replace(request, step=step), cluster(cards(80))) for step in range(4)]
    found = [(step.per_pod, step.gpu_memory_utilization, step.step) for step in steps if isinstance(step, Placement)]
    assert found == [(4, UTILIZATION, 0), (4, REDUCED_UTILIZATION, 1), (8, REDUCED_UTILIZATION, 2)]
    assert refused(steps[3]).message.startswith(
        "Memory was exhausted 3 times, at last on 8 x card-80 of 79.6 GiB with 84% of their memory"
    )


@given(model=some_facts(), groups=some_groups(), step=st.integers(0, 3), cap=st.none() | st.integers(1, 64))
def test_a_placement_is_legal_fits_the_memory_and_keeps_the_limits(
    model: ModelFacts, groups: tuple[AcceleratorGroup, ...], step: int, cap: int | None
) -> None:
    request = GenerationRequest(facts=model, step=step, max_accelerators=cap)
    found = place_generation(request, cluster(*groups))
    if isinstance(found, DoesNotFit):
        assert found.message.endswith(".")
        return
    (group,) = [group for group in groups if group.name == found.accelerator]
    tensor, pipeline = found.tensor_parallel_size, found.pipeline_parallel_size
    assert tensor in legal_tensor_parallel(model, tensor)
    assert found.per_pod == tensor * pipeline <= (1 if group.is_slice else group.per_node)
    assert found.gpu_memory_utilization is not None
    needed = need(request, tensor=tensor, pipeline=pipeline, tokens=cached_tokens(request, 1))
    assert needed <= found.gpu_memory_utilization * group.memory_mib * MIB
    for limit in (cap, group.quota):
        assert limit is None or found.accelerators <= limit


@given(model=some_facts(), small=st.sampled_from(sorted(MEMORY_MIB)), per_node=st.sampled_from([1, 2, 4, 8]))
def test_more_memory_never_takes_more_accelerators(model: ModelFacts, small: int, per_node: int) -> None:
    request = GenerationRequest(facts=model)
    chosen = [
        place_generation(request, cluster(cards(size, per_node=per_node)))
        for size in sorted(MEMORY_MIB)
        if size >= small
    ]
    ranks = [
        (found.pipeline_parallel_size > 1, found.per_pod) if isinstance(found, Placement) else (True, 10**6)
        for found in chosen
    ]
    assert ranks == sorted(ranks, reverse=True)


@given(model=some_facts(), groups=some_groups())
def test_the_ladder_ends_and_each_step_has_no_less_memory(
    model: ModelFacts, groups: tuple[AcceleratorGroup, ...]
) -> None:
    request = GenerationRequest(facts=model)
    memory = 0
    for step in range(200):
        found = place_generation(replace(request, step=step), cluster(*groups))
        if isinstance(found, DoesNotFit):
            return
        (group,) = [group for group in groups if group.name == found.accelerator]
        assert found.per_pod * group.memory_mib >= memory
        memory = found.per_pod * group.memory_mib
    raise AssertionError("the ladder does not end")
