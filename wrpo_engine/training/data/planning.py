"""Planning of a run's data order from rows and settings."""

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
"""Maximum on a CPU, where more tokens per forward pass only take memory."""


def micro_batch_tokens(bound: int) -> int:
    """Return the maximum tokens of one forward pass: the configured bound, on a CPU at most CPU_MICRO_BATCH_TOKENS."""
    return bound if torch.cuda.is_available() else min(bound, CPU_MICRO_BATCH_TOKENS)


def make_plan(
    params: OptimizerParams, runtime: Runtime, rows: Sequence[TokenRow], group: Group, config: Any
) -> BatchPlan:
    """Return the plan for a model of the given Hugging Face config, which determines the layout and the work model.

    Raise ConfigError if the architecture does not support the configured layout.
    """
    choice = choose_layout(runtime.layout, config)
    if group.is_main:
        log.info("layout of sequences: %s (%s)", choice.layout, choice.reason)
    if len(rows) < params.global_batch_size and group.is_main:
        log.warning(
            "%d rows are fewer than globalBatchSize %d: every step uses all rows",
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
