"""Protocol of training backends; further facts about each are its entry in `api/backends.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from wrpo_operator.api.backends import BackendKind
from wrpo_operator.plan.model import Manifest, PlannedAttempt
from wrpo_operator.plan.resources import Gang, gang_of
from wrpo_operator.render.common import child_metadata
from wrpo_operator.render.pod import ChildRequest, pod_template
from wrpo_operator.render.podgroup import needs_pod_group, render_pod_group

FIRST_PORT = 20000
NUM_PORTS = 20000
COMPLETION_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@dataclass(frozen=True, slots=True)
class GangRequest(ChildRequest):
    """A planned attempt of a training stage, and the parts that all backends render equally."""

    @property
    def gang(self) -> Gang:
        """Number of pods and ranks."""
        return gang_of(self.spec, self.planned.node)

    @property
    def name(self) -> str:
        """Name of the child."""
        return self.planned.child_name

    def template(self, container: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the pod template; `extra` are fields of the stage's container."""
        return pod_template(self, container_name=container, container_extra=extra)

    def suspend(self) -> dict[str, bool]:
        """Return the suspend field; none with a queue, because Kueue owns it."""
        return {} if self.spec.scheduling.queue_name else {"suspend": self.planned.suspend}

    def child(
        self, facts: BackendKind, spec: dict[str, Any], *, described: dict[str, Any] | None = None
    ) -> tuple[Manifest, ...]:
        """Return the child of this spec, after its PodGroup if the operator creates one.

        `described` is the input of the template's hash, if it covers more than the spec.
        """
        metadata = child_metadata(self.experiment, self.planned, self.spec.scheduling, described or spec)
        child = {
            "apiVersion": facts.resource.api_version,
            "kind": facts.kind,
            "metadata": metadata,
            "spec": spec,
        }
        is_grouped = needs_pod_group(self.spec, self.planned)
        groups = (render_pod_group(self.experiment, self.spec, self.planned),) if is_grouped else ()
        return *groups, child


class TrainingBackend(Protocol):
    """Renders the child of a training stage. Its pods start torchrun, which reads the gang's shape from PET_...

    `facts.torchrun_variables` names the component that sets these variables: a controller, or `render` by
    `torchrun_variables`.
    """

    facts: BackendKind
    """The backend's entry."""

    def render(self, request: GangRequest) -> tuple[Manifest, ...]:
        """Return the objects in the order of application, the child last. The gang is never restarted in place."""
        ...

    def rank_of(self, labels: Mapping[str, str]) -> int | None:
        """Return the node rank in a pod's labels; None if it is the completion index of an Indexed Job."""
        ...


def master_port(planned: PlannedAttempt) -> int:
    """Return the gang's port, derived from stage hash and attempt to avoid conflicts of gangs on one host."""
    return FIRST_PORT + (int(planned.node.hash, 16) + planned.attempt) % NUM_PORTS


def torchrun_variables(gang: Gang, *, master: str, port: int) -> list[dict[str, Any]]:
    """Return the environment of every pod of a gang that is an Indexed Job; `master` is the host of the first pod."""
    values = {
        "PET_NNODES": str(gang.nodes),
        "PET_NPROC_PER_NODE": str(gang.ranks_per_node),
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": str(port),
    }
    rank = {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": COMPLETION_INDEX}}}
    return [*({"name": name, "value": value} for name, value in values.items()), rank]
