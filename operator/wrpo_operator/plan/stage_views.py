"""Views of stages: the recorded status updated with the facts of the children."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from wrpo_engine.contract.definition import Per
from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import (
    MAX_ATTEMPTS,
    Attempt,
    AttemptState,
    ExperimentStatus,
    Phase,
    StageState,
    StageStatus,
    from_time,
)
from wrpo_operator.plan.builder import source_of
from wrpo_operator.plan.classify import ENDED, LIVE, OUT_OF_MEMORY, attempt_of
from wrpo_operator.plan.model import ChildFact, ChildState, Experiment, StageId, StageNode
from wrpo_operator.plan.placing import placed
from wrpo_operator.plan.resources import gpus_of
from wrpo_operator.plan.results import with_result
from wrpo_operator.plan.retry import History, RetryDecision, decide_next


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage: its updated record, and its children of the same hash."""

    node: StageNode
    """With the placement of its last attempt."""
    unplaced: StageNode
    """As in the graph."""
    record: StageStatus
    """Attempts and counters are up to date; `state` is decided later."""
    before: StageStatus | None
    """The record of the same hash in the status."""
    children: tuple[ChildFact, ...]
    succeeded: bool
    next: RetryDecision
    """The next step if it neither succeeded nor has a live child."""

    @property
    def live(self) -> tuple[ChildFact, ...]:
        """Children whose pods may still run, oldest first."""
        return tuple(child for child in self.children if child.state in LIVE)

    @property
    def runnable(self) -> tuple[ChildFact, ...]:
        """Live children that are not being deleted and whose attempt the operator has not ended."""
        ended = {attempt.number for attempt in self.record.attempts if attempt.state in ENDED}
        return tuple(
            child for child in self.live if child.state is not ChildState.DELETING and child.attempt not in ended
        )

    @property
    def id(self) -> StageId:
        """The stage."""
        return self.node.id


Records = Mapping[str, StageStatus]
"""Records of stages by name."""


def records_of(views: Sequence[StageView]) -> Records:
    """Return the record of every stage as it is now observed."""
    return {str(view.id): view.record for view in views}


def edited_after_failure(experiment: Experiment) -> bool:
    """Return whether the spec was edited after the last status, which allows failed stages to retry."""
    observed = experiment.status.observed_generation
    return observed is not None and experiment.generation != observed


def has_failed_for_good(experiment: Experiment) -> bool:
    """Return whether the recorded failure is still valid: it is until the spec is edited."""
    return experiment.status.phase is Phase.FAILED and not edited_after_failure(experiment)


def as_recorded(experiment: Experiment, graph: Sequence[StageNode]) -> tuple[StageNode, ...]:
    """Return the graph of an experiment that has succeeded with the stages and hashes that succeeded.

    A new version of the operator may give the same spec other stages; they run if the spec is edited. The graph of an
    experiment that has not succeeded is returned unchanged.
    """
    status = experiment.status
    if status.phase is not Phase.SUCCEEDED or edited_after_failure(experiment):
        return tuple(graph)
    records = {record.name: record for record in status.stages}
    return tuple(replace(node, hash=record.hash) for node in graph if (record := records.get(str(node.id))) is not None)


def build_views(
    experiment: Experiment,
    spec: ExperimentSpec,
    graph: Sequence[StageNode],
    children: Sequence[ChildFact],
    now: datetime,
) -> tuple[StageView, ...]:
    """Return the view of every stage, in the order of the graph."""
    return tuple(_build_view(experiment, spec, node, _of_node(children, node), now) for node in graph)


def without_idle(views: Sequence[StageView]) -> tuple[StageView, ...]:
    """Return the views without inspections that nothing needs any more.

    An experiment that ran before models were inspected, or whose stages have all succeeded, inspects nothing.
    """
    read = {stage for view in views for stage in view.node.inputs.values()}
    awaited = {stage for view in views if not view.succeeded for stage in view.node.after}
    known = {stage for view in views for stage in view.node.after} - read
    idle = {
        view.id
        for view in views
        if view.id in known and view.id not in awaited and view.before is None and not view.children
    }
    return tuple(view for view in views if view.id not in idle)


def owners(spec: ExperimentSpec, views: Sequence[StageView]) -> dict[StageId, frozenset[str]]:
    """Return for each stage the sources that it serves; empty if it serves the target or all of the experiment.

    A stage for a model serves the sources of the stages that need it, if all of these serve sources only.
    """
    found: dict[StageId, frozenset[str]] = {}
    for view in reversed(views):  # users first
        if STAGES[view.id.kind].per is Per.MODEL:
            users = [found[other.id] for other in views if view.id in other.node.upstream]
            found[view.id] = frozenset().union(*users) if all(users) else frozenset()
        else:
            source = source_of(spec, view.id)
            found[view.id] = frozenset() if source is None else frozenset({source})
    return found


def _of_node(children: Sequence[ChildFact], node: StageNode) -> tuple[ChildFact, ...]:
    mine = (child for child in children if child.stage == str(node.id) and child.stage_hash == node.hash)
    return tuple(sorted(mine, key=lambda child: child.attempt))


def recorded(status: ExperimentStatus, node: StageNode) -> StageStatus | None:
    """Return the record of a stage if it has the same hash."""
    before = status.stage_named(str(node.id))
    return before if before is not None and before.hash == node.hash else None


def _build_view(
    experiment: Experiment, spec: ExperimentSpec, unplaced: StageNode, children: tuple[ChildFact, ...], now: datetime
) -> StageView:
    before = recorded(experiment.status, unplaced)
    base = before or StageStatus(name=str(unplaced.id), state=StageState.PENDING, hash=unplaced.hash)
    if children and children[-1].placement is not None and children[-1].attempt > base.forgiven_attempts:
        # The status may have been lost; the child says what its pods have.
        base = base.model_copy(update={"placement": children[-1].placement})
    if before is not None and _is_forgiven(before, children) and edited_after_failure(experiment):
        forgiven = max((attempt.number for attempt in before.attempts), default=0)
        base = base.model_copy(update={"forgiven_attempts": forgiven, "failed_attempts": 0, "placement": None})
    node = placed(unplaced, base.placement)
    attempts = _attempts(base, children, now)
    ended_before = {attempt.number for attempt in base.attempts if attempt.state in ENDED}
    new_ends = [attempt for attempt in attempts if attempt.state in ENDED and attempt.number not in ended_before]
    counted = count_failures(spec, node, base, new_ends)
    record = counted.model_copy(update={"attempts": attempts[-MAX_ATTEMPTS:]})
    done = before is not None and before.state is StageState.SUCCEEDED
    succeeded = done or any(attempt.state is AttemptState.SUCCEEDED for attempt in attempts)
    return StageView(
        node=node,
        unplaced=unplaced,
        # The result is added later if the pods' messages are not yet observed.
        record=with_result(record, children) if succeeded else record,
        before=before,
        children=children,
        succeeded=succeeded,
        next=decide(experiment, spec, node, history_of(record, attempts), now),
    )


def _is_forgiven(before: StageStatus, children: Sequence[ChildFact]) -> bool:
    """Return whether an edit of the spec lets a stage start again as if nothing had failed.

    So it does a stage that no more room can be given to, because the edit may change what it needs.
    """
    is_live = any(child.state in LIVE for child in children)
    is_out_of_room = not is_live and bool(before.attempts) and before.attempts[-1].reason == OUT_OF_MEMORY
    return before.state is StageState.FAILED or (before.state is StageState.WAITING and is_out_of_room)


def can_get_more_room(node: StageNode) -> bool:
    """Return whether the operator may give the next attempt of a stage more accelerator memory."""
    return node.placement is not None and node.placement.per_pod > 0


def history_of(record: StageStatus, attempts: Sequence[Attempt]) -> History:
    """Return these attempts with the counters of the record, which may have dropped the oldest ones."""
    return History(attempts, record.forgiven_attempts, record.failed_attempts, record.consecutive_disruptions)


def decide(
    experiment: Experiment, spec: ExperimentSpec, node: StageNode, history: History, now: datetime
) -> RetryDecision:
    """Decide what follows the attempts of a stage."""
    seed = f"{experiment.uid}/{node.id}"
    return decide_next(history, spec.retries, now, seed=seed, room=can_get_more_room(node))


def count_failures(
    spec: ExperimentSpec, node: StageNode, before: StageStatus, new_ends: Sequence[Attempt]
) -> StageStatus:
    """Return a record whose counters include attempts that have just ended."""
    failures = sum(
        attempt.state is AttemptState.FAILED
        and attempt.number > before.forgiven_attempts
        and not (attempt.reason == OUT_OF_MEMORY and can_get_more_room(node))
        for attempt in new_ends
    )
    return before.model_copy(
        update={
            "failed_attempts": before.failed_attempts + failures,
            "consecutive_disruptions": _in_a_row(before.consecutive_disruptions, new_ends),
            "gpu_seconds": (before.gpu_seconds or 0) + (gpu_seconds(new_ends, gpus_of(spec, node)) if new_ends else 0),
        }
    )


def _in_a_row(before: int, ends: Sequence[Attempt]) -> int:
    """Return the number of consecutive disruptions up to the last of these ends."""
    count = before
    for end in ends:
        count = count + 1 if end.state is AttemptState.DISRUPTED else 0
    return count


def _attempts(base: StageStatus, children: Sequence[ChildFact], now: datetime) -> tuple[Attempt, ...]:
    """Return the recorded attempts updated by their children, and attempts that are not yet recorded."""
    known = {attempt.number: attempt for attempt in base.attempts}
    # Attempts removed from a full list were counted when they ended.
    is_full = len(base.attempts) == MAX_ATTEMPTS
    for child in children:
        if is_full and child.attempt < base.attempts[0].number:
            continue
        attempt = attempt_of(child, known.get(child.attempt), now)
        if attempt is not None:
            known[child.attempt] = attempt
    return tuple(known[number] for number in sorted(known))


def gpu_seconds(attempts: Sequence[Attempt], gpus: int) -> int:
    """Return the GPU time of ended attempts, in seconds."""
    spans = (
        (from_time(attempt.finished_at) - from_time(attempt.started_at)).total_seconds()
        for attempt in attempts
        if attempt.started_at and attempt.finished_at
    )
    return int(sum(max(0.0, span) for span in spans)) * gpus
