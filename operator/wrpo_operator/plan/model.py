"""Input and output of the planner: frozen values, no Kubernetes dictionaries, no I/O.

`runtime` converts watched objects to a `Snapshot`, calls `plan(snapshot, now)`, and applies the `Plan`;
`render` converts a `PlannedAttempt` to manifests. Neither decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from wrpo_engine.config import Runtime, StageParams, TerminationMessage
from wrpo_engine.contract.definition import Image, Shape
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.placement import Placement
from wrpo_operator.api.pods import Resources, SecretKeyRef
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import ExperimentStatus, StageStatus
from wrpo_operator.sizing.inventory import Inventory


@dataclass(frozen=True, slots=True, order=True)
class StageId:
    """Name of a stage: `sample/qwen` is StageId("sample", "qwen"); `train` is StageId("train")."""

    kind: str
    """Key of wrpo_engine.contract.stages.STAGES."""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" if self.name else self.kind


class Work(StrEnum):
    """What a stage does with a model, which decides how much room the model needs."""

    GENERATION = "Generation"
    SCORING = "Scoring"
    TRAINING = "Training"


@dataclass(frozen=True, slots=True)
class Need:
    """A model that a stage runs on accelerators that the operator chooses."""

    work: Work
    facts: StageId
    """The stage whose result has the facts about the model."""


@dataclass(frozen=True, slots=True)
class StageNode:
    """One stage of an experiment's graph, with everything that its hash covers."""

    id: StageId
    shape: Shape
    params: StageParams
    inputs: Mapping[str, StageId]
    """Role (see wrpo_engine.contract.stage_config) -> upstream stage."""
    hash: str
    """16 hex digits: artifact address `<storage>/<id>/<hash>`."""
    runtime: Runtime
    """Not hashed."""
    resources: Resources | None = None
    """Replace those of the spec's section for its kind. Not hashed."""
    after: tuple[StageId, ...] = ()
    """Stages that must have succeeded before it starts although it reads none of their artifacts. Not hashed."""
    needs: tuple[Need, ...] = ()
    """Models for which the operator chooses accelerators; empty if the spec sizes the stage, or it needs none."""
    image: Image | None = None
    """Replaces the image of its definition. Not hashed."""
    secrets: Mapping[str, SecretKeyRef] = field(default_factory=dict)
    """Variable of its pods -> key of a Secret. Not hashed."""
    placement: Placement | None = None
    """Accelerators of its pods, applied to its other fields. None: as the spec says. Not hashed."""
    facts: ModelFacts | None = None
    """Facts about its first model, as far as they are known when it starts. Not hashed."""

    @property
    def upstream(self) -> tuple[StageId, ...]:
        """Return the stages that must have succeeded before it starts."""
        return (*self.inputs.values(), *self.after)


class ChildState(StrEnum):
    """State of a child of any kind."""

    PENDING = "Pending"
    """Created; no pod runs yet."""
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    DELETING = "Deleting"


class FailureKind(StrEnum):
    """Cause of a failed attempt."""

    APPLICATION = "Application"
    CONFIG = "Config"
    """A final exit code: a retry cannot help."""
    DISRUPTION = "Disruption"
    """Preemption, eviction, node loss: uses up no retry."""


@dataclass(frozen=True, slots=True)
class PodFact:
    """Facts about one pod that decisions and messages need."""

    name: str
    phase: str
    node: str | None = None
    index: int | None = None
    """Completion index or rank."""
    exit_code: int | None = None
    termination: TerminationMessage | None = None
    """Parsed termination message of the stage's container; None if there is none or another program wrote it."""
    termination_text: str = ""
    """Its raw tail if it could not be parsed."""
    disrupted: bool = False
    """Whether the cluster terminated it: preemption, eviction because of node pressure, node loss."""
    over_limit: str = ""
    """The kubelet's message if it evicted the pod because the pod exceeded its own limits."""
    waiting_reason: str = ""
    """E.g. ImagePullBackOff, CreateContainerConfigError, CrashLoopBackOff."""
    waiting_message: str = ""
    unschedulable_message: str = ""
    """The scheduler's message."""
    scheduler: str = ""
    """The scheduler that it waits for; set only for a pod that no scheduler has processed."""
    gates: tuple[str, ...] = ()
    """Scheduling gates that it waits for."""
    claims: tuple[str, ...] = ()
    """Resource claims that it needs; set only for a pod that no scheduler has processed."""
    terminating_since: datetime | None = None
    """End of its grace period."""
    finished_at: datetime | None = None
    terminated_reason: str = ""
    """The kubelet's reason for the end of the container, e.g. OOMKilled."""
    init_since: datetime | None = None
    """Since when an init container has been running."""
    created_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether all of its containers have terminated and none restarts."""
        return self.phase in {"Succeeded", "Failed"}


@dataclass(frozen=True, slots=True)
class Note:
    """A message of the cluster about a child that does not run."""

    object: str
    """E.g. Workload/NAME."""
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request for an experiment that the API server refuses, and its message for the user."""

    object: str
    """E.g. Job/NAME; empty while the error may be transient, which is not reported."""
    reason: Reason
    message: str
    is_final: bool = False
    """Whether only an edit of the spec can resolve it."""


@dataclass(frozen=True, slots=True)
class ChildFact:
    """A Job or training resource of this operator (of this experiment, or of another sharing an artifact)."""

    kind: str
    name: str
    uid: str
    experiment: str
    """Name of the owning experiment; its uid is `experiment_uid`."""
    experiment_uid: str
    stage: str
    """str(StageId)"""
    stage_hash: str
    artifact_key: str
    """Hash of storage and stage hash: equal for two experiments that would write the same artifact."""
    attempt: int
    state: ChildState
    suspended: bool
    """spec.suspend (Job) or runPolicy.suspend, as it is now."""
    created_at: datetime | None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    succeeded_shards: int = 0
    failed_reason: str = ""
    """Reason of the child's Failed condition, e.g. PodFailurePolicy, DeadlineExceeded."""
    failed_message: str = ""
    pods: tuple[PodFact, ...] = ()
    queue: str = ""
    """Kueue queue of the child."""
    namespace: str = ""
    placement: Placement | None = None
    """Accelerators of its pods, as recorded when it was created; None if it has none."""


@dataclass(frozen=True, slots=True)
class ProgressFact:
    """The last progress post of a stage's pod. A hint: never decides anything."""

    percent: float
    remaining_s: float | None
    metrics: Mapping[str, float]
    received_at: datetime
    shard: int = 0
    advanced_at: datetime | None = None
    """When the percentage last rose."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One WRPOExperiment."""

    name: str
    namespace: str
    uid: str
    generation: int
    deleting: bool
    created_at: datetime
    spec: ExperimentSpec | None
    """None if the stored spec does not parse; `spec_errors` then holds the errors."""
    status: ExperimentStatus
    spec_errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Observed state of the cluster at one moment."""

    experiment: Experiment
    children: tuple[ChildFact, ...] = ()
    """Children of this experiment (by uid), with any stage hash."""
    foreign: tuple[ChildFact, ...] = ()
    """Live children of other experiments in the namespace; their artifact_key may equal one of this experiment. Also
    children of the same sweep that have succeeded while their experiment has not recorded it: it soon does."""
    shared: Mapping[tuple[str, str], StageStatus] = field(default_factory=dict)
    """(stage, hash) -> record of a stage that another experiment of the same sweep has finished in the same storage."""
    pods: Mapping[str, tuple[PodFact, ...]] = field(default_factory=dict)
    """Artifact key -> pods of any experiment that were created for it and have not ended. Their child may be deleted
    already: deletion removes a child immediately, but its pods use their grace period."""
    training_backends: frozenset[str] = frozenset({"PyTorchJob"})
    """Training backends whose CRD is installed."""
    progress: Mapping[tuple[str, int], tuple[ProgressFact, ...]] = field(default_factory=dict)
    """(stage, attempt) -> last post of each shard."""
    missing_objects: tuple[tuple[str, str], ...] = ()
    """(kind, name) of claims that the spec refers to and that do not exist."""
    notes: Mapping[str, tuple[Note, ...]] = field(default_factory=dict)
    """uid of a waiting child -> messages of the cluster about it."""
    pending_claims: tuple[tuple[str, str], ...] = ()
    """(name, storage class) of claims that the spec refers to and that are not bound yet."""
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    """Stage -> why its next attempt is not applied now; the key is empty for refusals that concern no single stage."""
    accelerators: Inventory | None = None
    """Accelerators that the experiment may use. None: unknown, so that nothing is chosen and stages are as the spec
    says."""


@dataclass(frozen=True, slots=True)
class PlannedAttempt:
    """Create attempt `attempt` of `node`; applying it twice is harmless because its name is derived from its
    content.
    """

    node: StageNode
    attempt: int
    child_name: str
    artifact_key: str
    input_hashes: Mapping[str, str]
    """Role -> stage hash of the upstream artifact."""
    suspend: bool = False


@dataclass(frozen=True, slots=True)
class SetSuspend:
    """Set or clear a live child's suspend field."""

    kind: str
    name: str
    suspend: bool


@dataclass(frozen=True, slots=True)
class DeleteChild:
    """Delete a child (propagation Background), with the reason for the log."""

    kind: str
    name: str
    uid: str
    reason: str


@dataclass(frozen=True, slots=True)
class PlannedEvent:
    """A Kubernetes Event about the experiment."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions to take now. After applying them, planning yields a plan without actions."""

    apply: tuple[PlannedAttempt, ...] = ()
    suspend: tuple[SetSuspend, ...] = ()
    delete: tuple[DeleteChild, ...] = ()
    status: ExperimentStatus | None = None
    """The whole status to write; equal to the snapshot's means no write."""
    events: tuple[PlannedEvent, ...] = ()
    requeue_after_s: float | None = None
    """Plan again after this many seconds even if nothing changes; None: only on change."""


Manifest = dict[str, Any]
