"""Time that the pods of a stage have after SIGTERM."""

from __future__ import annotations

from math import ceil

from wrpo_engine.config import SftParams, TrainParams
from wrpo_engine.contract.definition import Shape
from wrpo_operator.plan.model import StageNode

GRACE_S = 60
"""A stage that commits parts: it ends the current one."""
TRAINING_GRACE_S = 120
"""A training step, and the checkpoint of a small model or of adapters."""
UNKNOWN_GRACE_S = 900
"""A training step, and the checkpoint of a model of unknown size that trains on accelerators."""
CHECKPOINT_BYTES_PER_PARAMETER = 12
"""Weights and two moments in float32."""
WRITTEN_BYTES_PER_S = 200e6
"""Copying, hashing and writing a checkpoint to a slow network volume."""


def grace_of(node: StageNode, accelerators: int) -> int:
    """Return the grace period in seconds.

    A training stage saves a checkpoint, whose size follows from the model's, so that preemption loses no step.
    """
    if node.shape is not Shape.TRAINING:
        return GRACE_S
    params = node.params
    if isinstance(params, SftParams | TrainParams) and params.lora is not None:
        return TRAINING_GRACE_S
    if node.facts is None:
        return UNKNOWN_GRACE_S if accelerators else TRAINING_GRACE_S
    size = CHECKPOINT_BYTES_PER_PARAMETER * node.facts.parameters
    return TRAINING_GRACE_S + ceil(size / WRITTEN_BYTES_PER_S)
