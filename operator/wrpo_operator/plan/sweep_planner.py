"""Planner of sweeps: from the observed experiments to the actions of one reconcile. Pure.

The experiments plan their stages themselves, and share equal ones. A sweep creates, edits, suspends and deletes
experiments, and never more than spec.parallelExperiments of them run.
"""

from __future__ import annotations

from datetime import datetime

from wrpo_operator.api.sweep import SweepSpec
from wrpo_operator.api.sweep_status import SourceOrder
from wrpo_operator.plan.events import condition_events
from wrpo_operator.plan.sweep_expand import Wanted, source_order
from wrpo_operator.plan.sweep_model import Action, Member, SweepPlan, SweepSnapshot, Wait, Write
from wrpo_operator.plan.sweep_rows import build_sweep_status, invalid_sweep_status


def plan_sweep(snapshot: SweepSnapshot, now: datetime) -> SweepPlan:
    """Return the actions for a snapshot.

    Invariants: an experiment that runs is never stopped to make room for another; at most spec.parallelExperiments run,
    unless the limit was lowered; only experiments of the sweep are written; an invalid sweep changes none.
    """
    spec = snapshot.spec
    if snapshot.is_deleting:
        return SweepPlan(snapshot.status)
    if spec is None or snapshot.errors:
        status = invalid_sweep_status(snapshot, now)
        return SweepPlan(status, events=tuple(condition_events(snapshot.status, status)))
    writes, waits = _writes(snapshot, spec)
    names = {wanted.name for row in snapshot.expansion.rows for wanted in row.experiments}
    is_decided = all(row.experiments for row in snapshot.expansion.rows)
    # Experiments of undecided rows have names that are not known yet.
    unwanted = tuple(m for m in snapshot.members if is_decided and m.name not in names and not m.is_deleting)
    order = _order(snapshot)
    status = build_sweep_status(snapshot, spec, waits, order, now)
    return SweepPlan(status, writes, unwanted, tuple(condition_events(snapshot.status, status)))


def _writes(snapshot: SweepSnapshot, spec: SweepSpec) -> tuple[tuple[Write, ...], dict[str, Wait]]:
    """Return the writes in the order of the spec, and why other experiments wait."""
    members = {member.name: member for member in snapshot.members}
    wanted = [item for row in snapshot.expansion.rows for item in row.experiments]
    most = len(wanted) if spec.parallel_experiments is None else spec.parallel_experiments
    # Also those of removed variants: their pods run until they are gone.
    free = most - sum(member.is_active for member in snapshot.members)
    writes, waits = list[Write](), dict[str, Wait]()
    for item in wanted:
        action, wait, takes = _decide(snapshot, spec, item, members.get(item.name), has_room=free > 0)
        free -= takes
        if action is not None:
            writes.append(Write(action, item))
        if wait is not None:
            waits[item.name] = wait
    return tuple(writes), waits


def _decide(
    snapshot: SweepSnapshot, spec: SweepSpec, item: Wanted, member: Member | None, *, has_room: bool
) -> tuple[Action | None, Wait | None, int]:
    """Return the action for an experiment, why it waits, and the number of slots that the action takes."""
    if item.name in snapshot.taken:
        return None, Wait.TAKEN, 0
    action, wait, takes = _unless_refused(spec, item, member, has_room=has_room)
    if action in {Action.CREATE, Action.UPDATE} and item.name in snapshot.refused:
        return None, Wait.REFUSED, 0
    return action, wait, takes


def _unless_refused(
    spec: SweepSpec, item: Wanted, member: Member | None, *, has_room: bool
) -> tuple[Action | None, Wait | None, int]:
    if member is None or member.is_deleting:
        if member is not None:
            return None, Wait.REMOVAL, 0
        may_start = has_room and not spec.suspend
        return (Action.CREATE, None, 1) if may_start else (None, Wait.SLOT, 0)
    if spec.suspend:
        return (Action.SUSPEND if member.is_active else None), None, 0
    is_outdated = member.digest != item.digest
    if member.is_active:
        return (Action.UPDATE if is_outdated else None), None, 0
    is_held = member.was_suspended_by_sweep and not member.has_ended
    if not is_outdated and not is_held:
        # Ended, or suspended by a user.
        return None, None, 0
    if not has_room:
        return None, Wait.EDIT if is_outdated else Wait.SLOT, 0
    return (Action.UPDATE if is_outdated else Action.RESUME), None, 1


def _order(snapshot: SweepSnapshot) -> SourceOrder | None:
    """Return the recorded order of sources if it is valid, or the new one if all scores are known."""
    scores, known = snapshot.expansion.scores, snapshot.status.source_order
    if scores is None:
        return None
    if known is not None and known.key == scores.key:
        return known
    means, lost = dict[str, float](), set[str]()
    for member in snapshot.members:
        for source, (key, mean) in member.scores.items():
            if scores.hashes.get(source) == key and mean is not None:
                means[source] = mean
            elif scores.hashes.get(source) == key:
                lost.add(source)
    return source_order(scores, means, lost)
