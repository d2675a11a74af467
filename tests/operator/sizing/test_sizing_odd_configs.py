"""Sizes of models with unusual configs: legal tensor-parallel sizes, bytes, and placements on clusters of all sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from sizing_support import MEMORY_MIB, cards, cluster, refused

from wrpo_engine.contract.model_facts import facts_of
from wrpo_operator.api.placement import Placement
from wrpo_operator.sizing.catalogue import known_facts, known_models
from wrpo_operator.sizing.generation import place_generation
from wrpo_operator.sizing.memory import MIB, key_value_bytes, legal_tensor_parallel, loaded_bytes
from wrpo_operator.sizing.requests import Asked, GenerationRequest, TrainingRequest
from wrpo_operator.sizing.training import place_training

Config = dict[str, Any]
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
GROUPS = {"quant_method": "awq", "bits": 4, "group_size": 128}
PACKED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
}


def listed(model: str, **changes: Any) -> Config:
    """Return the config of a model of the catalogue with changes."""
    known = known_facts(model)
    assert known is not None
    return {**known.config, **changes}


DEEPSEEK_V3: Config = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "vocab_size": 129280,
    "max_position_embeddings": 163840, "torch_dtype": "bfloat16", "quantization_config": BLOCKS,
}  # fmt: skip
FALCON: Config = {
    "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
    "multi_query": True, "vocab_size": 65024, "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN2_MOE: Config = {
    "model_type": "qwen2_moe", "hidden_size": 3584, "intermediate_size": 18944, "moe_intermediate_size": 2560,
    "shared_expert_intermediate_size": 20480, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "num_experts": 64, "num_experts_per_tok": 8, "vocab_size": 151936,
    "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
}  # fmt: skip
GEMMA_3: Config = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "torch_dtype": "bfloat16",
    "text_config": {"model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504,
                    "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128,
                    "sliding_window": 1024},
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152},
}  # fmt: skip
# Config; legal tensor-parallel sizes up to 16; parameters and bytes in 1e9; bytes that all layers cache for a token.
TABLE: dict[str, tuple[Config, tuple[int, ...], float, float, int]] = {
    "latent attention in blocks of fp8": (DEEPSEEK_V3, (1, 2, 4, 8, 16), 671.0, 672.9, 70272),
    "experts of 12 blocks of fp8": (
        listed("Qwen/Qwen3-235B-A22B", quantization_config=BLOCKS), (1, 2, 4), 235.1, 236.3, 192512),
    "experts of 6 blocks of fp8": (
        listed("Qwen/Qwen3-30B-A3B", quantization_config=BLOCKS), (1, 2), 30.5, 31.2, 98304),
    "fp8 without blocks": (
        listed("Qwen/Qwen3-30B-A3B", quantization_config={"quant_method": "fp8"}), (1, 2, 4, 8, 16), 30.5, 31.2, 98304),
    "231 groups of AWQ": (
        listed("Qwen/Qwen2-72B-Instruct", quantization_config=GROUPS), (1,), 72.7, 43.6, 327680),
    "232 groups of AWQ": (
        listed("Qwen/Qwen2-72B-Instruct", quantization_config=GROUPS, intermediate_size=29696),
        (1, 2, 4, 8), 73.0, 43.7, 327680),
    "compressed tensors of 4 bits": (
        listed("Qwen/Qwen2.5-7B-Instruct", quantization_config=PACKED), (1, 2, 4), 7.6, 5.8, 57344),
    "GPTQ of 8 bits": (
        listed("Qwen/Qwen2.5-0.5B-Instruct", quantization_config={**GROUPS, "quant_method": "gptq", "bits": 8}),
        (1,), 0.5, 0.6, 12288),
    "one scale for a row": (
        listed("Qwen/Qwen2.5-0.5B-Instruct", quantization_config={**GROUPS, "group_size": -1}),
        (1, 2), 0.5, 0.5, 12288),
    "10 key-value heads": (listed("microsoft/phi-4"), (1, 2), 14.7, 29.3, 204800),
    # The architecture is not listed: it counts as gated, which is more than its 7.2e9 parameters.
    "one key-value head for 71": (FALCON, (1,), 9.9, 19.7, 8192),
    "shared and routed experts": (QWEN2_MOE, (1, 2, 4), 57.4, 114.8, 57344),
    "tied embeddings": (listed("meta-llama/Llama-3.2-1B-Instruct"), (1, 2, 4, 8, 16), 1.2, 2.5, 32768),
    "a language model in text_config": (GEMMA_3, (1, 2, 4, 8, 16), 27.0, 54.0, 507904),
    "a sliding window": (
        listed("mistralai/Mistral-7B-Instruct-v0.3", sliding_window=4096), (1, 2, 4, 8, 16), 7.2, 14.5, 131072),
    "float32": (listed("Qwen/Qwen3-4B", torch_dtype="float32"), (1, 2, 4, 8, 16), 4.0, 16.1, 147456),
}  # fmt: skip


@pytest.mark.parametrize(("config", "legal", "billions", "gigabytes", "cache"), TABLE.values(), ids=TABLE.keys())
def test_facts_of_unusual_configs(
    config: Config, legal: tuple[int, ...], billions: float, gigabytes: float, cache: int
) -> None:
    found = facts_of(config, weight_bytes=None)
    assert legal_tensor_parallel(found, 16) == legal
    assert (round(found.parameters / 1e9, 1), round(found.weight_bytes / 1e9, 1)) == (billions, gigabytes)
    assert key_value_bytes(found) == cache


def test_a_tensor_parallel_size_that_divides_groups_is_refused_with_the_legal_ones() -> None:
    facts = facts_of(TABLE["experts of 12 blocks of fp8"][0], weight_bytes=None)
    request = GenerationRequest(facts=facts, asked=Asked(tensor_parallel=8))
    assert refused(place_generation(request, cluster(cards(80)))).message == (
        "tensorParallelSize 8 cannot divide 64 heads, 4 key-value heads, the quantised groups of the widths and the "
        "vocabulary evenly. Set one of 1, 2, 4, or leave it unset."
    )


def group_of(config: Config) -> int:
    """Return how many neighbouring values share a scale."""
    section = config.get("quantization_config", {})
    packed = section.get("config_groups", {}).get("group_0", {}).get("weights", {})
    return max(1, *section.get("weight_block_size", [1]), section.get("group_size", 1), packed.get("group_size", 1))


def is_divisible(config: Config, size: int) -> bool:
    """Return whether vLLM can divide heads, key-value heads and feed-forward networks by a tensor-parallel size."""
    text = config.get("text_config", config)
    heads = text["num_attention_heads"]
    pairs = text.get("num_key_value_heads", 1 if text.get("multi_query") else heads)
    names = ("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size")
    is_sparse = "moe_intermediate_size" in text and not text.get("first_k_dense_replace")
    widths = [text[name] for name in names if name in text and not (is_sparse and name == "intermediate_size")]
    even = heads % size == 0 and (text.get("kv_lora_rank") or pairs % size == 0 or size % pairs == 0)
    return bool(even) and all(width % (size * (group_of(config) if size > 1 else 1)) == 0 for width in widths)


ALL = {name: row[0] for name, row in TABLE.items()} | {
    known.model: dict(known.config) for known in known_models().values()
}
SIZES = sorted(MEMORY_MIB)


@pytest.mark.parametrize("config", ALL.values(), ids=ALL.keys())
def test_every_placement_is_legal_fits_and_needs_no_more_where_there_is_more_memory(config: Config) -> None:
    facts = facts_of(config, weight_bytes=None)
    assert all(is_divisible(config, size) for size in legal_tensor_parallel(facts, 16))
    for per_node in (1, 2, 4, 8):
        taken = []
        for gigabytes in SIZES:
            found = place_generation(GenerationRequest(facts=facts), cluster(cards(gigabytes, per_node)))
            if not isinstance(found, Placement):
                taken.append(per_node + 1)
                continue
            assert is_divisible(config, found.tensor_parallel_size)
            assert found.per_pod == found.tensor_parallel_size * found.pipeline_parallel_size <= per_node
            least = loaded_bytes(facts) + key_value_bytes(facts) * min(4096, facts.context)
            assert least <= 0.9 * found.per_pod * MEMORY_MIB[gigabytes] * MIB
            taken.append(found.per_pod)
        assert all(small >= large for small, large in pairwise(taken)), taken


@pytest.mark.parametrize("config", ALL.values(), ids=ALL.keys())
def test_every_training_gang_has_room_for_its_states_and_needs_no_more_where_there_is_more_memory(
    config: Config,
) -> None:
    facts = facts_of(config, weight_bytes=None)
    ranks = []
    for gigabytes in SIZES:
        request = TrainingRequest(facts=facts, offload="none")
        found = place_training(request, cluster(cards(gigabytes, nodes=64)))
        if not isinstance(found, Placement):
            ranks.append(10**6)
            continue
        assert 18 * facts.parameters <= 0.92 * found.accelerators * MEMORY_MIB[gigabytes] * MIB
        assert (8 % found.per_pod, found.pods) == (0, 1) or found.per_pod == 8
        ranks.append(found.accelerators if found.pods > 1 else 8)
    assert all(small >= large for small, large in pairwise(ranks)), ranks
