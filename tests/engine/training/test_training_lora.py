"""Low-rank adapters: training, reference, checkpoints and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_support import Experiment, full_tensor, make_experiment, run_ranks

from wrpo_engine.config import LoraParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.training.backends.base import TensorKind
from wrpo_engine.training.backends.single_process import SingleProcessBackend
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.models.lora import add_adapters, merge_adapters
from wrpo_engine.training.models.model import LogpModel, load_causal_lm
from wrpo_engine.training.models.policy import load_policy

LORA = {"rank": 4, "alpha": 8.0}


def load(path: Path, *, gradient_checkpointing: bool = False) -> Any:
    return load_causal_lm(
        path, precision="float32", gradient_checkpointing=gradient_checkpointing, trust_remote_code=False
    )


def adapted(path: Path, *, gradient_checkpointing: bool = False, **changes: Any) -> Any:
    causal_lm = load(path, gradient_checkpointing=gradient_checkpointing)
    add_adapters(causal_lm, LoraParams.model_validate({**LORA, **changes}), seed=7)
    return causal_lm


def test_only_adapters_of_all_linear_layers_but_the_head_are_trained(training_model_dir: Path) -> None:
    trained = {name for name, one in adapted(training_model_dir).named_parameters() if one.requires_grad}
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == set(layers)
    assert len(trained) == 2 * 2 * len(layers)
    assert not any("lm_head" in name or "embed" in name for name in trained)


def test_every_attempt_starts_with_the_same_adapters(training_model_dir: Path) -> None:
    first, second = (dict(adapted(training_model_dir).named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_targets_can_be_named(training_model_dir: Path) -> None:
    model = adapted(training_model_dir, target_modules=("q_proj",))
    assert {n.split(".lora_")[0] for n, one in model.named_parameters() if one.requires_grad} == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    }


@pytest.mark.parametrize("name", ["no_such_layer", "lm_head"])
def test_a_target_that_cannot_have_an_adapter_is_refused(name: str, training_model_dir: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        adapted(training_model_dir, target_modules=(name,))
    assert caught.value.field == "training.lora.targetModules"


def test_the_reference_is_the_base_model_for_any_adapters(local_run: Any) -> None:
    run = local_run()
    batch = collate(run.token_rows()[:3])
    base = SingleProcessBackend(LogpModel(load(run.model_dir)), run.params()).frozen_sequence_logps(batch)
    backend = SingleProcessBackend(LogpModel(adapted(run.model_dir)), run.params())
    assert torch.equal(backend.frozen_sequence_logps(batch), base)
    for step in range(3):
        backend.backward(backend.sequence_logps(batch).sum() * (-1) ** step, is_last=True)
        backend.optimizer_step(1e-2)
    assert not torch.allclose(backend.frozen_sequence_logps(batch), base, atol=1e-3)
    assert torch.equal(backend.reference_sequence_logps(batch), base)


def test_gradients_with_checkpointing_are_those_without(local_run: Any) -> None:
    run = local_run()
    batch = collate(run.token_rows()[:3])
    gradients = []
    for gradient_checkpointing in (False, True):
        model = LogpModel(adapted(run.model_dir, gradient_checkpointing=gradient_checkpointing))
        model(batch=batch).sum().backward()
        gradients.append([one.grad.clone() for one in model.parameters() if one.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == 28
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_the_merged_model_computes_what_the_adapted_one_does(local_run: Any) -> None:
    run = local_run()
    batch = collate(run.token_rows()[:3])
    causal_lm = adapted(run.model_dir)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    adapters = {name: one.detach() for name, one in causal_lm.named_parameters() if one.requires_grad}
    base = load(run.model_dir)
    merged = merge_adapters(base, adapters, LoraParams.model_validate(LORA))
    expected = LogpModel(causal_lm)(batch=batch)
    base.load_state_dict(merged)
    plain = LogpModel(base)(batch=batch)
    assert not torch.allclose(plain, LogpModel(load(run.model_dir))(batch=batch), atol=0.1)
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)


def test_layers_that_keep_their_weight_transposed_merge_too(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)).eval()
    model.save_pretrained(tmp_path)
    lora = LoraParams(rank=2, alpha=4.0, target_modules=("c_attn", "c_proj"))
    adapted_model = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        add_adapters(adapted_model, lora, seed=1)
    with torch.no_grad():
        for name, parameter in adapted_model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    adapters = {name: one.detach() for name, one in adapted_model.named_parameters() if "lora_" in name}
    model.load_state_dict(merge_adapters(model, adapters, lora), strict=False)
    ids = torch.tensor([[1, 5, 9, 2]])
    torch.testing.assert_close(model(ids).logits, adapted_model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_stopped_run_with_adapters_continues_bit_exactly(local_run: Any) -> None:
    from wrpo_engine.errors import Interrupted
    from wrpo_engine.hub.models import ResolvedModel

    whole = local_run("whole", lora=LORA)
    broken = local_run("broken", lora=LORA, run={"stop_after": 3, "checkpoint_every_steps": 100})
    for run in (whole, broken):

        def backend(run: Any = run) -> SingleProcessBackend:
            base = ResolvedModel(run.model_dir, "tiny", None)
            return SingleProcessBackend(load_policy(base, run.params()), run.params())

        run.backend = backend
    whole.run()
    with pytest.raises(Interrupted):
        broken.run()
    shard = next((broken.directory / "checkpoints").rglob("*.safetensors"))
    assert all(".lora_" in name for name in load_file(shard))
    broken.stop_after = None
    broken.run()
    expected = whole.weights()
    assert len(expected) == 28
    assert all(torch.equal(tensor, expected[name]) for name, tensor in broken.weights().items())
    assert broken.metrics() == whole.metrics()
    assert any(bool(full_tensor(broken.final, name, TensorKind.EXP_AVG).any()) for name in expected)


WITH_EMBEDDING = {**LORA, "target_modules": ["embed_tokens", "q_proj", "down_proj"]}
"""Also a layer whose adapter is looked up, not multiplied, which ZeRO-3 has to gather, too."""


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = make_experiment(tmp_path_factory.mktemp("lora-zero-0"))
    run_ranks(experiment, experiment.config({"stage": "train", "beta": 0.1, "zero_stage": 0, "lora": WITH_EMBEDDING}))
    return experiment


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_every_zero_stage_trains_the_same_adapters(zero_stage: int, baseline: Experiment, tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    settings = {"beta": 0.1, "zero_stage": zero_stage, "lora": WITH_EMBEDDING, "gradient_checkpointing": True}
    params = {"stage": "train", **settings}
    run_ranks(experiment, experiment.config(params), world_size=2)
    ours = load_file(experiment.output("train") / "adapter" / "adapter_model.safetensors")
    theirs = load_file(baseline.output("train") / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-4)
    assert experiment.metrics("train")[0]["margin"] == 0.0


@pytest.mark.slow
def test_the_export_is_the_merged_model_and_the_adapter(baseline: Experiment) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    directory = baseline.output("train")
    manifest = json.loads((directory / "manifest.json").read_text())
    names = {entry["name"] for entry in manifest["files"]}
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model/model.safetensors"} <= names
    merged = AutoModelForCausalLM.from_pretrained(directory / "model")
    base = AutoModelForCausalLM.from_pretrained(baseline.root / "model")
    with_adapter = PeftModel.from_pretrained(base, directory / "adapter")
    ids = torch.tensor([[5, 9, 17, 40, 3]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, with_adapter(ids).logits, rtol=1e-4, atol=1e-4)
        with with_adapter.disable_adapter():
            assert not torch.allclose(merged(ids).logits, with_adapter(ids).logits, atol=1e-3)
    for path in (*(directory / "model").iterdir(), *(directory / "adapter").iterdir()):
        assert path.stat().st_mode & 0o777 == 0o644, path
