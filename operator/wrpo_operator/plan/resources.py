"""Number and size of a stage's pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.hashing import digest
from wrpo_operator.api.placement import Placement
from wrpo_operator.api.pod_template import STAGE_CONTAINER
from wrpo_operator.api.pods import Resources
from wrpo_operator.api.resource_rules import accelerators_in, gpu_resource_name, gpus_per_node, is_accelerator
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


def gang_of(spec: ExperimentSpec, node: StageNode) -> Gang:
    """Return the gang of a training stage; `sft` may have a separate one."""
    nodes = asked_nodes(spec, node.id.kind)
    if node.placement is not None:
        return Gang(nodes or node.placement.pods, node.placement.per_pod)
    return Gang(nodes or 1, gpus_per_node(spec, node.id.kind) or 0)


def asked_nodes(spec: ExperimentSpec, kind: str) -> int | None:
    """Return the pods of a training stage that the spec sets; None if it sets none."""
    own = spec.sft.nodes if STAGES[kind].section.name == "sft" else None
    return spec.training.nodes if own is None else own


def pods_of(spec: ExperimentSpec, node: StageNode) -> int:
    """Return the number of pods of a stage that run at the same time."""
    match node.shape:
        case Shape.TRAINING:
            return gang_of(spec, node).nodes
        case Shape.INDEXED_JOB:
            return node.runtime.shards
        case Shape.JOB:
            return 1


def is_sized(spec: ExperimentSpec, kind: str, resources: Resources | None = None) -> bool:
    """Return whether the spec says how many accelerators the pods of a kind of stage get, 0 included.

    `resources` replace those of the section for the kind. A template that requests devices sizes all stages.
    """
    definition = STAGES[kind]
    if definition.shape is Shape.TRAINING and gpus_per_node(spec, kind) is not None:
        return True
    own = resources or spec.resources.of_section(definition.section.name)
    return bool(accelerators_in(own) or devices_in(spec.pod_template))


def devices_in(template: dict[str, Any]) -> dict[str, str]:
    """Return the accelerators of the stage's container in a pod template, by resource, and the pod's resource claims.

    Values of another form than the API server's are ignored, because it refuses them.
    """
    pod = _section(template.get("spec"))
    containers = pod.get("containers")
    own = [_section(entry) for entry in containers] if isinstance(containers, list) else []
    named = next((entry for entry in own if entry.get("name") == STAGE_CONTAINER), {})
    limits = _section(_section(named.get("resources")).get("limits"))
    claims = pod.get("resourceClaims")
    claimed = {str(_section(entry).get("name")): "1" for entry in claims} if isinstance(claims, list) else {}
    return claimed | {name: str(count) for name, count in limits.items() if is_accelerator(name)}


def _section(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def resources_of(spec: ExperimentSpec, node: StageNode) -> Resources:
    """Return requests and limits of one pod of a stage, those of its placement or gang included.

    0 accelerators are left out. A placement adds the memory and the local disk that the spec does not set.
    """
    resources = _own_resources(spec, node)
    if node.placement is not None:
        resources = _with_memory(resources, node.placement)
    return _without_zeros(_with_devices(resources, _chosen_devices(spec, node)))


def devices_of(spec: ExperimentSpec, node: StageNode) -> dict[str, int]:
    """Return the accelerators of one pod of a stage by resource, as `resources_of` has them.

    Every plan asks for those of all stages, and needs nothing else of their resources.
    """
    found = accelerators_in(_own_resources(spec, node))
    chosen = _chosen_devices(spec, node)
    if any(chosen.values()):
        found |= {name: count for name, count in chosen.items() if is_accelerator(name)}
    return {name: count for name, count in found.items() if count}


def _own_resources(spec: ExperimentSpec, node: StageNode) -> Resources:
    return node.resources or spec.resources.of_section(STAGES[node.id.kind].section.name)


def _chosen_devices(spec: ExperimentSpec, node: StageNode) -> dict[str, int]:
    """Return the accelerators of the placement or of the gang, which come on top of the stage's resources."""
    if node.placement is not None:
        return {node.placement.resource: node.placement.per_pod} if node.placement.resource else {}
    if node.shape is Shape.TRAINING:
        return {gpu_resource_name(spec): gang_of(spec, node).gpus_per_node}
    return {}


def settings_of(spec: ExperimentSpec, node: StageNode) -> str:
    """Return the hash of settings that affect a stage's pods but not its results; each attempt records it.

    A placed stage has those of its placement.
    """
    shape: dict[str, Any] = {
        "resources": resources_of(spec, node).model_dump(mode="json"),
        "runtime": node.runtime.model_dump(mode="json"),
        "backend": spec.training.backend if node.shape is Shape.TRAINING else "",
        "gang": gang_of(spec, node).nodes if node.shape is Shape.TRAINING else 0,
        # The limit decides when a stage starts, not how its pods look.
        "scheduling": spec.scheduling.model_dump(mode="json", exclude={"max_gpus"}),
        "images": spec.images.model_dump(mode="json"),
        "podTemplate": spec.pod_template,
        "env": [variable.model_dump(mode="json") for variable in spec.env],
        "pullSecrets": [secret.name for secret in spec.image_pull_secrets],
        "credentials": binding_of(spec.storage.chosen).credentials,
    }
    if node.placement is not None:
        shape["nodes"] = node.placement.node_labels
    if node.secrets:
        shape["secrets"] = {name: key.model_dump(mode="json") for name, key in node.secrets.items()}
    return digest(shape)


def gpus_of(spec: ExperimentSpec, node: StageNode) -> int:
    """Return the total number of accelerators of a stage's pods."""
    return pods_of(spec, node) * sum(devices_of(spec, node).values())


def _with_memory(resources: Resources, placement: Placement) -> Resources:
    amounts = {"memory": placement.memory_gib, "ephemeral-storage": placement.ephemeral_storage_gib}
    requests: dict[str, int | str] = {
        name: f"{gib}Gi"
        for name, gib in amounts.items()
        if gib is not None and name not in resources.requests and name not in resources.limits
    }
    return resources.model_copy(update={"requests": requests | resources.requests})


def _with_devices(resources: Resources, devices: dict[str, int]) -> Resources:
    if not any(devices.values()):
        return resources
    more = {"requests": resources.requests | devices, "limits": resources.limits | devices}
    return resources.model_copy(update=more)


def _without_zeros(resources: Resources) -> Resources:
    zeros = {name for name, count in accelerators_in(resources).items() if count == 0}
    if not zeros:
        return resources
    kept = {
        "requests": {name: amount for name, amount in resources.requests.items() if name not in zeros},
        "limits": {name: amount for name, amount in resources.limits.items() if name not in zeros},
    }
    return resources.model_copy(update=kept)
