"""Accelerators of scoring."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from sizing_support import QWEN_72B, cards, cluster, facts, placed, refused, some_facts, some_groups

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.sizing.inventory import AcceleratorGroup
from wrpo_operator.sizing.memory import MIB
from wrpo_operator.sizing.requests import Asked, DoesNotFit, ScoringRequest
from wrpo_operator.sizing.scoring import USABLE, need, place_scoring

ARMO = ScoringRequest(facts=facts("RLHFlow/ArmoRM-Llama3-8B-v0.1"))


def test_a_reward_model_runs_on_one_accelerator_of_the_cheapest_group_in_as_many_shards_as_there_are() -> None:
    found = placed(place_scoring(ARMO, cluster(cards(80, nodes=4), cards(24, nodes=2))))
    assert (found.accelerator, found.per_pod, found.pods, found.micro_batch_tokens) == ("card-24", 1, 16, 16384)
    assert found.alternatives == ("1 x card-80 of 79.6 GiB",)
    assert found.arithmetic == (
        "weights of 14.0 GiB, batches of 16384 tokens: 20.0 GiB of 21.6 GiB usable (90% of card-24)"
    )
    assert placed(place_scoring(replace(ARMO, responses=3000), cluster(cards(80, nodes=4)))).pods == 2


def test_batches_shrink_where_no_accelerator_has_room_for_usual_ones() -> None:
    found = placed(place_scoring(ARMO, cluster(cards(24, memory_mib=20480))))
    assert found.micro_batch_tokens == 4096


def test_a_reward_model_in_float32_needs_a_larger_accelerator() -> None:
    groups = cluster(cards(24), cards(48))
    assert placed(place_scoring(replace(ARMO, dtype="float32"), groups)).accelerator == "card-48"
    assert placed(place_scoring(replace(ARMO, dtype="bfloat16"), groups)).accelerator == "card-24"


def test_what_the_user_sets_holds() -> None:
    asked = Asked(pods=3, memory_gib=40, ephemeral_storage_gib=7)
    found = placed(place_scoring(replace(ARMO, asked=asked, batch_tokens=999), cluster(cards(24))))
    assert (found.pods, found.memory_gib, found.ephemeral_storage_gib, found.micro_batch_tokens) == (3, 40, 7, 999)
    assert placed(place_scoring(replace(ARMO, asked=Asked(accelerators=0)), cluster(cards(24)))).accelerator == ""


def test_a_reward_model_larger_than_every_accelerator_is_refused() -> None:
    found = refused(place_scoring(replace(ARMO, facts=facts(QWEN_72B)), cluster(cards(80))))
    assert found.message == (
        "The reward model (qwen2, weights of 135.4 GiB) needs 147.7 GiB on one accelerator; the largest has 71.7 GiB "
        "of 1 x card-80 of 79.6 GiB (the labels of the nodes). Either add nodes with larger accelerators, name a "
        "smaller reward model, or let a server run it (reward.endpoint)."
    )


def test_after_out_of_memory_accelerators_grow_and_batches_shrink_until_none_are_left() -> None:
    steps = [place_scoring(replace(ARMO, step=step), cluster(cards(24))) for step in range(6)]
    assert [placed(step).micro_batch_tokens for step in steps[:5]] == [16384, 8192, 4096, 2048, 1024]
    assert refused(steps[5]).message.startswith(
        "Memory was exhausted 5 times, at last on 1 x card-24 of 24.0 GiB with batches of 1024 tokens"
    )
    larger = placed(place_scoring(replace(ARMO, step=1), cluster(cards(24), cards(80))))
    assert (larger.accelerator, larger.micro_batch_tokens) == ("card-80", 16384)


@given(model=some_facts(), groups=some_groups())
def test_a_placement_fits_the_memory_and_the_ladder_ends(
    model: ModelFacts, groups: tuple[AcceleratorGroup, ...]
) -> None:
    request = ScoringRequest(facts=model)
    for step in range(50):
        found = place_scoring(replace(request, step=step), cluster(*groups))
        if isinstance(found, DoesNotFit):
            return
        (group,) = [group for group in groups if group.name == found.accelerator]
        assert found.micro_batch_tokens is not None
        assert need(request, found.micro_batch_tokens) <= USABLE * group.memory_mib * MIB
        assert group.quota is None or found.accelerators <= group.quota
    raise AssertionError("the ladder does not end")
