"""Rendering of planned attempts to manifests. Pure: no decisions, no I/O."""

from __future__ import annotations

import copy

from wrpo_engine.contract.definition import Shape
from wrpo_operator.plan.model import Experiment, Manifest, PlannedAttempt
from wrpo_operator.render.common import config_map
from wrpo_operator.render.jobs import render_job
from wrpo_operator.render.pod import ChildRequest
from wrpo_operator.render.settings import RenderSettings, StageCommand
from wrpo_operator.render.training import BACKENDS, GangRequest

__all__ = ["RenderSettings", "StageCommand", "render_attempt"]


def render_attempt(experiment: Experiment, planned: PlannedAttempt, settings: RenderSettings) -> tuple[Manifest, ...]:
    """Return the manifests of an attempt in the order in which they are applied: ConfigMap first, the child last."""
    spec = experiment.spec
    if spec is None:
        raise ValueError(f"experiment {experiment.namespace}/{experiment.name} has no valid spec to render from")
    config = config_map(experiment, spec, planned, settings.progress_ca if settings.progress_url else None)
    name: str = config["metadata"]["name"]
    if planned.node.shape is Shape.TRAINING:
        manifests = BACKENDS[spec.training.backend].render(GangRequest(experiment, spec, planned, settings, name))
    else:
        manifests = (render_job(ChildRequest(experiment, spec, planned, settings, name)),)
    return config, *copy.deepcopy(manifests)
