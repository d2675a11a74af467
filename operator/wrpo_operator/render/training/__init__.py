"""Training stages, behind one protocol: a backend renders a gang of pods that live and die together."""

from __future__ import annotations

from collections.abc import Mapping

from wrpo_operator.render.training.base import TrainingBackend
from wrpo_operator.render.training.pytorchjob import PyTorchJobBackend

BACKENDS: Mapping[str, TrainingBackend] = {"PyTorchJob": PyTorchJobBackend()}

__all__ = ["BACKENDS", "TrainingBackend"]
