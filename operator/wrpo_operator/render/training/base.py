"""What a training backend must be able to do. Everything particular to one stands in that backend's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.model import Experiment, Manifest, PlannedAttempt
from wrpo_operator.render.settings import RenderSettings


class TrainingBackend(Protocol):
    """Renders the child of a training stage. Its pods must start torchrun with the gang's shape in PET_..."""

    kind: str
    """Kind of the child."""
    container: str
    """Name of the container that runs the stage."""
    controls_pods: bool
    """Whether the child itself is its pods' controller; else they are found by the attempt's labels."""

    def render(
        self,
        experiment: Experiment,
        spec: ExperimentSpec,
        planned: PlannedAttempt,
        settings: RenderSettings,
        config_name: str,
    ) -> tuple[Manifest, ...]:
        """Return what is applied, in this order; the child is the last."""
        ...

    def suspend_patch(self, *, suspend: bool) -> dict[str, Any]:
        """Return the merge patch that sets the child's suspend field."""
        ...

    def is_suspended(self, spec: Mapping[str, Any]) -> bool:
        """Return the suspend field of a child's spec."""
        ...

    def pod_maker(self, child: str) -> tuple[str, str]:
        """Return kind and name of the object that creates the child's pods: its Events tell of refused ones."""
        ...

    def rank_of(self, labels: Mapping[str, str]) -> int | None:
        """Return the node rank that a pod's labels tell; None where the completion index does."""
        ...
