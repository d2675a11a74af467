"""PyTorchJob (kubeflow.org/v1): a master and workers; it succeeds when the master does.

Its operator sets PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR and PET_MASTER_PORT. It adds an init
container without a security context to workers; a namespace that enforces the restricted standard needs
an exemption or an operator started with another init container template.
"""

from __future__ import annotations

from collections.abc import Mapping

from wrpo_operator.api.backends import BACKENDS
from wrpo_operator.plan.model import Manifest
from wrpo_operator.render.training.base import GangRequest, master_port

PORT_NAME = "pytorchjob-port"


class PyTorchJobBackend:
    """Kubeflow's training operator v1: the default backend."""

    facts = BACKENDS["PyTorchJob"]

    def render(self, request: GangRequest) -> tuple[Manifest, ...]:
        """Return the PyTorchJob, after its PodGroup if it has one."""
        gang = request.gang
        port = {"name": PORT_NAME, "containerPort": master_port(request.planned), "protocol": "TCP"}
        template = request.template(self.facts.container, {"ports": [port]})
        replicas = {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}
        if gang.nodes > 1:
            replicas["Worker"] = {"replicas": gang.nodes - 1, "restartPolicy": "Never", "template": template}
        job = {
            "nprocPerNode": str(gang.ranks_per_node),
            # Finished pods are kept because of their logs and termination messages; peers of a crashed rank are not.
            "runPolicy": {"cleanPodPolicy": "Running", **request.suspend()},
            "pytorchReplicaSpecs": replicas,
        }
        return request.child(self.facts, job)

    def rank_of(self, labels: Mapping[str, str]) -> int | None:
        """Return the rank: the master is 0, workers follow."""
        index = labels.get("training.kubeflow.org/replica-index", "")
        if not index.isdecimal():
            return None
        is_worker = labels.get("training.kubeflow.org/replica-type", "").lower() == "worker"
        return int(index) + (1 if is_worker else 0)
