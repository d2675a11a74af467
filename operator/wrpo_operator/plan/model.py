"""What the planner reads and what it answers: frozen values, no Kubernetes dictionaries, no I/O.

`runtime` turns watched objects into a `Snapshot`, calls `plan(snapshot, now)`, and carries out the `Plan`;
`render` turns a `PlannedAttempt` into manifests. Neither decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from wrpo_engine.config import Runtime, StageParams, TerminationMessage
from wrpo_engine.contract.definition import Shape
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.pods import Resources
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import ExperimentStatus


@dataclass(frozen=True, slots=True, order=True)
class StageId:
    """`sample/qwen` is StageId("sample", "qwen"); `train` is StageId("train")."""

    kind: str
    """Key of wrpo_engine.contract.stages.STAGES."""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class StageNode:
    """One stage of an experiment's graph, with everything its hash is made of."""

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
    """In place of those of the spec's section for its kind. Not hashed."""


class ChildState(StrEnum):
    """What a child is doing, whatever its kind."""

    PENDING = "Pending"
    """Created; no pod runs yet."""
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    DELETING = "Deleting"


class FailureKind(StrEnum):
    """Who is to blame for a failed attempt."""

    APPLICATION = "Application"
    CONFIG = "Config"
    """A final exit code: a retry cannot help."""
    DISRUPTION = "Disruption"
    """Preemption, eviction, node loss: uses up no attempt."""


@dataclass(frozen=True, slots=True)
class PodFact:
    """What one pod says, as far as decisions and explanations need it."""

    name: str
    phase: str
    node: str | None = None
    index: int | None = None
    """Completion index or rank."""
    exit_code: int | None = None
    termination: TerminationMessage | None = None
    """Parsed termination message of the stage's container; None when there is none or it is not ours."""
    termination_text: str = ""
    """Raw tail of it when it could not be parsed."""
    disrupted: bool = False
    """Whether the cluster took it: preemption, eviction for the node's sake, node loss."""
    over_limit: str = ""
    """The kubelet's words if it evicted the pod for using more than the pod's own limits allow."""
    waiting_reason: str = ""
    """E.g. ImagePullBackOff, CreateContainerConfigError, CrashLoopBackOff."""
    waiting_message: str = ""
    unschedulable_message: str = ""
    """The scheduler's words."""
    scheduler: str = ""
    """The scheduler that it waits for; only of a pod that none has looked at."""
    gates: tuple[str, ...] = ()
    """Scheduling gates that it waits for."""
    claims: tuple[str, ...] = ()
    """Resource claims that it needs; only of a pod that no scheduler has looked at."""
    terminating_since: datetime | None = None
    """When its grace period will be, or was, over."""
    finished_at: datetime | None = None
    terminated_reason: str = ""
    """The kubelet's word for how the container ended, e.g. OOMKilled."""
    init_since: datetime | None = None
    """Since when an init container has been running."""
    created_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether all of its containers have ended for good."""
        return self.phase in {"Succeeded", "Failed"}


@dataclass(frozen=True, slots=True)
class Note:
    """What some object of the cluster says about a child that does not run."""

    object: str
    """E.g. Workload/NAME."""
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the API server refuses to an experiment, and what the user is told of it."""

    object: str
    """E.g. Job/NAME; empty while it may be a passing error, of which nobody is told."""
    reason: Reason
    message: str
    is_final: bool = False
    """Whether no waiting will change it: the spec has to be edited."""


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
    """Kueue queue that the child was given to."""
    namespace: str = ""


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
    """One WRPOExperiment as read."""

    name: str
    namespace: str
    uid: str
    generation: int
    deleting: bool
    created_at: datetime
    spec: ExperimentSpec | None
    """None when the stored spec does not parse; then `spec_errors` says why."""
    status: ExperimentStatus
    spec_errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster as the operator saw it at one moment."""

    experiment: Experiment
    children: tuple[ChildFact, ...] = ()
    """Children of this experiment (by uid), whatever their stage hash."""
    foreign: tuple[ChildFact, ...] = ()
    """Live children of other experiments in the namespace; their artifact_key may equal one of ours."""
    pods: Mapping[str, tuple[PodFact, ...]] = field(default_factory=dict)
    """Artifact key -> pods of any experiment that were made for it and have not ended, whether or not their child still
    exists: a child that is deleted goes at once, its pods take their time."""
    training_backends: frozenset[str] = frozenset({"PyTorchJob"})
    """Training backends whose CRD is installed."""
    progress: Mapping[tuple[str, int], tuple[ProgressFact, ...]] = field(default_factory=dict)
    """(stage, attempt) -> last post of each shard."""
    missing_objects: tuple[tuple[str, str], ...] = ()
    """(kind, name) of claims that the spec refers to and that do not exist."""
    notes: Mapping[str, tuple[Note, ...]] = field(default_factory=dict)
    """uid of a waiting child -> what the cluster says about it."""
    pending_claims: tuple[tuple[str, str], ...] = ()
    """(name, storage class) of claims that the spec refers to and that are not bound yet."""
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    """Stage -> why its next attempt is not applied now; the empty string for what concerns no single stage."""


@dataclass(frozen=True, slots=True)
class PlannedAttempt:
    """Create attempt `attempt` of `node`; applying it twice is harmless, for its name is made of its content."""

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
    """What to do now. Applying it and planning again yields a plan with nothing to apply."""

    apply: tuple[PlannedAttempt, ...] = ()
    suspend: tuple[SetSuspend, ...] = ()
    delete: tuple[DeleteChild, ...] = ()
    status: ExperimentStatus | None = None
    """The whole status to write; equal to the snapshot's means no write."""
    events: tuple[PlannedEvent, ...] = ()
    requeue_after_s: float | None = None
    """Plan again after this many seconds even if nothing changes; None: only on change."""


Manifest = dict[str, Any]
