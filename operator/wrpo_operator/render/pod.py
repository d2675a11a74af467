"""Pod template of all stages: restricted, without API token, with the config and the storage mounted."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from wrpo_engine.contract.definition import Image, Shape
from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api import names
from wrpo_operator.api.pod_template import STAGE_CONTAINER
from wrpo_operator.api.pods import EnvVar, SecretKeyRef
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.evaluation import REWARD_API_KEY
from wrpo_operator.plan.model import Experiment, PlannedAttempt, StageNode
from wrpo_operator.plan.resources import devices_in, gpus_of, resources_of
from wrpo_operator.plan.storage import SCRATCH, binding_of
from wrpo_operator.render.common import CONFIG_FILE, PROGRESS_CA_FILE, labels
from wrpo_operator.render.grace import grace_of
from wrpo_operator.render.merge import strategic_merge
from wrpo_operator.render.podgroup import needs_pod_group
from wrpo_operator.render.settings import RenderSettings
from wrpo_operator.sizing.resource_names import implied_tolerations

CONFIG_DIRECTORY = "/etc/wrpo"
CONFIG_PATH = f"{CONFIG_DIRECTORY}/{CONFIG_FILE}"
TERMINATION_MESSAGE = "/dev/termination-log"
SHARED_MEMORY = "/dev/shm"  # noqa: S108 -- an emptyDir of the pod
TOKEN_DIRECTORY = "/var/run/secrets/wrpo.ai/progress"  # noqa: S105 -- a mount point
TOKEN_LIFETIME_S = 3600
NO_DEVICES = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
"""CUDA images ask for all devices of a node. Where the container runtime grants that, a pod that requests none would
use those of other pods."""

CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


@dataclass(frozen=True, slots=True)
class ChildRequest:
    """A planned attempt, and what its child is rendered from."""

    experiment: Experiment
    spec: ExperimentSpec
    planned: PlannedAttempt
    settings: RenderSettings
    config_name: str
    """Name of the ConfigMap that holds the stage's configuration."""


def pod_template(
    request: ChildRequest, *, container_name: str = STAGE_CONTAINER, container_extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the template merged with spec.podTemplate, where the stage's container is always `stage`."""
    experiment, spec, planned, settings = request.experiment, request.spec, request.planned, request.settings
    container = _container(experiment, spec, planned, settings) | (container_extra or {})
    base = {
        "metadata": _metadata(experiment, spec, planned),
        "spec": _pod(spec, planned, settings, request.config_name) | {"containers": [container]},
    }
    template: dict[str, Any] = strategic_merge(base, spec.pod_template)
    _hide_devices(template)
    _tolerate_devices(template)
    for init in template["spec"].get("initContainers", []):
        init["securityContext"] = CONTAINER_SECURITY | init.get("securityContext", {})
    template["spec"]["containers"][0]["name"] = container_name
    return template


def _hide_devices(template: dict[str, Any]) -> None:
    """Hide the node's devices from a stage that requests none, unless its environment says which it sees."""
    if any(count != "0" for count in devices_in(template).values()):
        return
    environment = template["spec"]["containers"][0]["env"]
    if all(entry["name"] != NO_DEVICES["name"] for entry in environment):
        environment.append(dict(NO_DEVICES))


def _tolerate_devices(template: dict[str, Any]) -> None:
    """Tolerate the taints that keep pods without accelerators away from the nodes of the requested ones."""
    devices = [name for name, count in devices_in(template).items() if count != "0" and "/" in name]
    keys = dict.fromkeys(key for name in devices for key in implied_tolerations(name))
    given = list(template["spec"].get("tolerations") or ())
    added = [toleration for key in keys if (toleration := {"key": key, "operator": "Exists"}) not in given]
    if added:
        template["spec"]["tolerations"] = given + added


def _metadata(experiment: Experiment, spec: ExperimentSpec, planned: PlannedAttempt) -> dict[str, Any]:
    """Return labels, and the annotations by which Kueue and gang schedulers place the pods of a child together."""
    metadata: dict[str, Any] = {"labels": labels(experiment, planned)}
    if planned.node.runtime.judge_endpoint is not None:
        metadata["labels"][names.LABEL_EGRESS] = "judge"
    scheduling, annotations = spec.scheduling, {}
    if scheduling.required_topology:
        annotations[names.ANNOTATION_REQUIRED_TOPOLOGY] = scheduling.required_topology
    if scheduling.preferred_topology:
        annotations[names.ANNOTATION_PREFERRED_TOPOLOGY] = scheduling.preferred_topology
    if needs_pod_group(spec, planned) and scheduling.pod_group == "Volcano":
        annotations[names.ANNOTATION_VOLCANO_GROUP] = planned.child_name
    if needs_pod_group(spec, planned) and scheduling.pod_group == "SchedulerPlugins":
        metadata["labels"][names.LABEL_POD_GROUP] = planned.child_name
    if annotations:
        metadata["annotations"] = annotations
    return metadata


def image_of(spec: ExperimentSpec, node: StageNode, settings: RenderSettings) -> str:
    """Return a stage's image: that of a stand-in, the spec, or the installation."""
    kind = node.id.kind
    stand_in = settings.commands.get(kind)
    if stand_in is not None and stand_in.image:
        return stand_in.image
    match node.image or STAGES[kind].image:
        case Image.SAMPLER:
            return spec.images.sampler or settings.sampler_image
        case Image.TRAINER:
            return spec.images.trainer or settings.trainer_image


def command_of(planned: PlannedAttempt, settings: RenderSettings) -> list[str]:
    """Return a stage's command. The launcher wraps torchrun, keeps the stage's exit code and allows time for a
    checkpoint; it reads the gang's shape from PET_... variables.
    """
    kind = planned.node.id.kind
    stand_in = settings.commands.get(kind)
    if stand_in is not None:
        return list(stand_in.command)
    if planned.node.shape is Shape.TRAINING:
        return ["python", "-m", "wrpo_engine.training.launch", kind, "--config", CONFIG_PATH]
    return ["wrpo-engine", kind, "--config", CONFIG_PATH]


def _container(
    experiment: Experiment, spec: ExperimentSpec, planned: PlannedAttempt, settings: RenderSettings
) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": STAGE_CONTAINER,
        "image": image_of(spec, planned.node, settings),
        "command": command_of(planned, settings),
        "env": _environment(experiment, spec, planned, settings),
        "terminationMessagePath": TERMINATION_MESSAGE,
        "terminationMessagePolicy": "File",
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": _mounts(spec, settings),
    }
    if settings.image_pull_policy:
        container["imagePullPolicy"] = settings.image_pull_policy
    resources = resources_of(spec, planned.node)
    amounts = {
        side: {name: str(amount) for name, amount in values.items()}
        for side, values in (("requests", resources.requests), ("limits", resources.limits))
        if values
    }
    if amounts:
        container["resources"] = amounts
    if sources := binding_of(spec.storage.chosen).env_from:
        container["envFrom"] = deepcopy(list(sources))
    return container


def _environment(
    experiment: Experiment, spec: ExperimentSpec, planned: PlannedAttempt, settings: RenderSettings
) -> list[dict[str, Any]]:
    # Libraries build paths from the name of the user, which the images need not have an entry for.
    own = {"HOME": SCRATCH, "USER": "wrpo", "WRPO_TERMINATION_MESSAGE_PATH": TERMINATION_MESSAGE}
    own.update(binding_of(spec.storage.chosen).environment)
    if settings.progress_url:
        stage = str(planned.node.id).replace("/", ".")
        own["KUBEFLOW_TRAINER_SERVER_URL"] = (
            f"{settings.progress_url.rstrip('/')}/v1/namespaces/{experiment.namespace}/experiments/{experiment.name}"
            f"/stages/{stage}/attempts/{planned.attempt}"
        )
        own["KUBEFLOW_TRAINER_SERVER_TOKEN"] = f"{TOKEN_DIRECTORY}/token"
        if settings.progress_ca:
            own["KUBEFLOW_TRAINER_SERVER_CA_CERT"] = f"{CONFIG_DIRECTORY}/{PROGRESS_CA_FILE}"
    entries = {name: {"name": name, "value": value} for name, value in {**own, **settings.extra_env}.items()}
    for variable in spec.env:
        entries[variable.name] = _variable(variable)
    if spec.reward.api_key_secret_ref is not None and STAGES[planned.node.id.kind].uses_reward:
        entries[REWARD_API_KEY] = _secret_variable(REWARD_API_KEY, spec.reward.api_key_secret_ref)
    entries |= {name: _secret_variable(name, key) for name, key in planned.node.secrets.items()}
    return list(entries.values())


def _variable(variable: EnvVar) -> dict[str, Any]:
    if variable.value_from is None:
        return {"name": variable.name, "value": variable.value or ""}
    return _secret_variable(variable.name, variable.value_from.secret_key_ref)


def _secret_variable(name: str, key: SecretKeyRef) -> dict[str, Any]:
    reference: dict[str, Any] = {"name": key.name, "key": key.key}
    if key.optional:
        reference["optional"] = True
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def _mounts(spec: ExperimentSpec, settings: RenderSettings) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "wrpo-config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
        {"name": "wrpo-tmp", "mountPath": SCRATCH},
        {"name": "wrpo-shm", "mountPath": SHARED_MEMORY},
    ]
    mounts += deepcopy(binding_of(spec.storage.chosen).mounts)
    if settings.progress_url:
        mounts.append({"name": "wrpo-progress-token", "mountPath": TOKEN_DIRECTORY, "readOnly": True})
    return mounts


def _volumes(
    spec: ExperimentSpec, planned: PlannedAttempt, settings: RenderSettings, config_name: str
) -> list[dict[str, Any]]:
    shared: dict[str, Any] = {"medium": "Memory"}
    if planned.node.placement is not None and planned.node.placement.shared_memory_gib is not None:
        shared["sizeLimit"] = f"{planned.node.placement.shared_memory_gib}Gi"
    volumes: list[dict[str, Any]] = [
        {"name": "wrpo-config", "configMap": {"name": config_name}},
        {"name": "wrpo-tmp", "emptyDir": {}},
        {"name": "wrpo-shm", "emptyDir": shared},
    ]
    volumes += deepcopy(binding_of(spec.storage.chosen).volumes)
    if settings.progress_url:
        token = {
            "audience": settings.progress_audience,
            "expirationSeconds": TOKEN_LIFETIME_S,
            "path": "token",
        }
        volumes.append({"name": "wrpo-progress-token", "projected": {"sources": [{"serviceAccountToken": token}]}})
    return volumes


def _pod(spec: ExperimentSpec, planned: PlannedAttempt, settings: RenderSettings, config_name: str) -> dict[str, Any]:
    user = settings.run_as_user
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_of(planned.node, gpus_of(spec, planned.node)),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": _volumes(spec, planned, settings, config_name),
    }
    secrets = (*settings.image_pull_secrets, *(secret.name for secret in spec.image_pull_secrets))
    if secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in dict.fromkeys(secrets)]
    return pod | _placement(spec, planned)


def _placement(spec: ExperimentSpec, planned: PlannedAttempt) -> dict[str, Any]:
    scheduling = spec.scheduling
    by_group = "volcano" if scheduling.pod_group == "Volcano" and needs_pod_group(spec, planned) else None
    chosen = planned.node.placement
    placement: dict[str, Any] = {
        "nodeSelector": (chosen.node_labels if chosen is not None else {}) | scheduling.node_selector,
        "tolerations": [
            toleration.model_dump(mode="json", by_alias=True, exclude_none=True)
            for toleration in scheduling.tolerations
        ],
        "priorityClassName": scheduling.priority_class_name,
        "schedulerName": scheduling.scheduler_name or by_group,
    }
    return {key: value for key, value in placement.items() if value}
