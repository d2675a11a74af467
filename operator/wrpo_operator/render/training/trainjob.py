"""Kubeflow Trainer v2: a TrainJob, and a TrainingRuntime of its own that holds the whole pod template.

A TrainJob may patch only some fields of a shared runtime's pods. A runtime made for the attempt holds all of them (the
restricted security context, no API token, the mounts), needs nothing prepared by an administrator, and changes for
nobody else. Kubeflow Trainer's torch policy gives pods the PET_... variables that torchrun reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.model import Experiment, Manifest, PlannedAttempt
from wrpo_operator.plan.resources import gang_of
from wrpo_operator.render.common import child_metadata, metadata
from wrpo_operator.render.pod import pod_template
from wrpo_operator.render.settings import RenderSettings

API_VERSION = "trainer.kubeflow.org/v1alpha1"
RUNTIME_KIND = "TrainingRuntime"
CONTAINER = "node"
"""Kubeflow Trainer finds the replicated job by its ancestor label and the container by this name."""
ANCESTOR_LABEL = "trainer.kubeflow.org/trainjob-ancestor-step"
POD_GROUP_POLICIES: Mapping[str, dict[str, Any]] = {
    "Volcano": {"volcano": {}},
    "SchedulerPlugins": {"coscheduling": {}},
}


class TrainJobBackend:
    """Kubeflow Trainer v2."""

    kind = "TrainJob"
    container = CONTAINER
    controls_pods = False

    def render(
        self,
        experiment: Experiment,
        spec: ExperimentSpec,
        planned: PlannedAttempt,
        settings: RenderSettings,
        config_name: str,
    ) -> tuple[Manifest, ...]:
        """Return the runtime and the TrainJob. The gang is never restarted in place: the operator makes it anew."""
        gang = gang_of(spec, planned.node.id.kind)
        template = pod_template(experiment, spec, planned, settings, config_name, container_name=CONTAINER)
        job_template = {
            "metadata": {"labels": {ANCESTOR_LABEL: "trainer"}},
            "spec": {"backoffLimit": 0, "template": template},
        }
        runtime_spec: dict[str, Any] = {
            "mlPolicy": {"numNodes": gang.nodes, "torch": {}},
            "template": {"spec": {"replicatedJobs": [{"name": CONTAINER, "replicas": 1, "template": job_template}]}},
        }
        if spec.scheduling.pod_group and gang.nodes > 1:
            runtime_spec["podGroupPolicy"] = POD_GROUP_POLICIES[spec.scheduling.pod_group]
        job: dict[str, Any] = {
            "runtimeRef": {
                "apiGroup": API_VERSION.partition("/")[0],
                "kind": RUNTIME_KIND,
                "name": planned.child_name,
            },
            "trainer": {"numNodes": gang.nodes, "numProcPerNode": gang.ranks_per_node},
        }
        if not spec.scheduling.queue_name:  # with a queue, suspend is Kueue's
            job["suspend"] = planned.suspend
        runtime = {
            "apiVersion": API_VERSION,
            "kind": RUNTIME_KIND,
            "metadata": metadata(experiment, planned, planned.child_name),
            "spec": runtime_spec,
        }
        child = {
            "apiVersion": API_VERSION,
            "kind": self.kind,
            "metadata": child_metadata(experiment, planned, spec.scheduling, {"job": job, "runtime": runtime_spec}),
            "spec": job,
        }
        return runtime, child

    def suspend_patch(self, *, suspend: bool) -> dict[str, Any]:
        """See TrainingBackend."""
        return {"spec": {"suspend": suspend}}

    def is_suspended(self, spec: Mapping[str, Any]) -> bool:
        """See TrainingBackend."""
        return bool(spec.get("suspend"))

    def pod_maker(self, child: str) -> tuple[str, str]:
        """Return the Job of the TrainJob's JobSet."""
        return "Job", f"{child}-{CONTAINER}-0"

    def rank_of(self, labels: Mapping[str, str]) -> int | None:  # noqa: ARG002
        """Return None: the pods are those of an Indexed Job."""
        return None
