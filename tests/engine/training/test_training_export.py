"""The export contains the whole trained model."""

from __future__ import annotations

from pathlib import Path

import torch
from architectures import EXPERTS, LATENT
from engine_support import EXPERIMENT_HASH, NOON
from layout_support import make_causal_lm
from safetensors.torch import load_file

from wrpo_engine.artifacts.volume import VolumeWriter
from wrpo_engine.config import ArtifactRef
from wrpo_engine.training.export.export import TrainedModel, export_model


def test_tensors_that_are_not_parameters_are_exported_as_the_model_had_them(tmp_path: Path) -> None:
    model = make_causal_lm("deepseek_v3", dtype=torch.float32, settings={**EXPERTS, **LATENT})
    buffers = {name: one for name, one in model.named_buffers() if name.endswith("e_score_correction_bias")}
    assert buffers, "an architecture with such tensors is needed here"
    for one in buffers.values():
        one.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path / "base")
    weights = {name: one.detach() + 1.0 for name, one in model.named_parameters()}
    writer = VolumeWriter(ArtifactRef(stage="train", hash=EXPERIMENT_HASH), tmp_path / "out", {}, {}, lambda: NOON)

    export_model(
        writer,
        TrainedModel(
            source=tmp_path / "base",
            base_name="base",
            weights=weights,
            precision="float32",
            lora=None,
            tokenizer=None,
            trust_remote_code=False,
        ),
        lambda _: "card",
    )

    before = load_file(tmp_path / "base" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert after.keys() == before.keys()
    for name in buffers:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
