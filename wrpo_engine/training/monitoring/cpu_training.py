"""Warning about training a large model on CPUs, which takes weeks and is usually a forgotten request for GPUs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from wrpo_engine.loading.files import TensorFact

METRIC = "large_model_on_cpu"
"""Metric of a training stage: 1 if a model of LARGE_PARAMETERS or more was trained without a GPU; otherwise absent."""
LARGE_PARAMETERS = 1_000_000_000
_LOG = logging.getLogger("wrpo_engine")


def parameters_of(facts: Mapping[str, TensorFact]) -> int:
    """Return the number of parameters that the headers of a model's weights describe."""
    return sum(math.prod(fact.shape) for fact in facts.values())


def warn_of_cpu(parameters: int, *, on_gpu: bool, name: str) -> dict[str, float]:
    """Log a warning if a large model is trained on CPUs, and return its metrics; empty if all is well."""
    if on_gpu or parameters < LARGE_PARAMETERS:
        return {}
    _LOG.warning(
        "WARNING: %s has %.1f billion parameters and is trained on the CPU, because this pod has no GPU. "
        "That takes days to months. Set training.gpusPerNode if you did not intend it.",
        name,
        parameters / 1e9,
    )
    return {METRIC: 1.0}
