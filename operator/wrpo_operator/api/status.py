"""Fields of a WRPOExperiment's status, for users and as the planner's memory between reconciliations."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from wrpo_engine.config import REWARD_DIVERGENCE
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.contract.types import ATOMIC
from wrpo_operator.api.base import TIME, StatusModel, list_map
from wrpo_operator.api.placement import Placement

MAX_ATTEMPTS = 5
"""Bounds keep the largest status (32 sources, all stages retried) below the size that etcd takes."""
MAX_ATTEMPT_MESSAGE = 1024
MAX_BLOCKERS = 16
MAX_METRICS = 64
MAX_STAGES = 512
MAX_MESSAGE = 4096


class Phase(StrEnum):
    """The experiment in one word, for printing. Programs read conditions."""

    PENDING = "Pending"
    """Nothing has started yet."""
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    INVALID = "Invalid"
    """The spec cannot be accepted."""


FINISHED = frozenset({Phase.SUCCEEDED, Phase.FAILED})
"""Phases in which no stage runs or will run without an edit."""


class StageState(StrEnum):
    """State of a stage."""

    PENDING = "Pending"
    """Its inputs do not exist yet."""
    WAITING = "Waiting"
    """Only a blocker or the backoff of a retry keeps it from starting."""
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SKIPPED = "Skipped"
    """It does not run because an earlier stage failed."""


class AttemptState(StrEnum):
    """State of one attempt."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    DISRUPTED = "Disrupted"
    """Terminated by the cluster; used up no retry."""
    STOPPED = "Stopped"
    """Terminated by the operator (suspension, an edit, another stage's failure); used up no retry."""


def to_time(moment: datetime) -> str:
    """Format a moment as Kubernetes does: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_time(text: str) -> datetime:
    """Parse a time that `to_time` formatted."""
    return datetime.fromisoformat(text)


class Condition(StatusModel):
    """A metav1.Condition."""

    type: str = Field(max_length=63)
    """Accepted, Progressing, Blocked, Suspended, Succeeded, Failed, SourcesDegraded or Warned."""
    status: str = Field(pattern="^(True|False|Unknown)$", max_length=7)
    """True, False or Unknown."""
    observed_generation: int = Field(default=0, ge=0)
    """Generation of the spec that the condition describes."""
    last_transition_time: str = Field(max_length=64, json_schema_extra=TIME)
    """When status last changed."""
    reason: str = Field(max_length=128)
    """CamelCase word for programs."""
    message: str = Field(default="", max_length=MAX_MESSAGE)
    """Explanation for users."""


class Attempt(StatusModel):
    """One attempt of a stage."""

    number: int = Field(ge=1)
    """1 for the first."""
    child: str = Field(max_length=253)
    """Name of the Job or training resource."""
    state: AttemptState
    """State of the attempt."""
    settings: str | None = Field(default=None, max_length=16)
    """Hash of its settings other than parameters: image, resources, placement, environment."""
    pending_since: str | None = Field(default=None, max_length=64, json_schema_extra=TIME)
    """Since when it has been waiting for pods to run; unset while it waits for none."""
    started_at: str | None = Field(default=None, max_length=64, json_schema_extra=TIME)
    """When its first pod started to run."""
    finished_at: str | None = Field(default=None, max_length=64, json_schema_extra=TIME)
    """When it ended."""
    exit_code: int | None = None
    """Exit code of the pod that determined the outcome."""
    reason: str | None = Field(default=None, max_length=128)
    """The engine's error code, or the child's reason."""
    message: str | None = Field(default=None, max_length=MAX_ATTEMPT_MESSAGE)
    """The engine's error message."""
    failure: str | None = Field(default=None, max_length=32)
    """Application, Config or Disruption."""
    step: int | None = Field(default=None, ge=0)
    """Optimizer steps that a training stage had completed when it ended."""


class StageFacts(ModelFacts, StatusModel):
    """Size and shape of the model that a stage has read."""


class StageStatus(StatusModel):
    """One stage."""

    name: str = Field(max_length=64)
    """E.g. prepare, sample/qwen, train."""
    state: StageState
    """State of the stage."""
    hash: str = Field(max_length=16)
    """Hash of what it computes: its artifact is stored at STORAGE/NAME/HASH."""
    attempts: tuple[Attempt, ...] = Field(default=(), max_length=MAX_ATTEMPTS, json_schema_extra=list_map("number"))
    """The last attempts, oldest first."""
    forgiven_attempts: int = Field(default=0, ge=0)
    """Attempts up to this number use up no retry because the spec was edited after they failed."""
    failed_attempts: int = Field(default=0, ge=0)
    """Attempts after the forgiven ones that used up a retry."""
    consecutive_disruptions: int = Field(default=0, ge=0)
    """Attempts in a row, up to the last that ended, that the cluster terminated. The delay before the next one grows
    with their number."""
    shards: str | None = Field(default=None, max_length=16)
    """Finished shards of all shards, e.g. 2/4."""
    progress: int | None = Field(default=None, ge=0, le=100)
    """Percent."""
    remaining_seconds: int | None = Field(default=None, ge=0)
    """The stage's estimate, in seconds."""
    metrics: dict[str, float] = Field(default={}, max_length=MAX_METRICS)
    """Last metrics: those of the progress reports while it runs, those of the result at the end."""
    artifact: str | None = Field(default=None, max_length=256)
    """Address of its artifact below the storage root."""
    cached: bool | None = None
    """True: a valid artifact already existed and nothing was computed."""
    started_at: str | None = Field(default=None, max_length=64, json_schema_extra=TIME)
    """When the first attempt started."""
    finished_at: str | None = Field(default=None, max_length=64, json_schema_extra=TIME)
    """When it ended."""
    gpu_seconds: int | None = Field(default=None, ge=0)
    """GPU time of all finished attempts."""
    message: str | None = Field(default=None, max_length=MAX_MESSAGE)
    """Why it is in this state, if that is not obvious."""
    facts: StageFacts | None = None
    """Facts about the model that the stage has inspected or downloaded."""
    placement: Placement | None = None
    """Accelerators of the last attempt, and why. Unset: the stage needs none, or runs as the spec says."""

    @property
    def has_diverged(self) -> bool:
        """Whether its training reports that the chosen responses become improbable while the margin grows."""
        return self.metrics.get(REWARD_DIVERGENCE, 0.0) >= 1.0


class Blocker(StatusModel):
    """A reason why the experiment makes no progress."""

    object: str = Field(max_length=320)
    """The blocked or missing object, e.g. Pod/NAME."""
    reason: str = Field(max_length=128)
    """CamelCase word for programs."""
    message: str = Field(max_length=MAX_MESSAGE)
    """The cluster's message and the remedy."""
    since: str = Field(max_length=64, json_schema_extra=TIME)
    """When it was first seen."""
    stage: str | None = Field(default=None, max_length=64)
    """The stage that waits."""


class Progress(StatusModel):
    """The experiment as a whole."""

    percent: int = Field(default=0, ge=0, le=100)
    """Weighted over the stages."""
    remaining_seconds: int | None = Field(default=None, ge=0)
    """Estimate in seconds, from the stages that ran so far. Unset: not known yet."""


class ExperimentStatus(StatusModel):
    """The whole status. Only the operator writes it."""

    observed_generation: int | None = Field(default=None, ge=0)
    """Generation of the spec that this status describes."""
    phase: Phase | None = None
    """Pending, Running, Suspended, Succeeded, Failed or Invalid."""
    stage: str | None = Field(default=None, max_length=256)
    """The stages that run, or the one that failed; for printing."""
    reason: str | None = Field(default=None, max_length=128)
    """Reason of the condition that explains the phase; for printing."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("type"))
    """Accepted, Progressing, Blocked, Suspended, Succeeded, Failed, SourcesDegraded, Warned."""
    stages: tuple[StageStatus, ...] = Field(default=(), max_length=MAX_STAGES, json_schema_extra=list_map("name"))
    """All stages in the order in which they can run."""
    progress: Progress | None = None
    """The experiment as a whole."""
    progress_text: str | None = Field(default=None, max_length=32)
    """Percent as text; for printing."""
    blockers: tuple[Blocker, ...] = Field(default=(), max_length=MAX_BLOCKERS, json_schema_extra=ATOMIC)
    """Why stages are not running."""
    source_count: int | None = Field(default=None, ge=0)
    """Number of sources; for printing."""
    started_at: str | None = Field(default=None, max_length=64, json_schema_extra=TIME)
    """When the first stage started."""
    finished_at: str | None = Field(default=None, max_length=64, json_schema_extra=TIME)
    """When it succeeded or failed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form in camelCase, without unset and empty fields."""
        raw: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for stage in raw["stages"]:
            for name in ("metrics", "consecutiveDisruptions"):
                if not stage[name]:
                    del stage[name]
        return raw

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of a type."""
        return next((condition for condition in self.conditions if condition.type == kind), None)

    def stage_named(self, name: str) -> StageStatus | None:
        """Return the stage of a name."""
        return next((stage for stage in self.stages if stage.name == name), None)


def parse_status(raw: Any) -> ExperimentStatus:
    """Parse a stored status. One that does not parse (edited by hand) counts as empty and is rebuilt."""
    try:
        return ExperimentStatus.model_validate(raw or {})
    except ValueError:
        return ExperimentStatus()
