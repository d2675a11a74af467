"""PodGroup of a training gang, for schedulers that start all pods of a group or none."""

from __future__ import annotations

from typing import Any

from wrpo_engine.contract.definition import Shape
from wrpo_operator.api.backends import BACKENDS
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.model import Experiment, Manifest, PlannedAttempt
from wrpo_operator.plan.resources import gang_of
from wrpo_operator.render.common import metadata

API_VERSIONS = {"Volcano": "scheduling.volcano.sh/v1beta1", "SchedulerPlugins": "scheduling.x-k8s.io/v1alpha1"}


def needs_pod_group(spec: ExperimentSpec, planned: PlannedAttempt) -> bool:
    """Return whether the operator creates a PodGroup for a stage's gang; some backends create their own."""
    is_gang = planned.node.shape is Shape.TRAINING and gang_of(spec, planned.node).nodes > 1
    return is_gang and spec.scheduling.pod_group is not None and not BACKENDS[spec.training.backend].makes_pod_group


def render_pod_group(experiment: Experiment, spec: ExperimentSpec, planned: PlannedAttempt) -> Manifest:
    """Return the PodGroup of an attempt; it has the child's name."""
    group: dict[str, Any] = {"minMember": gang_of(spec, planned.node).nodes}
    if spec.scheduling.pod_group == "Volcano" and spec.scheduling.priority_class_name:
        group["priorityClassName"] = spec.scheduling.priority_class_name
    return {
        "apiVersion": API_VERSIONS[spec.scheduling.pod_group or "Volcano"],
        "kind": "PodGroup",
        "metadata": metadata(experiment, planned, planned.child_name),
        "spec": group,
    }
