"""Events of the transition between two statuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from wrpo_operator.api import event_messages, messages
from wrpo_operator.api.conditions import ConditionType, Reason
from wrpo_operator.api.status import AttemptState, Condition, ExperimentStatus, StageState, StageStatus
from wrpo_operator.plan.model import Experiment, PlannedEvent

_NORMAL = "Normal"
_WARNING = "Warning"


def events_between(experiment: Experiment, after: ExperimentStatus) -> tuple[PlannedEvent, ...]:
    """Return the events of the transition from an experiment's status, stages first. Equal statuses give none."""
    before, name = experiment.status, experiment.name
    stage_events = (event for stage in after.stages for event in _of_stage(name, before.stage_named(stage.name), stage))
    return (*stage_events, *condition_events(before, after))


def _of_stage(experiment: str, before: StageStatus | None, after: StageStatus) -> Iterator[PlannedEvent]:
    if before is not None and before.hash != after.hash:
        if before.state is not StageState.PENDING:
            yield PlannedEvent(_NORMAL, Reason.STAGE_RERUN, event_messages.stage_changed(after.name))
        before = None
    known = {attempt.number: attempt for attempt in before.attempts} if before else {}
    for attempt in after.attempts:
        old = known.get(attempt.number)
        if old is None:
            text = event_messages.stage_started(after.name, attempt.number, attempt.child)
            yield PlannedEvent(_NORMAL, Reason.STAGE_STARTED, text)
        ended = attempt.state in {AttemptState.FAILED, AttemptState.DISRUPTED}
        if ended and (old is None or old.state is not attempt.state):
            text = event_messages.stage_retried(after.name, attempt.number, attempt.message or "")
            yield PlannedEvent(_WARNING, Reason.STAGE_RETRIED, text)
    if after.has_diverged and not (before is not None and before.has_diverged):
        newest = max((attempt.number for attempt in after.attempts), default=1)
        text = event_messages.reward_divergence(experiment, after.name, newest)
        yield PlannedEvent(_WARNING, Reason.REWARD_DIVERGENCE, text)
    if after.state is StageState.SUCCEEDED and (before is None or before.state is not StageState.SUCCEEDED):
        text = event_messages.stage_succeeded(after.name, cached=bool(after.cached))
        yield PlannedEvent(_NORMAL, Reason.STAGE_SUCCEEDED, text)


_TOLD: tuple[tuple[ConditionType, str, str], ...] = (
    (ConditionType.ACCEPTED, "False", _WARNING),
    (ConditionType.SUSPENDED, "True", _NORMAL),
    (ConditionType.BLOCKED, "True", _WARNING),
    (ConditionType.SOURCES_DEGRADED, "True", _WARNING),
    (ConditionType.WARNED, "True", _WARNING),
    (ConditionType.SUCCEEDED, "True", _NORMAL),
    (ConditionType.FAILED, "True", _WARNING),
)


class _HasConditions(Protocol):
    def condition(self, kind: str) -> Condition | None: ...


def condition_events(before: _HasConditions, after: _HasConditions) -> Iterator[PlannedEvent]:
    """Yield the events of the conditions that have changed."""
    for kind, value, severity in _TOLD:
        old, new = before.condition(kind), after.condition(kind)
        if new is None or new.status != value:
            continue
        if kind is ConditionType.BLOCKED and new.reason == Reason.INVALID_SPEC:
            continue  # reported by Accepted=False
        is_other = kind is ConditionType.WARNED and old is not None and old.message != new.message
        if old is None or old.status != value or old.reason != new.reason or is_other:
            yield PlannedEvent(severity, new.reason, new.message)
    was_suspended = before.condition(ConditionType.SUSPENDED)
    now_suspended = after.condition(ConditionType.SUSPENDED)
    if was_suspended and was_suspended.status == "True" and now_suspended and now_suspended.status == "False":
        yield PlannedEvent(_NORMAL, Reason.RESUMED, messages.not_suspended())
