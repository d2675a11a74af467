"""Learning-rate schedules as functions of the step, equal to those of the Hugging Face trainer."""

from __future__ import annotations

import math

from wrpo_engine.config import OptimizerParams


def num_warmup_steps(num_steps: int, params: OptimizerParams) -> int:
    """Return the optimizer steps of the warm-up, rounded up."""
    return math.ceil(num_steps * params.warmup_ratio)


def learning_rate_at(step: int, num_steps: int, params: OptimizerParams) -> float:
    """Return the learning rate of the optimizer step that follows `step` completed ones.

    Linear warm-up from 0, so the first step of a run with warm-up changes no weight. Then half a cosine to 0, a line to
    0, or the full rate.
    """
    warmup = num_warmup_steps(num_steps, params)
    if step < warmup:
        return params.learning_rate * (step / max(1, warmup))
    progress = (step - warmup) / max(1, num_steps - warmup)
    match params.lr_scheduler_type:
        case "cosine":
            return params.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
        case "linear":
            return params.learning_rate * max(0.0, 1.0 - progress)
        case "constant":
            return params.learning_rate
