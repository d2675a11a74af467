"""Real DeepSpeed runs: the layout of sequences changes nothing of what is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_support import Experiment, make_experiment, run_ranks

pytestmark = pytest.mark.slow

COMPARED = ("loss", "grad_norm", "margin", "margin_source", "logps_rejected", "lengths_rejected")


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Padded sequences, ZeRO 0, one process."""
    experiment = make_experiment(tmp_path_factory.mktemp("padded"))
    config = experiment.config({"stage": "train", "zero_stage": 0, "beta": 0.1}, {"layout": "padded"})
    run_ranks(experiment, config)
    return experiment


@pytest.mark.parametrize("layout", ["shared-prefix", "packed"])
def test_two_ranks_of_zero_3_with_checkpointing_train_the_model_of_one_rank_with_padding(
    layout: str, padded: Experiment, tmp_path: Path
) -> None:
    experiment = make_experiment(tmp_path)
    params = {"stage": "train", "zero_stage": 3, "beta": 0.1, "gradient_checkpointing": True}
    gang = run_ranks(experiment, experiment.config(params, {"layout": layout}), world_size=2)
    assert gang.text().count(f"layout of sequences: {layout}") == 1
    ours, theirs = experiment.metrics("train"), padded.metrics("train")
    assert len(ours) == len(theirs) == 6
    for our, their in zip(ours, theirs, strict=True):
        compared = {name: their[name] for name in COMPARED}
        assert {name: our[name] for name in COMPARED} == pytest.approx(compared, rel=1e-4, abs=1e-5)
    weights = padded.weights("train")
    for name, tensor in experiment.weights("train").items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-5)


def test_sft_on_all_tokens_trains_the_same_model_packed_and_padded(tmp_path: Path) -> None:
    params = {"stage": "sft", "zero_stage": 0, "loss_tokens": "All"}
    packed, padded = make_experiment(tmp_path / "packed"), make_experiment(tmp_path / "padded")
    run_ranks(packed, packed.config(params))
    run_ranks(padded, padded.config(params, {"layout": "padded"}))
    ours, theirs = packed.metrics("sft"), padded.metrics("sft")
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-5)
    for name, tensor in packed.weights("sft").items():
        torch.testing.assert_close(tensor, padded.weights("sft")[name], rtol=0, atol=1e-5)
