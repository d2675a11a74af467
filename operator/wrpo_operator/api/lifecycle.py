"""Sections of the spec about deadlines and retries."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wrpo_engine.exit_codes import FINAL_EXIT_CODES_TEXT
from wrpo_operator.api.base import SpecModel
from wrpo_operator.api.stage_sections import per_section

PreRunningSeconds = Annotated[int, Field(ge=1, le=2592000)]
ActiveSeconds = Annotated[int, Field(ge=1, le=31536000)]


class Retries(SpecModel):  # noqa: D101 - assigned below
    __doc__ = f"""Retries of failed stages. Bad configuration or data (exit codes {FINAL_EXIT_CODES_TEXT}) is
    never retried. Preemption, eviction and node loss use up no retry: a new attempt starts immediately after the first,
    and with the backoff of retries after further ones in a row.
    """

    limit: int = Field(default=2, ge=0, le=20)
    """Maximum attempts after the first. 0: none."""
    backoff_seconds: int = Field(default=10, ge=0, le=3600)
    """Delay before the first retry; doubles with each further retry, up to an hour. 0: no delay."""


class StageDeadlines(SpecModel):
    """Deadlines of one kind of stage."""

    pre_running_seconds: PreRunningSeconds | None = None
    """Unset: deadlines.preRunningSeconds."""
    active_seconds: ActiveSeconds | None = None
    """Unset: deadlines.activeSeconds."""


@per_section(StageDeadlines | None, lambda section: section.deadlines)
class DeadlinesByStage(SpecModel):
    """Deadlines by kind of stage, with the same kinds as spec.resources."""

    def of_section(self, section: str) -> StageDeadlines | None:
        """Return the deadlines of a section of the stages' definitions, whose names have no underscore."""
        found: StageDeadlines | None = getattr(self, section)
        return found


class Deadlines(SpecModel):
    """Time limits of attempts. Changing them re-runs nothing and applies to running attempts too."""

    pre_running_seconds: PreRunningSeconds | None = None
    """How long an attempt may wait for its pods to run. On expiry the stage fails and reports what it waited for.
    Unset: no limit. Time in a Kueue queue or suspended does not count."""
    active_seconds: ActiveSeconds | None = None
    """How long an attempt may run after its first pod started. On expiry the attempt is terminated, fails (RanTooLong)
    and is retried as retries allow. Unset: no limit. Time in a queue or suspended does not count."""
    stages: DeadlinesByStage = DeadlinesByStage()
    """Deadlines of a kind of stage that differ from those above."""
    stalled_seconds: int = Field(default=1800, ge=60, le=2592000)
    """A running stage whose progress has not risen within this time is shown as a blocker (ProgressStalled). It is not
    terminated."""
