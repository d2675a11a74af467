"""What a training backend must be able to do."""

from __future__ import annotations

from typing import Protocol

from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.model import Experiment, Manifest, PlannedAttempt
from wrpo_operator.render.settings import RenderSettings


class TrainingBackend(Protocol):
    """Renders the child of a training stage. Its pods must start torchrun with the gang's shape in PET_..."""

    def render(
        self,
        experiment: Experiment,
        spec: ExperimentSpec,
        planned: PlannedAttempt,
        settings: RenderSettings,
        config_name: str,
    ) -> Manifest:
        """Return the child's manifest."""
        ...
