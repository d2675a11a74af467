"""Kubeflow Trainer v2: a TrainJob, and a dedicated TrainingRuntime with the whole pod template.

A TrainJob may patch only some fields of a shared runtime's pods. A dedicated runtime sets all of them (the
restricted security context, no API token, the mounts), needs no preparation by an administrator, and affects no other
TrainJob. Kubeflow Trainer's torch policy gives pods the PET_... variables that torchrun reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wrpo_operator.api.backends import BACKENDS, TRAINING_RUNTIME
from wrpo_operator.plan.model import Manifest
from wrpo_operator.render.common import metadata
from wrpo_operator.render.training.base import GangRequest

ANCESTOR_LABEL = "trainer.kubeflow.org/trainjob-ancestor-step"
"""Kubeflow Trainer finds the replicated job by this label and the container by its name."""
POD_GROUP_POLICIES: Mapping[str, dict[str, Any]] = {
    "Volcano": {"volcano": {}},
    "SchedulerPlugins": {"coscheduling": {}},
}


class TrainJobBackend:
    """Kubeflow Trainer v2."""

    facts = BACKENDS["TrainJob"]

    def render(self, request: GangRequest) -> tuple[Manifest, ...]:
        """Return the runtime and the TrainJob."""
        gang, name = request.gang, self.facts.container
        job_template = {
            "metadata": {"labels": {ANCESTOR_LABEL: "trainer"}},
            "spec": {"backoffLimit": 0, "template": request.template(name)},
        }
        runtime_spec: dict[str, Any] = {
            "mlPolicy": {"numNodes": gang.nodes, "torch": {}},
            "template": {"spec": {"replicatedJobs": [{"name": name, "replicas": 1, "template": job_template}]}},
        }
        pod_group = request.spec.scheduling.pod_group
        if pod_group and gang.nodes > 1:
            runtime_spec["podGroupPolicy"] = POD_GROUP_POLICIES[pod_group]
        job: dict[str, Any] = {
            "runtimeRef": {"apiGroup": TRAINING_RUNTIME.group, "kind": TRAINING_RUNTIME.kind, "name": request.name},
            "trainer": {"numNodes": gang.nodes, "numProcPerNode": gang.ranks_per_node},
            **request.suspend(),
        }
        runtime = {
            "apiVersion": TRAINING_RUNTIME.api_version,
            "kind": TRAINING_RUNTIME.kind,
            "metadata": metadata(request.experiment, request.planned, request.name),
            "spec": runtime_spec,
        }
        return runtime, *request.child(self.facts, job, described={"job": job, "runtime": runtime_spec})

    def rank_of(self, labels: Mapping[str, str]) -> int | None:  # noqa: ARG002
        """Return None: the pods are those of an Indexed Job."""
        return None
