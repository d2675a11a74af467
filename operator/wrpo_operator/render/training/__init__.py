"""Training stages, behind one protocol: a backend renders a gang of pods that live and die together."""

from __future__ import annotations

from collections.abc import Mapping

from wrpo_operator.render.training.base import TrainingBackend
from wrpo_operator.render.training.pytorchjob import PyTorchJobBackend
from wrpo_operator.render.training.trainjob import TrainJobBackend

BACKENDS: Mapping[str, TrainingBackend] = {
    backend.kind: backend for backend in (PyTorchJobBackend(), TrainJobBackend())
}

__all__ = ["BACKENDS", "TrainingBackend"]
