"""Status of a sweep: rows of its variants, counts and conditions. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from wrpo_operator.api import messages, sweep_messages
from wrpo_operator.api.conditions import ConditionType, Reason
from wrpo_operator.api.status import FINISHED, Phase, to_time
from wrpo_operator.api.sweep import SweepSpec
from wrpo_operator.api.sweep_status import (
    MAX_HEADLINES,
    SourceOrder,
    SweepCounts,
    SweepStatus,
    VariantStatus,
)
from wrpo_operator.plan.status import Facts, explaining, transitions
from wrpo_operator.plan.sweep_expand import Row, Wanted
from wrpo_operator.plan.sweep_model import Member, SweepSnapshot, Wait

_OVER = FINISHED | {Phase.INVALID}
_BAD = frozenset({Phase.FAILED, Phase.INVALID})


@dataclass(frozen=True, slots=True)
class _State:
    """One experiment, or one that cannot be named yet."""

    phase: Phase
    percent: int = 0
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


def build_sweep_status(
    snapshot: SweepSnapshot, spec: SweepSpec, waits: Mapping[str, Wait], order: SourceOrder | None, now: datetime
) -> SweepStatus:
    """Return the whole status; `waits` says why experiments are not what the sweep wants."""
    before, members = snapshot.status, {member.name: member for member in snapshot.members}
    rows = snapshot.expansion.rows
    states = {
        row.name: [
            _state(snapshot, spec, item, members.get(item.name), waits.get(item.name)) for item in row.experiments
        ]
        for row in rows
    }
    is_over = all(state.phase in _OVER for found in states.values() for state in found)
    for row in rows:
        if not row.experiments:
            states[row.name] = [_undecided(is_hopeless=is_over and order is None)] * row.number
    every = [state for found in states.values() for state in found]
    phase = _phase([state.phase for state in every], is_suspended=spec.suspend)
    ended = phase in FINISHED
    same_end = before.phase is phase and before.observed_generation == snapshot.generation
    counts = _counts([state.phase for state in every])
    status = SweepStatus(
        observed_generation=snapshot.generation,
        phase=phase,
        experiments=counts,
        progress_text=f"{counts.succeeded}/{counts.total}",
        source_order=order,
        gpu_seconds=sum(member.gpu_seconds for member in snapshot.members) or None,
        variants=tuple(_row(row, states[row.name]) for row in rows),
        started_at=before.started_at or (to_time(now) if snapshot.members else None),
        finished_at=((before.finished_at if same_end else None) or to_time(now)) if ended else None,
    )
    blocked = [state.message for state, wait in _blocked(snapshot, states, waits) if wait and not ended]
    return _with_conditions(snapshot, status, _facts(spec, status, blocked), now)


def invalid_sweep_status(snapshot: SweepSnapshot, now: datetime) -> SweepStatus:
    """Return the status of a sweep that cannot be accepted; the rows are kept."""
    status = snapshot.status.model_copy(
        update={"observed_generation": snapshot.generation, "phase": Phase.INVALID, "finished_at": None}
    )
    nothing = sweep_messages.nothing_starts()
    facts: Facts = {
        ConditionType.ACCEPTED: (False, Reason.INVALID_SPEC, messages.invalid(snapshot.errors)),
        ConditionType.PROGRESSING: (False, Reason.INVALID_SPEC, nothing),
        ConditionType.BLOCKED: (True, Reason.INVALID_SPEC, nothing),
        ConditionType.SUSPENDED: (False, Reason.NOT_SUSPENDED, sweep_messages.not_suspended()),
        ConditionType.SUCCEEDED: (False, Reason.NOT_FINISHED, sweep_messages.not_ended()),
        ConditionType.FAILED: (False, Reason.NO_FAILURE, sweep_messages.no_failure()),
    }
    return _with_conditions(snapshot, status, facts, now)


def _state(snapshot: SweepSnapshot, spec: SweepSpec, item: Wanted, member: Member | None, wait: Wait | None) -> _State:
    if wait is Wait.TAKEN:
        return _State(Phase.FAILED, message=sweep_messages.name_taken(item.name))
    if wait is Wait.REFUSED:
        refused = snapshot.refused[item.name]
        text = sweep_messages.refused(item.name, refused.words)
        return _State(Phase.FAILED if refused.is_final else Phase.PENDING, message=text)
    if member is None:
        most = None if spec.suspend else spec.parallel_experiments
        return _State(Phase.PENDING, message=sweep_messages.slot_awaited(most))
    if wait is Wait.REMOVAL:
        return _State(Phase.PENDING, message=sweep_messages.removal())
    if wait is Wait.EDIT:
        return _State(Phase.PENDING, message=sweep_messages.edit_awaited(spec.parallel_experiments or 0))
    is_current = member.digest == item.digest
    if not is_current or member.phase is None:
        return _State(Phase.SUSPENDED if member.is_suspended else Phase.RUNNING, member.percent if is_current else 0)
    percent = 100 if member.phase is Phase.SUCCEEDED else member.percent
    return _State(member.phase, percent, member.message, member.metrics)


def _undecided(*, is_hopeless: bool) -> _State:
    if is_hopeless:
        return _State(Phase.FAILED, message=sweep_messages.order_impossible())
    return _State(Phase.PENDING, message=sweep_messages.order_awaited())


def _row(row: Row, states: Sequence[_State]) -> VariantStatus:
    phases = [state.phase for state in states]
    return VariantStatus(
        name=row.name,
        phase=_phase(phases, is_suspended=Phase.SUSPENDED in phases and Phase.RUNNING not in phases),
        experiments=f"{sum(phase is Phase.SUCCEEDED for phase in phases)}/{len(phases)}",
        progress=sum(state.percent for state in states) // len(states),
        metrics=_means([state.metrics for state in states if state.metrics]),
        sources=row.sources,
        message=_message(row, states),
    )


def _message(row: Row, states: Sequence[_State]) -> str | None:
    """Return the first message, failures first; one of several experiments begins with its name."""
    told = [number for number, state in enumerate(states) if state.message]
    first = min(told, key=lambda number: states[number].phase not in _BAD, default=None)
    if first is None:
        return None
    text = states[first].message
    return sweep_messages.of_experiment(row.experiments[first].name, text) if len(row.experiments) > 1 else text


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the experiments that have it."""
    keys = list(dict.fromkeys(key for metrics in found for key in metrics))[:MAX_HEADLINES]
    values = {key: [metrics[key] for metrics in found if key in metrics] for key in keys}
    return {key: sum(each) / len(each) for key, each in values.items()}


def _phase(phases: Sequence[Phase], *, is_suspended: bool) -> Phase:
    """Return the phase of several experiments together."""
    if all(phase in _OVER for phase in phases):
        return Phase.FAILED if any(phase in _BAD for phase in phases) else Phase.SUCCEEDED
    if is_suspended:
        return Phase.SUSPENDED
    return Phase.PENDING if all(phase is Phase.PENDING for phase in phases) else Phase.RUNNING


def _counts(phases: Sequence[Phase]) -> SweepCounts:
    found = Counter(phases)
    return SweepCounts(
        total=len(phases),
        pending=found[Phase.PENDING],
        running=found[Phase.RUNNING] + found[Phase.SUSPENDED],
        succeeded=found[Phase.SUCCEEDED],
        failed=found[Phase.FAILED] + found[Phase.INVALID],
    )


def _blocked(
    snapshot: SweepSnapshot, states: Mapping[str, Sequence[_State]], waits: Mapping[str, Wait]
) -> list[tuple[_State, bool]]:
    """Return the state of each experiment, and whether a user must act before it can be written."""
    return [
        (state, waits.get(item.name) in {Wait.TAKEN, Wait.REFUSED})
        for row in snapshot.expansion.rows
        for item, state in zip(row.experiments, states[row.name], strict=bool(row.experiments))
    ]


def _facts(spec: SweepSpec, status: SweepStatus, blocked: Sequence[str]) -> Facts:
    counts, ended = status.experiments, status.phase in FINISHED
    failed = [row.name for row in status.variants if row.phase in _BAD]
    if ended:
        progressing = (False, Reason.FINISHED, sweep_messages.ended(counts.succeeded, counts.failed))
    elif spec.suspend:
        progressing = (False, Reason.SUSPENDED, sweep_messages.suspended())
    else:
        reason = Reason.EXPERIMENTS_RUNNING if counts.running else Reason.WAITING
        progressing = (True, reason, sweep_messages.running(counts.running, counts.pending))
    return {
        ConditionType.ACCEPTED: (True, Reason.VALID, sweep_messages.accepted()),
        ConditionType.PROGRESSING: progressing,
        ConditionType.BLOCKED: (True, Reason.EXPERIMENT_REFUSED, blocked[0])
        if blocked
        else (False, Reason.NOTHING_BLOCKS, sweep_messages.nothing_blocks()),
        ConditionType.SUSPENDED: (True, Reason.SUSPENDED, sweep_messages.suspended())
        if spec.suspend and not ended
        else (False, Reason.NOT_SUSPENDED, sweep_messages.not_suspended()),
        ConditionType.SUCCEEDED: (
            True,
            Reason.ALL_VARIANTS_SUCCEEDED,
            sweep_messages.ended(counts.succeeded, counts.failed),
        )
        if status.phase is Phase.SUCCEEDED
        else (False, Reason.NOT_FINISHED, sweep_messages.not_ended()),
        ConditionType.FAILED: (True, Reason.VARIANTS_FAILED, sweep_messages.failed(failed, counts.succeeded))
        if failed and ended
        else (False, Reason.NO_FAILURE, sweep_messages.no_failure()),
    }


def _with_conditions(snapshot: SweepSnapshot, status: SweepStatus, facts: Facts, now: datetime) -> SweepStatus:
    conditions = transitions(snapshot.status.condition, snapshot.generation, facts, now)
    reason = str(facts[explaining(status.phase, facts)][1])
    return status.model_copy(update={"conditions": conditions, "reason": reason})
