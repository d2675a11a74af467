"""From rows and settings to the run's data order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from wrpo_engine.config import OptimizerParams, Runtime
from wrpo_engine.training.batch.batching import BatchPlan, RowCost, WorkModel
from wrpo_engine.training.batch.layout import choose_layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.distributed.collectives import Group

log = logging.getLogger("wrpo_engine")

CPU_MICRO_BATCH_TOKENS = 1024
"""A CPU computes no faster on more tokens at a time; they only take memory."""


def micro_batch_tokens(bound: int) -> int:
    """Return the tokens of one forward pass: the configured upper bound, on a CPU not more than is of use."""
    return bound if torch.cuda.is_available() else min(bound, CPU_MICRO_BATCH_TOKENS)


def make_plan(
    params: OptimizerParams, runtime: Runtime, rows: Sequence[TokenRow], group: Group, config: Any
) -> BatchPlan:
    """Plan for a model of the given Hugging Face config; it decides the layout and what balances work."""
    choice = choose_layout(runtime.layout, config)
    if group.is_main:
        log.info("layout of sequences: %s (%s)", choice.layout, choice.reason)
    if len(rows) < params.global_batch_size and group.is_main:
        log.warning(
            "%d rows are fewer than globalBatchSize %d: every step takes all of them",
            len(rows),
            params.global_batch_size,
        )
    return BatchPlan(
        costs=[RowCost.of(row) for row in rows],
        global_batch_size=params.global_batch_size,
        epochs=params.epochs,
        seed=params.seed,
        world_size=group.world_size,
        micro_batch_tokens=micro_batch_tokens(runtime.micro_batch_tokens),
        micro_batch_rows=runtime.micro_batch_size,
        shuffle=params.shuffle,
        layout=choice.layout,
        work=WorkModel.of_config(config),
    )
