"""Status of an experiment, built from views and decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from wrpo_engine.contract.definition import Shape
from wrpo_operator.api import messages
from wrpo_operator.api.conditions import ConditionType, Reason
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import (
    FINISHED,
    MAX_ATTEMPTS,
    Attempt,
    AttemptState,
    Blocker,
    Condition,
    ExperimentStatus,
    Phase,
    StageState,
    StageStatus,
    to_time,
)
from wrpo_operator.plan.model import (
    ChildState,
    Experiment,
    PlannedAttempt,
    Snapshot,
    StageId,
    StageNode,
)
from wrpo_operator.plan.placing import described
from wrpo_operator.plan.progress import overall, stage_progress
from wrpo_operator.plan.resources import settings_of
from wrpo_operator.plan.stage_views import StageView
from wrpo_operator.plan.starts import HeldBack


@dataclass(frozen=True, slots=True)
class StageFailure:
    """A failure that ends the experiment."""

    stage: StageId
    reason: Reason | str
    message: str


@dataclass(frozen=True, slots=True)
class Decisions:
    """All decisions of one reconcile."""

    views: tuple[StageView, ...]
    starts: tuple[PlannedAttempt, ...] = ()
    held: tuple[HeldBack, ...] = ()
    failure: StageFailure | None = None
    blockers: tuple[Blocker, ...] = ()
    lost: Mapping[str, StageFailure] = field(default_factory=dict)
    """Sources without which the experiment continues."""
    losses: Mapping[StageId, StageFailure] = field(default_factory=dict)
    """Stages that only these sources need, each with the failure because of which it does not run."""
    deleting: bool = False
    rejected: str = ""
    """Why the API server will never accept the spec's children; empty if it may."""
    warnings: tuple[str, ...] = ()
    """Sentences about what looks like a mistake and prevents nothing."""


def describe_failure(view: StageView, reason: Reason, limit: int) -> StageFailure:
    """Return the failure of a stage that is not retried, with the message of its last failed attempt."""
    last = next((attempt for attempt in reversed(view.record.attempts) if attempt.state is AttemptState.FAILED), None)
    said = (last.message if last else None) or "no reason was reported."
    if reason == Reason.SAME_ERROR and last is not None and last.step is not None:
        said = messages.same_error(last.step) + said
    text = messages.stage_failed(str(view.id), last.number if last else 0, view.record.failed_attempts, limit, said)
    return StageFailure(view.id, reason, text)


def build_status(snapshot: Snapshot, spec: ExperimentSpec, decided: Decisions, now: datetime) -> ExperimentStatus:
    """Return the whole status."""
    before = snapshot.experiment.status
    starts = {start.node.id: start for start in decided.starts}
    held = {item.view.id: item for item in decided.held}
    losses = {view.id: decided.losses.get(view.id) for view in decided.views}
    stages = tuple(
        _stage(
            snapshot, spec, view, _Next(starts.get(view.id), held.get(view.id), decided.failure or losses[view.id]), now
        )
        for view in decided.views
    )
    wanted = [(view, stage) for view, stage in zip(decided.views, stages, strict=True) if losses[view.id] is None]
    phase = _phase(spec, [stage for _, stage in wanted], decided.failure)
    if decided.rejected and not any(view.live for view in decided.views):
        phase = Phase.INVALID
    progress = overall([view for view, _ in wanted], [stage for _, stage in wanted])
    started = min((stage.started_at for stage in stages if stage.started_at), default=None)
    ended = phase in FINISHED
    same_end = before.phase is phase and before.observed_generation == snapshot.experiment.generation
    status = ExperimentStatus(
        observed_generation=snapshot.experiment.generation,
        phase=phase,
        stage=_stage_text(phase, stages, decided.failure),
        stages=stages,
        progress=progress,
        progress_text=f"{progress.percent}%",
        blockers=decided.blockers,
        source_count=len(spec.sources),
        started_at=before.started_at or started,
        finished_at=((before.finished_at if same_end else None) or to_time(now)) if ended else None,
    )
    return with_conditions(snapshot.experiment, status, _conditions(spec, status, decided), now)


def invalid_status(experiment: Experiment, now: datetime) -> ExperimentStatus:
    """Return the status of a spec that cannot be accepted; the records of stages are kept."""
    message = messages.invalid(experiment.spec_errors)
    status = experiment.status.model_copy(
        update={
            "observed_generation": experiment.generation,
            "phase": Phase.INVALID,
            "stage": None,
            "blockers": (),
            "finished_at": None,
        }
    )
    facts = {
        ConditionType.SOURCES_DEGRADED: (False, Reason.INVALID_SPEC, messages.not_accepted_yet()),
        ConditionType.WARNED: (False, Reason.INVALID_SPEC, messages.not_accepted_yet()),
        ConditionType.ACCEPTED: (False, Reason.INVALID_SPEC, message),
        ConditionType.PROGRESSING: (False, Reason.INVALID_SPEC, messages.not_accepted_yet()),
        ConditionType.BLOCKED: (True, Reason.INVALID_SPEC, messages.not_accepted_yet()),
        ConditionType.SUSPENDED: (False, Reason.NOT_SUSPENDED, messages.not_accepted_yet()),
        ConditionType.SUCCEEDED: (False, Reason.NOT_FINISHED, messages.not_finished()),
        ConditionType.FAILED: (False, Reason.NO_FAILURE, messages.no_failure()),
    }
    return with_conditions(experiment, status, facts, now)


Facts = Mapping[ConditionType, tuple[bool, Reason | str, str]]


def _conditions(spec: ExperimentSpec, status: ExperimentStatus, decided: Decisions) -> Facts:
    phase, failure = status.phase, decided.failure
    ended = phase in FINISHED
    running = tuple(stage.name for stage in status.stages if stage.state is StageState.RUNNING)
    waiting = tuple(stage.name for stage in status.stages if stage.state is StageState.WAITING)
    if ended:
        progressing = (False, Reason.FINISHED, messages.finished(str(phase)))
    elif decided.deleting:
        progressing = (False, Reason.DELETING, messages.deleting())
    elif spec.suspend:
        progressing = (False, Reason.SUSPENDED, messages.suspended())
    elif phase is Phase.INVALID:
        progressing = (False, Reason.INVALID_SPEC, messages.not_accepted_yet())
    elif running:
        progressing = (True, Reason.STAGES_RUNNING, messages.running(running))
    else:
        progressing = (True, Reason.WAITING, messages.waiting(waiting))
    blocked: tuple[bool, Reason | str, str] = (False, Reason.NOTHING_BLOCKS, messages.nothing_blocks())
    if status.blockers and not ended:
        first = status.blockers[0]
        blocked = (True, first.reason, f"{first.object}: {first.message}")
    suspended = spec.suspend and not ended
    succeeded = sum(stage.state is StageState.SUCCEEDED for stage in status.stages)
    degraded: tuple[bool, Reason | str, str] = (False, Reason.ALL_SOURCES_USED, messages.all_sources_used())
    if decided.lost:
        failures = {name: loss.message for name, loss in decided.lost.items()}
        degraded = (True, Reason.SOURCE_FAILED, messages.sources_lost(failures))
    return {
        ConditionType.SOURCES_DEGRADED: degraded,
        ConditionType.WARNED: (True, Reason.SUSPICIOUS_SPEC, messages.warned(decided.warnings))
        if decided.warnings
        else (False, Reason.NOTHING_SUSPICIOUS, messages.nothing_suspicious()),
        ConditionType.ACCEPTED: (False, Reason.INVALID_SPEC, decided.rejected)
        if decided.rejected
        else (True, Reason.VALID, messages.accepted()),
        ConditionType.PROGRESSING: progressing,
        ConditionType.BLOCKED: blocked,
        ConditionType.SUSPENDED: (True, Reason.SUSPENDED, messages.suspended())
        if suspended
        else (False, Reason.NOT_SUSPENDED, messages.not_suspended()),
        ConditionType.SUCCEEDED: (True, Reason.ALL_STAGES_SUCCEEDED, messages.succeeded(succeeded))
        if phase is Phase.SUCCEEDED
        else (False, Reason.NOT_FINISHED, messages.not_finished()),
        ConditionType.FAILED: (True, failure.reason, failure.message)
        if failure
        else (False, Reason.NO_FAILURE, messages.no_failure()),
    }


_EXPLAINS = {
    Phase.SUCCEEDED: ConditionType.SUCCEEDED,
    Phase.FAILED: ConditionType.FAILED,
    Phase.INVALID: ConditionType.ACCEPTED,
    Phase.SUSPENDED: ConditionType.SUSPENDED,
}


def with_conditions(experiment: Experiment, status: ExperimentStatus, facts: Facts, now: datetime) -> ExperimentStatus:
    """Set the conditions; a condition's transition time is that of its last change of status."""
    conditions = transitions(experiment.status.condition, experiment.generation, facts, now)
    reason = str(facts[explaining(status.phase, facts)][1])
    return status.model_copy(update={"conditions": conditions, "reason": reason})


def explaining(phase: Phase | None, facts: Facts) -> ConditionType:
    """Return the type of the condition that explains a phase."""
    explains = _EXPLAINS.get(phase or Phase.PENDING, ConditionType.PROGRESSING)
    is_blocked = explains is ConditionType.PROGRESSING and facts[ConditionType.BLOCKED][0]
    return ConditionType.BLOCKED if is_blocked else explains


def transitions(
    known: Callable[[str], Condition | None], generation: int, facts: Facts, now: datetime
) -> tuple[Condition, ...]:
    """Return the conditions of these facts; `known` returns the former condition of a type."""
    conditions = []
    for kind, (holds, reason, message) in facts.items():
        before = known(kind)
        value = "True" if holds else "False"
        same = before is not None and before.status == value
        conditions.append(
            Condition(
                type=kind.value,
                status=value,
                observed_generation=generation,
                last_transition_time=before.last_transition_time if before and same else to_time(now),
                reason=str(reason),
                message=message,
            )
        )
    return tuple(conditions)


def _phase(spec: ExperimentSpec, stages: Sequence[StageStatus], failure: StageFailure | None) -> Phase:
    if failure is not None:
        return Phase.FAILED
    if all(stage.state is StageState.SUCCEEDED for stage in stages):
        return Phase.SUCCEEDED
    if spec.suspend:
        return Phase.SUSPENDED
    started = any(stage.state in {StageState.RUNNING, StageState.SUCCEEDED} for stage in stages)
    return Phase.RUNNING if started else Phase.PENDING


def _stage_text(phase: Phase, stages: Sequence[StageStatus], failure: StageFailure | None) -> str | None:
    if failure is not None:
        return str(failure.stage)
    if phase is Phase.SUCCEEDED:
        return None
    wanted = (StageState.RUNNING, StageState.SUSPENDED, StageState.WAITING)
    for state in wanted:
        names = [stage.name for stage in stages if stage.state is state]
        if names:
            return names[0] if len(names) == 1 else f"{names[0]} (+{len(names) - 1})"
    return None


@dataclass(frozen=True, slots=True)
class _Next:
    """What was decided about one stage; all None: nothing."""

    start: PlannedAttempt | None
    held: HeldBack | None
    failure: StageFailure | None
    """The reason why it does not run; perhaps that of another stage."""


def _stage(
    snapshot: Snapshot,
    spec: ExperimentSpec,
    view: StageView,
    decided: _Next,
    now: datetime,
) -> StageStatus:
    """Return one stage's status: its record with the state that was decided."""
    start, held, failure = decided.start, decided.held, decided.failure
    values: dict[str, Any] = {"progress": None, "remaining_seconds": None, "message": None}
    child = next(iter(view.runnable), None)
    if view.succeeded:
        values |= _success(view)
    elif failure is not None and failure.stage == view.id:
        values |= {"state": StageState.FAILED, "message": failure.message}
        values |= {"finished_at": view.record.finished_at or _last_end(view.record.attempts)}
    elif failure is not None:
        stopped = bool(view.record.attempts) and view.record.attempts[-1].state is AttemptState.STOPPED
        text = messages.stopped(str(failure.stage)) if stopped else messages.skipped(str(failure.stage))
        values |= {"state": StageState.SKIPPED, "message": text}
    elif child is not None:
        values |= _running(snapshot, view)
    elif start is not None:
        values |= {"state": StageState.WAITING, **_shards(start.node, 0), "placement": described(spec, start.node)}
        values["attempts"] = _with_start(view, start, settings_of(spec, start.node), now)
    elif held is not None:
        values |= {"state": StageState.WAITING, "message": held.message}
    elif spec.suspend:
        values |= {"state": StageState.SUSPENDED if view.record.attempts else StageState.PENDING}
    else:
        values |= {"state": StageState.WAITING if view.live else StageState.PENDING}
    if values["state"] not in {StageState.SUCCEEDED, StageState.FAILED}:
        values["finished_at"] = None
    attempts: tuple[Attempt, ...] = values.get("attempts", view.record.attempts)
    first = min((attempt.started_at for attempt in attempts if attempt.started_at), default=None)
    values["started_at"] = view.record.started_at or first
    return view.record.model_copy(update=values)


def _shards(node: StageNode, done: int) -> dict[str, str]:
    """Return finished shards of all shards. An edit of their number applies from the next attempt."""
    return {"shards": f"{done}/{node.runtime.shards}"} if node.shape is Shape.INDEXED_JOB else {}


def _with_start(view: StageView, start: PlannedAttempt, settings: str, now: datetime) -> tuple[Attempt, ...]:
    """Return the attempts with the started one; one deleted manually, or not yet observed, waits again."""
    known = {attempt.number: attempt for attempt in view.record.attempts}
    fresh = Attempt(number=start.attempt, child=start.child_name, state=AttemptState.PENDING)
    base = known.get(start.attempt, fresh)
    known[start.attempt] = base.model_copy(
        update={
            "state": AttemptState.PENDING,
            "settings": settings,
            "pending_since": base.pending_since or to_time(now),
        }
    )
    return tuple(known[number] for number in sorted(known))[-MAX_ATTEMPTS:]


def _running(snapshot: Snapshot, view: StageView) -> dict[str, Any]:
    child = view.runnable[0]
    states = {
        ChildState.RUNNING: StageState.RUNNING,
        ChildState.SUSPENDED: StageState.SUSPENDED,
    }
    values: dict[str, Any] = {"state": states.get(child.state, StageState.WAITING), "finished_at": None}
    values |= _shards(view.node, child.succeeded_shards)
    progress = stage_progress(view, child, snapshot.progress.get((child.stage, child.attempt), ()))
    values |= {"progress": progress.percent, "remaining_seconds": progress.remaining_s}
    if progress.metrics:
        values["metrics"] = dict(progress.metrics)
    return values


def _success(view: StageView) -> dict[str, Any]:
    """Return the end of a stage."""
    record = view.record
    values: dict[str, Any] = {
        "state": StageState.SUCCEEDED,
        "progress": 100,
        "artifact": record.artifact or f"{view.id}/{view.node.hash}",
        "finished_at": record.finished_at or _last_end(record.attempts),
    }
    values |= _shards(view.node, view.node.runtime.shards)
    return values


def _last_end(attempts: Sequence[Attempt]) -> str | None:
    return max((attempt.finished_at for attempt in attempts if attempt.finished_at), default=None)
