"""PyTorchJob (kubeflow.org/v1): a master and workers; it succeeds when the master does.

Its operator sets PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR and PET_MASTER_PORT. It puts an init
container of its own, without a security context, into workers; a namespace that enforces the restricted standard needs
an exemption or an operator started with another init container template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.model import Experiment, Manifest, PlannedAttempt
from wrpo_operator.plan.resources import gang_of
from wrpo_operator.render.common import child_metadata
from wrpo_operator.render.pod import pod_template
from wrpo_operator.render.podgroup import needs_pod_group, render_pod_group
from wrpo_operator.render.settings import RenderSettings

CONTAINER = "pytorch"
"""The container's name is how PyTorchJob finds it."""
PORT_NAME = "pytorchjob-port"
FIRST_PORT = 20000
NUM_PORTS = 20000


def master_port(planned: PlannedAttempt) -> int:
    """Return the gang's port: made of stage hash and attempt, so that two gangs on one host do not meet."""
    return FIRST_PORT + (int(planned.node.hash, 16) + planned.attempt) % NUM_PORTS


class PyTorchJobBackend:
    """Kubeflow's training operator v1: the default backend."""

    kind = "PyTorchJob"
    container = CONTAINER
    controls_pods = True

    def render(
        self,
        experiment: Experiment,
        spec: ExperimentSpec,
        planned: PlannedAttempt,
        settings: RenderSettings,
        config_name: str,
    ) -> tuple[Manifest, ...]:
        """Return the PyTorchJob, after its PodGroup if it has one.

        The gang is never restarted in place: the operator makes it anew.
        """
        gang = gang_of(spec, planned.node.id.kind)
        port = {"name": PORT_NAME, "containerPort": master_port(planned), "protocol": "TCP"}
        template = pod_template(
            experiment,
            spec,
            planned,
            settings,
            config_name,
            container_name=CONTAINER,
            container_extra={"ports": [port]},
        )
        replicas = {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}
        if gang.nodes > 1:
            replicas["Worker"] = {"replicas": gang.nodes - 1, "restartPolicy": "Never", "template": template}
        # Finished pods stay, for their logs and termination messages; peers of a crashed rank do not.
        policy: dict[str, Any] = {"cleanPodPolicy": "Running"}
        queue = spec.scheduling.queue_name
        if not queue:  # with a queue, suspend is Kueue's
            policy["suspend"] = planned.suspend
        job = {
            "nprocPerNode": str(gang.ranks_per_node),
            "runPolicy": policy,
            "pytorchReplicaSpecs": replicas,
        }
        child = {
            "apiVersion": "kubeflow.org/v1",
            "kind": self.kind,
            "metadata": child_metadata(experiment, planned, spec.scheduling, job),
            "spec": job,
        }
        groups = (render_pod_group(experiment, spec, planned),) if needs_pod_group(spec, planned) else ()
        return *groups, child

    def suspend_patch(self, *, suspend: bool) -> dict[str, Any]:
        """See TrainingBackend."""
        return {"spec": {"runPolicy": {"suspend": suspend}}}

    def is_suspended(self, spec: Mapping[str, Any]) -> bool:
        """See TrainingBackend."""
        return bool((spec.get("runPolicy") or {}).get("suspend"))

    def pod_maker(self, child: str) -> tuple[str, str]:
        """See TrainingBackend."""
        return self.kind, child

    def rank_of(self, labels: Mapping[str, str]) -> int | None:
        """Return the rank: the master is 0, workers follow."""
        index = labels.get("training.kubeflow.org/replica-index", "")
        if not index.isdecimal():
            return None
        is_worker = labels.get("training.kubeflow.org/replica-type", "").lower() == "worker"
        return int(index) + (1 if is_worker else 0)
