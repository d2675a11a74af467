"""Parameters that are counted from config.json, beside those of models that Transformers builds without memory."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_engine.contract.model_facts import facts_of
from wrpo_engine.contract.model_families import FAMILIES

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 112,
    "vocab_size": 320,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
V3_LATENT = {**LATENT, "q_lora_rank": 24, "first_k_dense_replace": 2}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", GROUPED),
    ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 32}),
    ("mistral", {**GROUPED, "head_dim": 24}),
    ("mixtral", {**GROUPED, "num_local_experts": 6}),
    ("qwen2", GROUPED),
    ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    ("qwen2_moe", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 40}),
    ("qwen2_moe", {**GROUPED, **EXPERTS, "decoder_sparse_step": 2}),
    ("qwen3", GROUPED),
    ("qwen3_moe", {**GROUPED, **EXPERTS}),
    ("qwen3_moe", {**GROUPED, **EXPERTS, "mlp_only_layers": [1]}),
    ("gemma", GROUPED),
    ("gemma2", GROUPED),
    ("gemma3_text", GROUPED),
    ("phi3", GROUPED),
    ("phi", GROUPED),
    ("smollm3", GROUPED),
    ("olmo2", GROUPED),
    ("granite", GROUPED),
    ("starcoder2", GROUPED),
    ("deepseek_v2", {**LATENT, "q_lora_rank": None, "n_shared_experts": 2, "first_k_dense_replace": 1}),
    ("deepseek_v2", {**LATENT, "q_lora_rank": 24, "n_shared_experts": 1}),
    ("deepseek_v3", V3_LATENT),
    ("gpt2", {"n_positions": 128, "intermediate_size": None}),
    ("gpt2", {"n_positions": 128, "intermediate_size": None, "n_inner": 96}),
    ("gpt_neox", {}),
    ("opt", {"ffn_dim": 112, "word_embed_proj_dim": 64}),
    ("bert", {"max_position_embeddings": 64}),
    ("roberta", {"max_position_embeddings": 64}),
    ("xlm-roberta", {"max_position_embeddings": 64}),
    ("deberta-v2", {}),
    (
        "deberta-v2",
        {
            "position_biased_input": False,
            "relative_attention": True,
            "position_buckets": 32,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "type_vocab_size": 0,
        },
    ),
]


def built(model_type: str, changes: dict[str, Any], *, labels: int | None = None) -> tuple[int, dict[str, Any]]:
    """Return the number of parameters of a model without memory, and its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.for_model(model_type, **{**SMALL, **changes})
    if labels is not None:
        config.num_labels = labels
    with torch.device("meta"):
        model = (AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification).from_config(config)
    values = config.to_dict() | {"architectures": [type(model).__name__]}
    return sum(parameter.numel() for parameter in model.parameters()), values


@pytest.mark.parametrize(("model_type", "changes"), CASES, ids=lambda case: case if isinstance(case, str) else "")
def test_the_config_counts_as_many_parameters_as_transformers_builds(model_type: str, changes: dict[str, Any]) -> None:
    parameters, config = built(model_type, changes, labels=1 if FAMILIES[model_type].encoder else None)
    assert facts_of(config, weight_bytes=None).parameters == parameters


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen3"])
def test_a_reward_model_has_rows_of_labels_in_place_of_the_vocabulary(model_type: str) -> None:
    parameters, config = built(model_type, GROUPED, labels=5)
    assert facts_of(config, weight_bytes=None).parameters == parameters


def test_every_listed_architecture_is_built_except_those_that_transformers_does_not_have() -> None:
    assert {name for name, _ in CASES} == {name for name, family in FAMILIES.items() if family.native}


@pytest.mark.parametrize("model_type", sorted(name for name, family in FAMILIES.items() if family.defaults))
def test_what_config_json_omits_has_the_value_of_transformers(model_type: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)
    assert {name: getattr(config, name) for name in FAMILIES[model_type].defaults} == FAMILIES[model_type].defaults
