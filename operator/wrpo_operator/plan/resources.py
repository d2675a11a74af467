"""Number and size of a stage's pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.hashing import digest
from wrpo_operator.api.pods import Resources
from wrpo_operator.api.resource_rules import gpus_per_node
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.model import StageNode
from wrpo_operator.plan.storage import binding_of


@dataclass(frozen=True, slots=True)
class Gang:
    """Pods of a training stage, which start and fail together."""

    nodes: int
    gpus_per_node: int

    @property
    def ranks_per_node(self) -> int:
        """Processes of one pod: one per GPU, or one on the CPU."""
        return max(1, self.gpus_per_node)


def gang_of(spec: ExperimentSpec, kind: str) -> Gang:
    """Return the gang of a training stage; `sft` may have a separate one."""
    own = spec.sft.nodes if kind == "sft" else None
    return Gang(spec.training.nodes if own is None else own, gpus_per_node(spec, kind))


def resources_of(spec: ExperimentSpec, node: StageNode) -> Resources:
    """Return requests and limits of one pod of a stage, the GPUs of a gang included."""
    resources = node.resources or spec.resources.of_section(STAGES[node.id.kind].section.name)
    if node.shape is not Shape.TRAINING:
        return resources
    return _with_gpus(resources, {spec.training.gpu_resource_name: gang_of(spec, node.id.kind).gpus_per_node})


def settings_of(spec: ExperimentSpec, node: StageNode) -> str:
    """Return the hash of settings that affect a stage's pods but not its results; each attempt records it."""
    shape: dict[str, Any] = {
        "resources": resources_of(spec, node).model_dump(mode="json"),
        "runtime": node.runtime.model_dump(mode="json"),
        "backend": spec.training.backend if node.shape is Shape.TRAINING else "",
        "gang": gang_of(spec, node.id.kind).nodes if node.shape is Shape.TRAINING else 0,
        "scheduling": spec.scheduling.model_dump(mode="json"),
        "images": spec.images.model_dump(mode="json"),
        "podTemplate": spec.pod_template,
        "env": [variable.model_dump(mode="json") for variable in spec.env],
        "pullSecrets": [secret.name for secret in spec.image_pull_secrets],
        "credentials": binding_of(spec.storage.chosen).credentials,
    }
    return digest(shape)


def _with_gpus(resources: Resources, gpus: dict[str, int]) -> Resources:
    if not any(gpus.values()):
        return resources
    return Resources(requests=resources.requests | gpus, limits=resources.limits | gpus)


def gpus_of(spec: ExperimentSpec, node: StageNode) -> int:
    """Return the total number of GPUs of a stage's pods."""
    limits = resources_of(spec, node).limits
    amount = str(limits.get(spec.training.gpu_resource_name, 0))
    pods = gang_of(spec, node.id.kind).nodes if node.shape is Shape.TRAINING else node.runtime.shards
    return pods * (int(amount) if amount.isdigit() else 0)
