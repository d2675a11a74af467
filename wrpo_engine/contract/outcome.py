"""Outcome of a stage: its termination message."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.errors import WrpoError

REWARD_DIVERGENCE = "reward_divergence"
"""Metric of preference training, in progress posts and in the outcome: 1 from the step on at which it has diverged."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ErrorInfo(_Model):
    """Cause of a stage's failure, for users: part of the termination message."""

    code: str = Field(description="CamelCase reason, e.g. ModelNotFound.")
    field: str | None = Field(default=None, description="Field of the experiment's spec, e.g. prompts.column.")
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, error: WrpoError) -> ErrorInfo:
        """Return what a termination message says of an error."""
        return cls(code=error.code, field=error.field, message=error.message, hint=error.hint)


class TerminationMessage(_Model):
    """JSON that a stage leaves in its termination message file, at most 4096 bytes."""

    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    cached: bool = False
    rows: int | None = None
    step: int | None = Field(default=None, description="Optimizer steps completed when a training stage ended.")
    metrics: dict[str, float] = Field(default_factory=dict)
    artifact: str | None = Field(default=None, description="<stage>/<hash> below the storage root.")
    digest: str | None = Field(default=None, description="sha256 of the artifact's manifest.json.")
    facts: ModelFacts | None = Field(default=None, description="The model that an inspect or fetch stage has read.")
    error: ErrorInfo | None = None
    exit_code: int | None = Field(
        default=None, description="The stage's own exit code; torchrun exits with 1 regardless of its ranks."
    )
