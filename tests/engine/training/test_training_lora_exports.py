"""Both exports contain every trained adapter, for any layer; layers that cannot be exported are refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import EXPERTS, LATENT
from engine_support import EXPERIMENT_HASH, NOON
from hypothesis import given
from hypothesis import strategies as st
from layout_support import make_causal_lm
from safetensors.torch import load_file
from torch import Tensor

from wrpo_engine.artifacts.volume import VolumeWriter
from wrpo_engine.config import ArtifactRef, LoraParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.training.export import export
from wrpo_engine.training.export.export import TrainedModel, export_model
from wrpo_engine.training.models.lora import add_adapters, merge_adapters
from wrpo_engine.training.models.model import load_causal_lm

IDS = torch.tensor([[5, 9, 17, 40, 3, 60, 61, 62, 7, 9]])
UNTIED = {"tie_word_embeddings": False}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": UNTIED,
    "qwen2": UNTIED,
    "gemma2": {"head_dim": 8, **UNTIED},
    "gemma3_text": {"head_dim": 8, **UNTIED},
    "phi3": UNTIED,
    "gpt2": {"n_positions": 256, **UNTIED},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48, **UNTIED},
    "gpt_neox": UNTIED,
    "falcon": UNTIED,
    "mixtral": {"num_local_experts": 4, **UNTIED},
    "qwen2_moe": {"shared_expert_intermediate_size": 24, "mlp_only_layers": [0], **EXPERTS, **UNTIED},
    "qwen3_moe": {"head_dim": 8, **EXPERTS, **UNTIED},
    "deepseek_v3": {**LATENT, **UNTIED},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8, **UNTIED},
}
"""model_type -> settings in addition to the sizes."""
AVAILABLE = {
    "llama": "down_proj, embed_tokens, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
    "gemma3_text": "down_proj, embed_tokens, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
    "gpt2": "c_attn, c_fc, c_proj, wpe, wte",
    "opt": "embed_tokens, fc1, fc2, k_proj, out_proj, q_proj, v_proj",
    "mixtral": "embed_tokens, k_proj, o_proj, q_proj, v_proj",
    "qwen2_moe": "down_proj, embed_tokens, gate_proj, k_proj, o_proj, q_proj, shared_expert_gate, up_proj, v_proj",
    "deepseek_v3": "embed_tokens, kv_a_proj_with_mqa, kv_b_proj, o_proj, q_a_proj, q_b_proj",
}
LORA = {"rank": 3, "alpha": 6.0}


def params(*modules: str) -> LoraParams:
    return LoraParams.model_validate({**LORA, "target_modules": modules})


def save(model_type: str, path: Path, **changes: Any) -> Path:
    model = make_causal_lm(model_type, dtype=torch.float32, settings={**ARCHITECTURES[model_type], **changes})
    model.save_pretrained(path)
    return path


def load(path: Path) -> Any:
    loaded = load_causal_lm(path, precision="float32", gradient_checkpointing=False, trust_remote_code=False)
    return loaded.eval()


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """PEFT says of GPT-2's layers that it treats them as they need."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        yield


def trained(base: Path, lora: LoraParams) -> tuple[Any, dict[str, Tensor]]:
    """A model whose adapters are far from zero, and these."""
    model = load(base)
    with without_peft_warnings():
        add_adapters(model, lora, seed=1)
    adapters = {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}
    torch.manual_seed(2)
    for tensor in adapters.values():
        tensor.normal_(std=0.3)
    return model, adapters


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def exported(base: Path, adapters: dict[str, Tensor], lora: LoraParams, directory: Path) -> Path:
    writer = VolumeWriter(ArtifactRef(stage="train", hash=EXPERIMENT_HASH), directory, {}, {}, lambda: NOON)
    whole = TrainedModel(
        source=base,
        base_name=str(base),
        weights=adapters,
        precision="float32",
        lora=lora,
        tokenizer=None,
        trust_remote_code=False,
    )
    export_model(writer, whole, lambda _: "card")
    return directory


def assert_both_exports_are_what_was_trained(base: Path, modules: tuple[str, ...], directory: Path) -> None:
    from peft import PeftModel

    lora = params(*modules)
    model, adapters = trained(base, lora)
    expected = logits(model)
    scale = float(expected.abs().max())
    assert float((expected - logits(load(base))).abs().max()) > 1e-3 * scale, "training changed nothing"
    made = exported(base, adapters, lora, directory)
    with without_peft_warnings():
        reloaded = PeftModel.from_pretrained(load(base), made / "adapter").eval()
    for ours in (logits(load(made / "model")), logits(reloaded)):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * scale)


def names_available(base: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        add_adapters(load(base), params("no_such_layer"), seed=1)
    found = str(caught.value).partition(": no_such_layer matches no layer of the model; available are ")[2]
    return found.split(", ")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_was_trained_is_in_the_merged_model_and_in_the_adapter(model_type: str, tmp_path: Path) -> None:
    base = save(model_type, tmp_path / "base")
    every = names_available(base)
    embedding = load(base).get_input_embeddings()
    (name,) = [name.rpartition(".")[2] for name, one in load(base).named_modules() if type(one) is type(embedding)][:1]
    assert name in every
    choices = {"default": (), "everything": tuple(every)}
    if model_type in {"llama", "gemma3_text", "gpt2", "deepseek_v3"}:
        choices |= {"embedding": (name,), "one": (every[-1],)}
    for label, modules in choices.items():
        assert_both_exports_are_what_was_trained(base, modules, tmp_path / label)


def test_the_base_of_a_merged_model_with_buffers_is_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save("deepseek_v3", tmp_path / "base")
    lora = params("o_proj")
    _, adapters = trained(base, lora)
    loads: list[Path] = []

    def load_counted(source: Path, **settings: Any) -> Any:
        loads.append(source)
        return load_causal_lm(source, **settings)

    monkeypatch.setattr(export, "load_causal_lm", load_counted)
    made = exported(base, adapters, lora, tmp_path / "made")
    assert loads == [base]
    before, after = (load_file(path / "model.safetensors") for path in (base, made / "model"))
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)


@pytest.mark.parametrize("model_type", AVAILABLE)
def test_a_name_that_matches_nothing_is_refused_among_names_that_match(model_type: str, tmp_path: Path) -> None:
    base = save(model_type, tmp_path)
    good = AVAILABLE[model_type].split(", ")[0]
    with pytest.raises(ConfigError) as caught:
        add_adapters(load(base), params(good, "q_porj"), seed=1)
    assert caught.value.field == "training.lora.targetModules"
    assert caught.value.message == (
        f"training.lora.targetModules is ['{good}', 'q_porj']: q_porj matches no layer of the model; available are "
        f"{AVAILABLE[model_type]}"
    )


def test_a_layer_can_be_named_by_the_end_of_its_path(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    model, adapters = trained(base, params("layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"))
    assert sorted({name.partition(".lora_")[0] for name in adapters}) == [
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    assert_both_exports_are_what_was_trained(base, ("layers.1.self_attn.q_proj", "embed_tokens"), tmp_path / "made")
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if ".lora_" not in name)


TIED = (
    " shares its weight with lm_head (tie_word_embeddings), so a merged model cannot have an adapter on one of them "
    "alone"
)
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a tied embedding": (
        "llama",
        {"tie_word_embeddings": True},
        "embed_tokens",
        "model.embed_tokens" + TIED,
    ),
    "a tied embedding of another name": (
        "gpt2",
        {"tie_word_embeddings": True},
        "wte",
        "transformer.wte" + TIED,
    ),
    "a tied head": (
        "gemma3_text",
        {"tie_word_embeddings": True},
        "lm_head",
        "the output head lm_head cannot have an adapter: its log-probabilities are computed in chunks",
    ),
    "a block": ("llama", {}, "mlp", "model.layers.0.mlp is a LlamaMLP, neither a linear layer nor an embedding"),
    "a norm": ("llama", {}, "norm", "model.norm is a LlamaRMSNorm, neither a linear layer nor an embedding"),
    "positions that are looked up in another way": (
        "opt",
        {},
        "embed_positions",
        "model.decoder.embed_positions is a OPTLearnedPositionalEmbedding, neither a linear layer nor an embedding",
    ),
    "experts": (
        "mixtral",
        {},
        "experts",
        "model.layers.0.mlp.experts is a MixtralExperts, neither a linear layer nor an embedding",
    ),
    "experts as they once were": (
        "mixtral",
        {},
        "w1",
        f"w1 matches no layer of the model; available are {AVAILABLE['mixtral']}",
    ),
    "experts in one tensor": (
        "qwen3_moe",
        {},
        "gate_up_proj",
        "gate_up_proj matches no layer of the model; available are embed_tokens, k_proj, o_proj, q_proj, v_proj",
    ),
    "a shared expert whose name is that of the others": (
        "deepseek_v3",
        {},
        "down_proj",
        "PEFT interprets down_proj as a name of the model's experts and would not find model.layers.0.mlp.down_proj",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_could_not_be_exported_is_refused_by_name(
    case: tuple[str, dict[str, Any], str, str], tmp_path: Path
) -> None:
    model_type, changes, module, why = case
    base = save(model_type, tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        add_adapters(load(base), params(module), seed=1)
    assert caught.value.message == f"training.lora.targetModules is ['{module}']: {why}"


def test_layers_that_cannot_be_exported_are_left_out_of_all_linear_ones_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = save("deepseek_v3", tmp_path)
    _, adapters = trained(base, params())
    assert "no adapters for down_proj, gate_proj, up_proj: they could not be exported" in caplog.messages
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in adapters}
    assert sorted(layers) == ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"]


@given(extra=st.sampled_from(["model.norm.lora_A.default.weight", "model.embed_tokens.lora_embedding_A.default", "x"]))
def test_a_trained_tensor_that_has_no_place_in_the_model_is_never_left_out(extra: str) -> None:
    with pytest.raises(ValueError, match=f"^adapters that belong to no linear layer or embedding: {extra}$"):
        merge_adapters(torch.nn.Module(), {extra: torch.ones(1)}, params())
