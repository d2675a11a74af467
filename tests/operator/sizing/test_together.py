"""Several models in the memory of one pod: tables, and what always holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sizing_support import LLAMA_8B, cards, cluster, facts, placed, refused, some_facts, some_groups

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.contract.spreading import spread
from wrpo_engine.sampling.sampler import SamplerSettings
from wrpo_operator.api.placement import Placement
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.memory import usable_bytes
from wrpo_operator.sizing.requests import DoesNotFit, GenerationRequest, ScoringRequest
from wrpo_operator.sizing.scoring import USABLE
from wrpo_operator.sizing.together import CANDIDATE_TOKENS, place_together, residents_of

LLAMA_70B = "meta-llama/Meta-Llama-3-70B-Instruct"
GEMMA_9B, GEMMA_27B = "google/gemma-2-9b-it", "google/gemma-2-27b-it"
ARMO = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
LENGTH = 4096 + 2048


def member(model: ModelFacts) -> GenerationRequest:
    """Return a model that chooses each token with others."""
    return GenerationRequest(facts=model, backend="Transformers", max_model_length=LENGTH, one_by_one=True, cached=True)


def together(models: list[str], group: AcceleratorGroup, step: int = 0) -> Placement | DoesNotFit:
    return place_together([replace(member(facts(model)), step=step) for model in models], cluster(group))


TABLE: dict[str, tuple[list[str], int, int | None]] = {
    "two of 8B share a card": ([LLAMA_8B] * 2, 80, 1),
    "two of 8B with a card each": ([LLAMA_8B] * 2, 24, 2),
    "three on two cards": ([LLAMA_8B, LLAMA_8B, GEMMA_9B], 48, 2),
    "each of two would fit, their sum does not": ([GEMMA_27B] * 2, 80, 2),
    "the same on a larger card": ([GEMMA_27B] * 2, 141, 1),
    "one that is too large for a card": ([LLAMA_70B, LLAMA_8B], 80, None),
    "the same on a larger one": ([LLAMA_70B, LLAMA_8B], 141, None),
}


@pytest.mark.parametrize(("models", "gigabytes", "per_pod"), TABLE.values(), ids=TABLE.keys())
def test_a_pod_has_cards_for_the_sum_of_its_models(models: list[str], gigabytes: int, per_pod: int | None) -> None:
    result = together(models, cards(gigabytes))
    if per_pod is None:
        refused(result)
    else:
        assert placed(result).per_pod == per_pod


def test_the_arithmetic_shows_the_sum() -> None:
    found = placed(together([LLAMA_8B, LLAMA_8B, GEMMA_9B], cards(48)))
    assert found.arithmetic == (
        "weights of 15.0 + 15.0 + 17.2 = 47.1 GiB, caches of 0.8 + 0.8 + 2.0 = 3.5 GiB on 2 x card-48, 2 of 3 models "
        "on the fullest: 37.3 GiB of 40.5 GiB usable (90%)"
    )
    assert (found.memory_gib, found.ephemeral_storage_gib) == (34, None)
    many = placed(together([LLAMA_8B] * 7, cards(141)))
    assert many.arithmetic.startswith("weights of 104.7 GiB, caches of 5.2 GiB on 1 x card-141: ")


def test_what_does_not_fit_names_the_sum_the_need_and_the_largest() -> None:
    few = refused(together([GEMMA_27B] * 2, cards(80, per_node=1)))
    assert few.message == (
        "The stage holds 2 models at once, with weights of 50.7 + 50.7 = 101.4 GiB, and needs 2 x card-80 of 79.6 GiB "
        "in one pod; the largest pod can use 1 x card-80 of 79.6 GiB (the labels of the nodes). Either add nodes with "
        "more or larger accelerators, or name fewer or smaller models."
    )
    large = refused(together([LLAMA_70B, LLAMA_8B], cards(80)))
    assert large.needs.startswith("an accelerator with 1")
    assert large.largest == "2 x card-80 of 79.6 GiB"
    limited = place_together([replace(member(facts(GEMMA_27B)), max_accelerators=1)] * 2, cluster(cards(80)))
    assert "raise scheduling.maxGpus, which is 1" in refused(limited).message


def test_each_out_of_memory_gives_more_room_until_each_model_has_a_card() -> None:
    sizes = [placed(together([LLAMA_8B] * 3, cards(80), step)).per_pod for step in range(3)]
    assert sizes == [1, 2, 3]
    last = refused(together([LLAMA_8B] * 3, cards(80), 3))
    assert last.message.startswith("Memory was exhausted 3 times, at last on 3 x card-80")


@pytest.mark.parametrize(
    ("gigabytes", "tokens"),
    [(80, 16384), (48, 16384), (40, 4096), (24, None)],
    ids=["room", "enough room", "little room", "too little"],
)
def test_a_candidate_and_its_reward_model_share_one_card(gigabytes: int, tokens: int | None) -> None:
    candidate = GenerationRequest(facts=facts(LLAMA_8B), backend="Transformers", cached=True)
    reward = ScoringRequest(facts=facts(ARMO), cached=True)
    result = place_together([candidate, reward], cluster(cards(gigabytes)))
    if tokens is None:
        assert refused(result).largest == "1 x card-24 of 24.0 GiB"
        return
    found = placed(result)
    assert (found.per_pod, found.micro_batch_tokens) == (1, tokens)
    smaller = placed(place_together([replace(each, step=1) for each in (candidate, reward)], cluster(cards(gigabytes))))
    assert smaller.micro_batch_tokens == tokens // 2


def test_a_batch_of_the_sampler_is_as_long_as_the_plan_counts() -> None:
    assert SamplerSettings.__dataclass_fields__["batch_tokens"].default == CANDIDATE_TOKENS


def test_without_accelerators_the_sum_decides_whether_cpus_run_the_models() -> None:
    none = Inventory(groups=(), source="no nodes")
    small = facts("Qwen/Qwen2.5-1.5B-Instruct")
    assert placed(place_together([member(small)] * 2, none)).per_pod == 0
    many = refused(place_together([member(small)] * 3, none))
    assert many.message.startswith("The model (qwen2, weights of 8.6 GiB) needs accelerators; the cluster has none")


def test_a_pod_without_a_cache_has_disk_for_all_models() -> None:
    found = place_together([replace(member(facts(LLAMA_8B)), cached=False)] * 2, cluster(cards(80)))
    assert placed(found).ephemeral_storage_gib == 2 * 18


@settings(max_examples=60, deadline=None)
@given(models=st.lists(some_facts(), min_size=2, max_size=4), groups=some_groups())
def test_no_accelerator_holds_more_than_its_memory_and_none_is_idle(
    models: list[ModelFacts], groups: tuple[AcceleratorGroup, ...]
) -> None:
    requests = [member(model) for model in models]
    result = place_together(requests, Inventory(groups=groups[:1], source="generated"))
    if isinstance(result, DoesNotFit):
        return
    weights = [each.weights for each in residents_of(requests, None)]
    loads = [0] * result.per_pod
    for place, size in zip(spread(weights, result.per_pod), weights, strict=True):
        loads[place] += size
    assert max(loads) <= usable_bytes(groups[0], USABLE)
    assert min(loads) > 0


def test_models_are_spread_largest_first_and_ties_are_settled_by_order() -> None:
    assert spread([1, 5, 3, 3], 2) == (0, 0, 1, 1)
    assert spread([2, 2, 2], 3) == (0, 1, 2)
    assert spread([7, 1], 1) == (0, 0)
