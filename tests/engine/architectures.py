"""Tiny models of what the installed Transformers offers, their weights so large that caps and windows matter."""

from __future__ import annotations

from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SCALE = 8.0
WINDOW = {"sliding_window": 8}
_CAP = {"head_dim": 8, "attn_logit_softcapping": 2.0, **WINDOW}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
_ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
_LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, **_ROPE, **more}}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with yarn": _rope("yarn", factor=4.0),
    "llama with llama3 scaling": _rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0),
    "llama with dynamic scaling within its context": {**_rope("dynamic", factor=4.0), "max_position_embeddings": 64},
    "mistral with a window": WINDOW,
    "qwen2 with windows in some layers": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": {"head_dim": 8},
    "gemma with one head size": {"head_dim": 8},
    "gemma2 with a cap and windows": _CAP,
    "gemma3_text with windows": {"head_dim": 8, **WINDOW},
    "vaultgemma with a cap and windows": _CAP,
    "phi3 with longrope within its first context": {
        "original_max_position_embeddings": 64,
        **_rope("longrope", **_LONG),
    },
    "gpt2": {"n_positions": 256},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "gpt_bigcode with dropout of attention": {},
    "gpt_neox": {},
    "falcon": {"new_decoder_architecture": True},
    "falcon with ALiBi": {"alibi": True},
    "bloom with ALiBi": {},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"shared_expert_intermediate_size": 24, **EXPERTS},
    "qwen3_moe": {"head_dim": 8, **EXPERTS},
    "deepseek_v2": {**LATENT, "topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "cohere": {},
    "cohere2": WINDOW,
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "gpt_oss with sinks and windows": {"num_local_experts": 4, "head_dim": 8, **WINDOW},
    "olmo2": {},
    "granite with its scalings": {"logits_scaling": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "starcoder2 with a window": WINDOW,
    "smollm3": {},
    "seed_oss with dropout of residuals": {},
}
"""What to set beside the sizes; the first word is the model_type."""


def make_model(kind: Any, architecture: str, **changes: Any) -> Any:
    """Make a model of an Auto class in fp32."""
    from transformers import AutoConfig

    model_type = architecture.split(maxsplit=1)[0]
    settings = {**SIZES, **ARCHITECTURES.get(architecture, {}), **changes}
    config = AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(0)
    model = kind.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(SCALE)
    return model.eval()
