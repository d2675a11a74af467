"""Batching of status changes.

Parallel stages start and end within seconds of each other, and a separate write for each change would be expensive.
Changes that matter to a user are never delayed: a phase, a condition, a blocker, a failure, the reaction to an edit.
Neither is the next child, which is created first. Delayed changes are lost with the process, like a write that a crash
prevents, and the next reconcile derives them again from the children.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from wrpo_operator.api.conditions import ConditionType
from wrpo_operator.api.status import AttemptState, ExperimentStatus, StageState
from wrpo_operator.plan.classify import ENDED
from wrpo_operator.plan.model import Experiment, Plan

MOMENT_S = 2.0
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Held:
    base: ExperimentStatus
    """The stored status that precedes it."""
    status: ExperimentStatus
    due: float


class HeldStatuses:
    """Statuses that are decided but not yet written."""

    def __init__(self, monotonic: Callable[[], float], moment_s: float) -> None:
        self._monotonic = monotonic
        self._moment_s = moment_s
        self._held: dict[Key, _Held] = {}

    def current(self, key: Key, stored: Experiment) -> Experiment:
        """Return the experiment with the last decided status, unless another one was written since."""
        held = self._held.get(key)
        if held is None:
            return stored
        if held.base != stored.status:
            self.forget(key)
            return stored
        return replace(stored, status=held.status)

    def wait_s(self, key: Key, stored: Experiment, todo: Plan) -> float:
        """Return how long a status write may wait, in seconds; 0 if it must not wait."""
        before, after = stored.status, todo.status
        if after is None or after == before:
            self.forget(key)
            return 0.0
        if self._moment_s <= 0:
            return 0.0
        now, held = self._monotonic(), self._held.get(key)
        due = held.due if held is not None else now + self._moment_s
        if not may_wait(before, after, todo):
            due = now
        # Keep the status until it is observed as stored, because the write may fail.
        self._held[key] = _Held(before, after, due)
        return max(0.0, due - now)

    def forget(self, key: Key) -> None:
        """Drop the delayed status of an experiment."""
        self._held.pop(key, None)


def may_wait(before: ExperimentStatus, after: ExperimentStatus, todo: Plan) -> bool:
    """Return whether a change only concerns stages that started or succeeded."""
    is_plain = (
        before.observed_generation == after.observed_generation
        and before.phase is after.phase
        and before.blockers == after.blockers
        and _told(before) == _told(after)
        and not todo.delete
        and not todo.suspend
    )
    return is_plain and not _has_failed(before, after) and _has_moved_on(before, after)


def _told(status: ExperimentStatus) -> list[tuple[str, str, str]]:
    """Return the conditions without the names of running stages."""
    return [(c.type, c.status, c.reason) for c in status.conditions if c.type != ConditionType.PROGRESSING]


def _has_failed(before: ExperimentStatus, after: ExperimentStatus) -> bool:
    return bool(_ends(after) - _ends(before))


def _ends(status: ExperimentStatus) -> set[tuple[str, str, int]]:
    """Return the attempts that ended in anything but success."""
    bad = ENDED - {AttemptState.SUCCEEDED}
    return {(s.name, s.hash, a.number) for s in status.stages for a in s.attempts if a.state in bad}


def _has_moved_on(before: ExperimentStatus, after: ExperimentStatus) -> bool:
    def steps(status: ExperimentStatus) -> set[tuple[str, str, int, bool]]:
        return {
            (stage.name, stage.hash, len(stage.attempts), stage.state is StageState.SUCCEEDED)
            for stage in status.stages
        }

    return steps(before) != steps(after)
