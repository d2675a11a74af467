"""Training stages, behind one protocol: a backend renders a gang of pods that start and fail together."""

from __future__ import annotations

from collections.abc import Mapping

from wrpo_operator.api.backends import BACKENDS as KINDS
from wrpo_operator.render.training.base import GangRequest, TrainingBackend
from wrpo_operator.render.training.jobset import JobSetBackend
from wrpo_operator.render.training.pytorchjob import PyTorchJobBackend
from wrpo_operator.render.training.trainjob import TrainJobBackend


def by_kind(backends: tuple[TrainingBackend, ...], kinds: Mapping[str, object]) -> Mapping[str, TrainingBackend]:
    """Return the backends by kind; raise ImportError if they are not those of `kinds`."""
    found = {backend.facts.kind: backend for backend in backends}
    for kind in sorted(found.keys() ^ kinds.keys()):
        where = "render/training renders it" if kind in found else "api/backends.py has an entry for it"
        raise ImportError(f"training backend {kind} is incomplete: only {where}; add the other part or remove this one")
    return found


BACKENDS: Mapping[str, TrainingBackend] = by_kind((PyTorchJobBackend(), TrainJobBackend(), JobSetBackend()), KINDS)

__all__ = ["BACKENDS", "GangRequest", "TrainingBackend"]
