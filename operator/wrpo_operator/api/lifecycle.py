"""How long attempts of stages may take, and what follows when they fail: parts of the spec."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wrpo_engine.contract.exit_codes import FINAL_EXIT_CODES_TEXT
from wrpo_operator.api.base import SpecModel
from wrpo_operator.api.stage_sections import per_section

PreRunningSeconds = Annotated[int, Field(ge=1, le=2592000)]
ActiveSeconds = Annotated[int, Field(ge=1, le=31536000)]


class Retries(SpecModel):
    __doc__ = f"""What follows when a stage fails. Bad configuration or data (exit codes {FINAL_EXIT_CODES_TEXT}) is
    never tried again. Preemption, eviction and node loss use up no retry: the first is followed by a new attempt at
    once, further ones in a row after the pauses of retries.
    """

    limit: int = Field(default=2, ge=0, le=20)
    """Further attempts after the first. 0: none."""
    backoff_seconds: int = Field(default=10, ge=0, le=3600)
    """Wait before the first retry; doubles with each further one, up to an hour. 0: at once."""


class StageDeadlines(SpecModel):
    """How long attempts of one kind of stage may take."""

    pre_running_seconds: PreRunningSeconds | None = None
    """Unset: deadlines.preRunningSeconds."""
    active_seconds: ActiveSeconds | None = None
    """Unset: deadlines.activeSeconds."""


@per_section(StageDeadlines | None, lambda section: section.deadlines)
class DeadlinesByStage(SpecModel):
    """Deadlines by kind of stage, as spec.resources has its kinds."""

    def of_section(self, section: str) -> StageDeadlines | None:
        """Return the deadlines of a section of the stages' definitions, whose names have no underscore."""
        found: StageDeadlines | None = getattr(self, section)
        return found


class Deadlines(SpecModel):
    """How long things may take. Changing it re-runs nothing, and counts for attempts that are under way."""

    pre_running_seconds: PreRunningSeconds | None = None
    """How long an attempt may wait for its pods to run; then the stage fails and says what it waited for. Unset: for
    ever. Time in a Kueue queue or suspended does not count."""
    active_seconds: ActiveSeconds | None = None
    """How long an attempt may run, from when its first pod runs; then it ends, has failed (RanTooLong), and is tried
    again as retries allow. Unset: for ever. Time before that, in a queue or suspended does not count."""
    stages: DeadlinesByStage = DeadlinesByStage()
    """Deadlines of a kind of stage that differ from those above."""
    stalled_seconds: int = Field(default=1800, ge=60, le=2592000)
    """A running stage whose progress has not risen for so long is shown as a blocker (ProgressStalled). It ends
    nothing."""
