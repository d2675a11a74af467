"""Input and output of the planner of sweeps: frozen values, no Kubernetes dictionaries, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from wrpo_operator.api.status import FINISHED, Phase
from wrpo_operator.api.sweep import SweepSpec
from wrpo_operator.api.sweep_status import SweepStatus
from wrpo_operator.plan.model import PlannedEvent
from wrpo_operator.plan.sweep_expand import Expansion, Wanted


@dataclass(frozen=True, slots=True)
class Member:
    """An experiment that a sweep owns."""

    name: str
    uid: str
    digest: str
    """Digest of the spec that the sweep gave it."""
    is_deleting: bool = False
    is_suspended: bool = False
    """spec.suspend"""
    was_suspended_by_sweep: bool = False
    phase: Phase | None = None
    """Phase of the current generation; None until an operator has seen it."""
    percent: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Headline metrics of its evaluation."""
    message: str = ""
    """Why it failed, is invalid or is blocked."""
    gpu_seconds: int = 0
    scores: Mapping[str, tuple[str, float | None]] = field(default_factory=dict)
    """Source -> hash of the stage that scores it, and the mean score; None: the stage ended without one."""

    @property
    def has_ended(self) -> bool:
        """Whether no stage of it runs or will run."""
        return self.phase in FINISHED or self.phase is Phase.INVALID

    @property
    def is_active(self) -> bool:
        """Whether it counts against the limit of experiments that run at the same time."""
        return not self.has_ended and not self.is_suspended and not self.is_deleting


@dataclass(frozen=True, slots=True)
class Refused:
    """Why the API server refuses an experiment."""

    words: str
    is_final: bool
    """Whether only an edit can resolve it."""


@dataclass(frozen=True, slots=True)
class SweepSnapshot:
    """Observed state of one sweep."""

    name: str
    generation: int
    spec: SweepSpec | None
    """None if the stored spec does not parse; `errors` then holds the errors."""
    expansion: Expansion
    status: SweepStatus
    members: tuple[Member, ...] = ()
    taken: frozenset[str] = frozenset()
    """Names of its experiments that exist and have another owner, or none."""
    refused: Mapping[str, Refused] = field(default_factory=dict)
    """Name of an experiment -> why its last write was refused."""
    is_deleting: bool = False

    @property
    def errors(self) -> tuple[str, ...]:
        """Why the sweep cannot be accepted."""
        return self.expansion.errors


class Action(StrEnum):
    """What to do with an experiment."""

    CREATE = "Create"
    UPDATE = "Update"
    """Give it the current spec, and resume it if the sweep has suspended it."""
    SUSPEND = "Suspend"
    RESUME = "Resume"


@dataclass(frozen=True, slots=True)
class Write:
    """A write of one experiment."""

    action: Action
    wanted: Wanted


class Wait(StrEnum):
    """Why an experiment does not have the state that the sweep requests."""

    SLOT = "Slot"
    EDIT = "Edit"
    REMOVAL = "Removal"
    TAKEN = "Taken"
    REFUSED = "Refused"


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """Actions to take now. Planning again after applying them yields none."""

    status: SweepStatus
    writes: tuple[Write, ...] = ()
    delete: tuple[Member, ...] = ()
    events: tuple[PlannedEvent, ...] = ()
