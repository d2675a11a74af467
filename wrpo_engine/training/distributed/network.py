"""Rate at which the nodes of a gang exchange data, measured on GPUs before a model is loaded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from wrpo_engine.training.distributed.collectives import Group, peer_errors

log = logging.getLogger("wrpo_engine")

BUFFER_BYTES = 64 * 2**20
ROUNDS = 8
SLOW = 12.5e9
"""Bytes per second, those of Ethernet of 100 Gbit/s, below which the exchange of ZeRO 3 takes longer than computing."""


def report_network(group: Group, device: torch.device) -> None:
    """Log on rank 0 what the network between several nodes with GPUs carries, and warn if that is little."""
    if device.type != "cuda" or group.world_size == group.local_world_size:
        return
    rate = measured_rate(group, device)
    if group.is_main:
        line, warning = network_lines(rate, nodes=group.world_size // group.local_world_size)
        log.info("%s", line)
        if warning is not None:
            log.warning("%s", warning)


def measured_rate(group: Group, device: torch.device, *, clock: Callable[[], float] = time.monotonic) -> float:
    """Return the bytes per second that an all-reduce of all ranks sends over its slowest connection.

    All ranks must call this. The number of rounds is fixed, so that none of them waits for one that has stopped.
    """
    buffer = torch.zeros(BUFFER_BYTES // 4, dtype=torch.float32, device=device)
    begin = 0.0
    with peer_errors():
        for number in range(ROUNDS + 1):
            if number == 1:  # The first round opens the connections.
                _wait(device)
                begin = clock()
            dist.all_reduce(buffer)
        _wait(device)
    share = 2 * (group.world_size - 1) / group.world_size
    return share * BUFFER_BYTES * ROUNDS / max(clock() - begin, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def network_lines(rate: float, *, nodes: int) -> tuple[str, str | None]:
    """Return a line for the log about a measured rate in bytes per second, and a warning if it is low."""
    line = f"between {nodes} nodes: an all-reduce carries {rate / 1e9:.1f} GB/s ({rate * 8 / 1e9:.0f} Gbit/s)"
    if rate >= SLOW:
        return line, None
    return line, (
        f"the network between the nodes carries {rate * 8 / 1e9:.0f} Gbit/s, and below {SLOW * 8 / 1e9:.0f} Gbit/s the "
        "exchange of zeroStage 3 takes longer than computing. NCCL_DEBUG=INFO in spec.env shows the transport: "
        "NET/Socket is TCP, NET/IB is RDMA. Correct the network, train on one node, or set zeroStage 2."
    )
