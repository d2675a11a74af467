"""Placements on one group of accelerators."""

from __future__ import annotations

from wrpo_engine.contract.model_facts import ModelFacts, facts_of
from wrpo_operator.api.placement import Placement
from wrpo_operator.sizing.generation import place_generation
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.requests import Asked, DoesNotFit, GenerationRequest, ScoringRequest, TrainingRequest
from wrpo_operator.sizing.scoring import place_scoring
from wrpo_operator.sizing.training import place_training

H100 = AcceleratorGroup(name="H100", resource="nvidia.com/gpu", memory_mib=81559, per_node=8, nodes=4)
CLUSTER = Inventory(groups=(H100,), source="the labels of 4 nodes")
NONE = Inventory(source="the labels of 2 nodes")
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


def llama_8b() -> ModelFacts:
    return facts_of(LLAMA_8B, weight_bytes=None)


def test_an_8b_model_is_sampled_on_one_card_and_trained_on_a_part_of_a_node() -> None:
    sampled = place_generation(GenerationRequest(facts=llama_8b(), prompts=60_000), CLUSTER)
    scored = place_scoring(ScoringRequest(facts=llama_8b()), CLUSTER)
    trained = place_training(TrainingRequest(facts=llama_8b()), CLUSTER)
    assert isinstance(sampled, Placement)
    assert isinstance(scored, Placement)
    assert isinstance(trained, Placement)
    assert (sampled.per_pod, sampled.pods, sampled.resource) == (1, 32, "nvidia.com/gpu")
    assert (scored.per_pod, scored.pods) == (1, 32)
    assert 1 < trained.per_pod <= 8


def test_a_large_model_does_not_fit_a_cluster_without_accelerators() -> None:
    refused = place_generation(GenerationRequest(facts=llama_8b()), NONE)
    assert isinstance(refused, DoesNotFit)
    assert "the cluster has none that can be used (the labels of 2 nodes)" in refused.message


def test_zero_accelerators_mean_the_cpu() -> None:
    placed = place_generation(GenerationRequest(facts=llama_8b(), asked=Asked(accelerators=0)), CLUSTER)
    assert isinstance(placed, Placement)
    assert (placed.accelerator, placed.per_pod) == ("", 0)
