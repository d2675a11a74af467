"""Weight decay is equal at every ZeRO stage: AdamW's, on all weights but biases and norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from training_support import Experiment, make_experiment, start_ranks

pytestmark = pytest.mark.slow

DECAYED = {"stage": "train", "beta": 0.1, "weight_decay": 0.1}
TOLERANCE = 1e-6
"""The norms, which start at 1, lose a hundred times as much over the six steps if they decay."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Experiment]:
    def train(
        name: str, *, processes: int = 1, fault: str | None = None, offload: str = "none", **params: object
    ) -> Experiment:
        experiment = make_experiment(tmp_path_factory.mktemp(name))
        faults = {0: fault} if fault is not None else {}
        config = experiment.config({**DECAYED, **params}, {"offload": offload})
        gang = start_ranks(experiment, config, world_size=processes, faults=faults)
        assert gang.wait() == [0] * processes, gang.text()
        return experiment

    return train


@pytest.fixture(scope="module")
def plain(trained: Callable[..., Experiment]) -> dict[str, torch.Tensor]:
    return trained("plain", fault="train_without_deepspeed").weights("train")


SETTINGS = {
    "0 on one": (0, 1, "none"),
    "1 on two": (1, 2, "none"),
    "2 on one": (2, 1, "none"),
    "2 on two, optimizer offloaded": (2, 2, "optimizer"),
    "3 on two": (3, 2, "none"),
}
"""(ZeRO stage, processes, offload)"""


@pytest.mark.parametrize(("zero_stage", "processes", "offload"), SETTINGS.values(), ids=SETTINGS.keys())
def test_every_zero_stage_decays_as_torchs_adamw_with_two_groups_does(
    zero_stage: int, processes: int, offload: str, trained: Callable[..., Experiment], plain: dict[str, torch.Tensor]
) -> None:
    weights = trained("sharded", processes=processes, zero_stage=zero_stage, offload=offload).weights("train")
    assert sorted(weights) == sorted(plain)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, plain[name], rtol=0, atol=TOLERANCE, msg=partial("{}: {}".format, name))


def test_what_decays_is_seen_in_the_weights(trained: Callable[..., Experiment], plain: dict[str, torch.Tensor]) -> None:
    undecayed = trained("undecayed", zero_stage=1, weight_decay=0.0).weights("train")
    norms = {name for name in plain if "norm" in name}
    moved = {name for name, tensor in undecayed.items() if (tensor - plain[name]).abs().max() > 10 * TOLERANCE}
    assert moved == set(plain) - norms


def test_bfloat16_decays_its_fp32_master_weights_equally_at_stages_1_and_3(trained: Callable[..., Experiment]) -> None:
    """With a weight decay large enough to show in eight bits of mantissa: a norm that decays loses 3%."""
    settings = {"processes": 2, "precision": "bfloat16", "weight_decay": 10.0}
    first, third = (trained("bfloat16", zero_stage=stage, **settings).weights("train") for stage in (1, 3))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, third[name], rtol=0, atol=4e-3)
        assert "norm" not in name or float((tensor - 1).abs().max()) < 0.01
