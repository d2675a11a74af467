"""Checkpoints that are right are loaded: real families, tied and untied heads, old names, shards, bases, own heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import make_tokenizer
from safetensors.torch import load_file, save_file

from wrpo_engine.errors import ConfigError
from wrpo_engine.hub.models import ResolvedModel, tensor_facts, transformers_config
from wrpo_engine.loading.weights import SAMPLE, SCORE, Purpose, check_weights

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
}
CAUSAL = ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Phi3", "GPT2", "OPT", "GPTNeoX", "Falcon", "Bloom", "Mpt"]
MIXED = ["Mixtral", "Qwen2Moe", "Qwen3Moe", "DeepseekV3", "Olmoe"]


def save(directory: Path, kind: str, head: str, **settings: Any) -> Path:
    import transformers

    words = make_tokenizer()
    made = getattr(transformers, f"{kind}Config")(vocab_size=len(words), **{**TINY, **settings})
    torch.manual_seed(0)
    getattr(transformers, f"AutoModelFor{head}").from_config(made).save_pretrained(directory)
    return directory


def check(directory: Path, head: str = "CausalLM", purpose: Purpose = SAMPLE) -> None:
    import transformers

    model = ResolvedModel(directory, "model", None)
    kind = getattr(transformers, f"AutoModelFor{head}")
    check_weights(model.directory, tensor_facts(model), transformers_config(model), kind, purpose)


def rename(directory: Path, function: Callable[[str], str], *, more: dict[str, torch.Tensor] | None = None) -> None:
    path = directory / "model.safetensors"
    renamed = {function(name): tensor for name, tensor in load_file(path).items()} | (more or {})
    save_file(renamed, path, metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", [*CAUSAL, *MIXED])
def test_what_a_family_saves_is_complete_and_what_lacks_a_tensor_is_not(kind: str, tied: bool, tmp_path: Path) -> None:
    experts = EXPERTS if kind in MIXED else {}
    directory = save(tmp_path, kind, "CausalLM", tie_word_embeddings=tied, **experts)
    check(directory)
    path = directory / "model.safetensors"
    weights = load_file(path)
    weights.pop(min(name for name in weights if "1." in name))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"its files hold (no weights for|weights of other shapes)"):
        check(directory)


def test_old_names_of_norms_and_buffers_that_are_computed_are_no_fault(tmp_path: Path) -> None:
    directory = save(tmp_path, "Bert", "SequenceClassification", num_labels=1)
    rename(
        directory,
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
        more={"bert.embeddings.position_ids": torch.arange(64)[None], "cls.predictions.bias": torch.zeros(9)},
    )
    check(directory, "SequenceClassification", SCORE)


def test_a_base_model_s_names_and_masks_of_old_gpt_2_are_no_fault(tmp_path: Path) -> None:
    directory = save(tmp_path, "GPT2", "CausalLM")
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 4, 4) for layer in (0, 1)}
    rename(directory, lambda name: name.removeprefix("transformer."), more=masks)
    check(directory)


def test_frequencies_that_older_versions_saved_are_no_fault(tmp_path: Path) -> None:
    directory = save(tmp_path, "Llama", "CausalLM")
    rename(directory, str, more={"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    check(directory)


@pytest.mark.parametrize("kind", ["Llama", "Gemma2", "Qwen3", "Bert", "DebertaV2", "XLMRoberta"])
def test_reward_models_of_many_families_are_complete_and_without_head_are_not(kind: str, tmp_path: Path) -> None:
    check(save(tmp_path / "a", kind, "SequenceClassification", num_labels=1), "SequenceClassification", SCORE)
    import transformers

    base = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(tmp_path / "a"))
    base.save_pretrained(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"hold no weights for (score|classifier)\..*so its scores would be random"):
        check(tmp_path / "b", "SequenceClassification", SCORE)


def test_a_sharded_model_of_another_precision_is_complete(tmp_path: Path) -> None:
    import transformers

    directory = save(tmp_path / "a", "Llama", "CausalLM")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 2
    check(tmp_path / "b")
