"""Fields of a WRPOSweep's status: one bounded row for each variant."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from wrpo_operator.api.base import TIME, StatusModel, list_map
from wrpo_operator.api.status import Condition, Phase
from wrpo_operator.api.sweep import MAX_VARIANT_NAME, MAX_VARIANTS

MAX_ROW_MESSAGE = 384
MAX_HEADLINES = 8
"""With these bounds a status of 512 variants takes less than 600 KiB, which etcd stores in addition to the spec."""


class VariantStatus(StatusModel):
    """One variant over all seeds."""

    name: str = Field(max_length=MAX_VARIANT_NAME)
    """Name of the variant."""
    phase: Phase
    """Pending, Running, Suspended, Succeeded, Failed or Invalid."""
    experiments: str = Field(max_length=16)
    """Succeeded experiments of all, e.g. 1/3."""
    progress: int = Field(default=0, ge=0, le=100)
    """Percent, mean over the experiments."""
    metrics: dict[str, float] = Field(default={}, max_length=MAX_HEADLINES)
    """Headline metrics of its evaluation, mean over the experiments that have them."""
    sources: int | None = Field(default=None, ge=0)
    """Number of sources. Unset: not decided yet."""
    message: str | None = Field(default=None, max_length=MAX_ROW_MESSAGE)
    """Why it is in this phase, if that is not obvious."""


class SourceOrder(StatusModel):
    """The order of sources by mean reward. It is kept until an edit changes a source, a prompt or the reward."""

    key: str = Field(max_length=16)
    """Digest of the scores that it follows from."""
    sources: tuple[str, ...] = Field(max_length=32)
    """Names, the best first."""
    means: dict[str, float] = Field(default={}, max_length=32)
    """Mean score of each source; sources without one failed and are last."""


class SweepCounts(StatusModel):
    """Number of experiments by state."""

    total: int = Field(default=0, ge=0)
    """All."""
    pending: int = Field(default=0, ge=0)
    """Not created, or not started yet."""
    running: int = Field(default=0, ge=0)
    """Running or suspended."""
    succeeded: int = Field(default=0, ge=0)
    """Succeeded with the current spec."""
    failed: int = Field(default=0, ge=0)
    """Failed, or refused by the API server."""


class SweepStatus(StatusModel):
    """The whole status. Only the operator writes it."""

    observed_generation: int | None = Field(default=None, ge=0)
    """Generation of the spec that this status describes."""
    phase: Phase | None = None
    """Pending, Running, Suspended, Succeeded, Failed (some variants failed, and all have ended) or Invalid."""
    reason: str | None = Field(default=None, max_length=128)
    """Reason of the condition that explains the phase; for printing."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("type"))
    """Accepted, Progressing, Blocked, Suspended, Succeeded, Failed."""
    experiments: SweepCounts = SweepCounts()
    """Number of experiments by state."""
    progress_text: str | None = Field(default=None, max_length=32)
    """Succeeded experiments of all; for printing."""
    source_order: SourceOrder | None = None
    """Order of sources by mean reward, once a variant needs it."""
    gpu_seconds: int | None = Field(default=None, ge=0)
    """GPU time of all experiments."""
    variants: tuple[VariantStatus, ...] = Field(default=(), max_length=MAX_VARIANTS, json_schema_extra=list_map("name"))
    """The variants in the order of the spec."""
    started_at: str | None = Field(default=None, max_length=64, json_schema_extra=TIME)
    """When the first experiment was created."""
    finished_at: str | None = Field(default=None, max_length=64, json_schema_extra=TIME)
    """When the last experiment ended."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form in camelCase, without unset and empty fields."""
        raw: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for row in raw["variants"]:
            if not row["metrics"]:
                del row["metrics"]
        return raw

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of a type."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


def parse_sweep_status(raw: Any) -> SweepStatus:
    """Parse a stored status. One that does not parse (edited by hand) counts as empty and is rebuilt."""
    try:
        return SweepStatus.model_validate(raw or {})
    except ValueError:
        return SweepStatus()
