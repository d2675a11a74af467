"""Sections of the spec about pods: resources, environment, images, placement."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wrpo_engine.contract.types import ATOMIC
from wrpo_operator.api.base import ObjectName, Quantity, SpecModel, list_map
from wrpo_operator.api.stage_sections import per_section

IMAGE_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$"
LABEL_KEY_PATTERN = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
MOST_GIB, MOST_PER_NODE, MOST_NODES, MOST_NODE_LABELS = 4096, 64, 4096, 8
"""Bounds of descriptions of accelerators, in the spec and in the chart's values."""

TopologyLevel = Annotated[str, Field(min_length=1, max_length=316, pattern=LABEL_KEY_PATTERN)]


class Resources(SpecModel):
    """Compute resources of one pod, as in Kubernetes."""

    requests: dict[str, Quantity] = Field(default={}, max_length=16)
    """Amounts that a node must have available, e.g. cpu: 2, memory: 8Gi. Empty: no requests."""
    limits: dict[str, Quantity] = Field(default={}, max_length=16)
    """Maximum amounts for the pod, e.g. nvidia.com/gpu: 1. Empty: no limits."""


@per_section(Resources, lambda section: section.resources, default=Resources())
class StageResources(SpecModel):
    """Resources by kind of stage. They do not affect what is computed, so changing them re-runs nothing."""

    def of_section(self, section: str) -> Resources:
        """Return the resources of a section of the stages' definitions, whose names have no underscore."""
        found: Resources = getattr(self, section)
        return found


class Toleration(SpecModel):
    """A taint that the pods tolerate, as in Kubernetes."""

    key: str | None = Field(default=None, max_length=316)
    """Taint key. Unset: all keys; operator must then be Exists."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How key and value are compared."""
    value: str | None = Field(default=None, max_length=63)
    """Taint value, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect. Unset: all effects."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """How long a NoExecute taint is tolerated, in seconds. Unset: forever."""


class AcceleratorProfile(SpecModel):
    """Equal accelerators that the experiment may use."""

    resource: str = Field(default="nvidia.com/gpu", max_length=316, pattern=LABEL_KEY_PATTERN)
    """Name of the resource that pods request, e.g. nvidia.com/gpu, amd.com/gpu or nvidia.com/mig-3g.40gb."""
    memory_gib: Annotated[int, Field(ge=1, le=MOST_GIB)] = Field(alias="memoryGiB")
    """Memory of one accelerator in GiB."""
    per_node: int = Field(default=8, ge=1, le=MOST_PER_NODE)
    """Accelerators of one node: the most that one pod can get."""
    nodes: int | None = Field(default=None, ge=1, le=MOST_NODES)
    """Nodes that have them. Unset: unknown, e.g. because an autoscaler adds them."""
    product: str | None = Field(default=None, min_length=1, max_length=128)
    """Name of the product, e.g. NVIDIA-H100-80GB-HBM3. Unset: the name of the resource."""
    node_labels: dict[str, str] = Field(default={}, max_length=MOST_NODE_LABELS)
    """Labels of these nodes; the pods get them as node selector. Empty: none."""


class Scheduling(SpecModel):
    """Placement and admission of pods. Changing it re-runs nothing; running pods keep their settings."""

    queue_name: str | None = Field(default=None, max_length=63, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    """Kueue LocalQueue. Set: Kueue admits and suspends every child; the operator never does. Unset: no queue."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of all pods. Unset: the cluster's default."""
    scheduler_name: ObjectName | None = None
    """Scheduler of all pods. Unset: the cluster's default."""
    workload_priority_class_name: ObjectName | None = None
    """Kueue WorkloadPriorityClass of all children; needs queueName. Unset: the pods' priority."""
    required_topology: TopologyLevel | None = None
    """Node label, e.g. cloud.provider.com/topology-rack: Kueue places all pods of a child within one value of it."""
    preferred_topology: TopologyLevel | None = None
    """The same if capacity allows, else over as few values as possible."""
    gang: Literal["Required", "BestEffort"] = "Required"
    """Required: a stage of several training pods starts only where a queue or podGroup makes the cluster start all of
    them or none. BestEffort: anywhere; gangs may then wait for each other forever."""
    pod_group: Literal["Volcano", "SchedulerPlugins"] | None = None
    """Create a PodGroup of this kind for each training gang. Volcano sets schedulerName volcano unless another is
    named; SchedulerPlugins needs schedulerName."""
    max_gpus: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Accelerators that the stages of the experiment may request at the same time. Stages start as accelerators become
    free: the largest first, and of equal ones that for which the most work waits. Unset: no limit but what the cluster
    has."""
    node_selector: dict[str, str] = Field(default={}, max_length=32)
    """Labels that a node must have."""
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=32, json_schema_extra=ATOMIC)
    """Taints that the pods tolerate."""


class SecretKeyRef(SpecModel):
    """One key of a Secret in the experiment's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: str = Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")
    """Key in the Secret."""
    optional: bool = False
    """Start the pod even when the Secret or the key is missing."""


class EnvValueFrom(SpecModel):
    """Source of a variable's value."""

    secret_key_ref: SecretKeyRef
    """A Secret's key. The operator never reads it."""


class EnvVar(SpecModel):
    """An environment variable of all stages: exactly one of value and valueFrom."""

    name: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name, e.g. HF_TOKEN. Names that the stages use are refused: WRPO_..., PET_..., KUBEFLOW_...,
    JOB_COMPLETION_INDEX."""
    value: str | None = Field(default=None, max_length=4096)
    """Literal value. Use valueFrom for secrets: many users can read specs."""
    value_from: EnvValueFrom | None = None
    """Value from a Secret."""


class LocalObjectReference(SpecModel):
    """An object in the experiment's namespace."""

    name: ObjectName
    """Its name."""


class Images(SpecModel):
    """Container images. Unset: the operator's settings. Not part of any hash: changing them re-runs nothing."""

    sampler: str | None = Field(default=None, min_length=1, max_length=512, pattern=IMAGE_PATTERN)
    """Image of sampling and evaluation (vLLM)."""
    trainer: str | None = Field(default=None, min_length=1, max_length=512, pattern=IMAGE_PATTERN)
    """Image of all other stages."""


EnvList = tuple[EnvVar, ...]
PullSecrets = tuple[LocalObjectReference, ...]
ENV_LIST = list_map("name")
