"""Rate between the nodes of a gang: how it is measured, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wrpo_engine.training.distributed import network
from wrpo_engine.training.distributed.collectives import open_group

CPU = torch.device("cpu")


def test_the_rate_counts_what_every_rank_sends_after_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "BUFFER_BYTES", 4096)
    times = iter([10.0, 10.5])
    with open_group({}) as group:
        sixteen = replace(group, world_size=16, local_world_size=8)
        rate = network.measured_rate(sixteen, CPU, clock=lambda: next(times))
    assert rate == pytest.approx(2 * 15 / 16 * 4096 * network.ROUNDS / 0.5)


@pytest.mark.parametrize(
    ("rate", "said"), [(48e9, "48.0 GB/s (384 Gbit/s)"), (12.5e9, "12.5 GB/s (100 Gbit/s)"), (1.2e9, "1.2 GB/s")]
)
def test_a_slow_network_is_warned_of_with_remedies(rate: float, said: str) -> None:
    line, warning = network.network_lines(rate, nodes=2)
    assert line.startswith(f"between 2 nodes: an all-reduce carries {said}")
    assert (warning is not None) == (rate < network.SLOW)
    if warning is not None:
        assert warning.startswith("the network between the nodes carries 10 Gbit/s, and below 100 Gbit/s")
        assert warning.endswith("Correct the network, train on one node, or set zeroStage 2.")


@pytest.mark.parametrize(("device", "local", "messages"), [("cpu", 8, 0), ("cuda", 16, 0), ("cuda", 8, 2)])
def test_only_nodes_with_gpus_are_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str, local: int, messages: int
) -> None:
    monkeypatch.setattr(network, "measured_rate", lambda group, device: 1e9)
    with open_group({}) as group, caplog.at_level("INFO", "wrpo_engine"):
        network.report_network(replace(group, world_size=16, local_world_size=local), torch.device(device))
        network.report_network(replace(group, rank=1, world_size=16, local_world_size=local), torch.device(device))
    assert len(caplog.messages) == messages
