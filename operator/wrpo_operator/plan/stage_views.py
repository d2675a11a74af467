"""Views of stages: the recorded status updated with the facts of the children."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

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
from wrpo_operator.plan.classify import ENDED, LIVE, attempt_of
from wrpo_operator.plan.model import ChildFact, ChildState, Experiment, StageId, StageNode
from wrpo_operator.plan.resources import gpus_of
from wrpo_operator.plan.retry import RetryDecision, decide_next


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage: its updated record, and its children of the same hash."""

    node: StageNode
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


def edited_after_failure(experiment: Experiment) -> bool:
    """Return whether the spec was edited after the last status, which allows failed stages to retry."""
    observed = experiment.status.observed_generation
    return observed is not None and experiment.generation != observed


def has_failed_for_good(experiment: Experiment) -> bool:
    """Return whether the recorded failure is still valid: it is until the spec is edited."""
    return experiment.status.phase is Phase.FAILED and not edited_after_failure(experiment)


def build_views(
    experiment: Experiment,
    spec: ExperimentSpec,
    graph: Sequence[StageNode],
    children: Sequence[ChildFact],
    now: datetime,
) -> tuple[StageView, ...]:
    """Return the view of every stage, in the order of the graph."""
    return tuple(_build_view(experiment, spec, node, _of_node(children, node), now) for node in graph)


def _of_node(children: Sequence[ChildFact], node: StageNode) -> tuple[ChildFact, ...]:
    mine = (child for child in children if child.stage == str(node.id) and child.stage_hash == node.hash)
    return tuple(sorted(mine, key=lambda child: child.attempt))


def recorded(status: ExperimentStatus, node: StageNode) -> StageStatus | None:
    """Return the record of a stage if it has the same hash."""
    before = status.stage_named(str(node.id))
    return before if before is not None and before.hash == node.hash else None


def _build_view(
    experiment: Experiment, spec: ExperimentSpec, node: StageNode, children: tuple[ChildFact, ...], now: datetime
) -> StageView:
    before = recorded(experiment.status, node)
    base = before or StageStatus(name=str(node.id), state=StageState.PENDING, hash=node.hash)
    if before is not None and before.state is StageState.FAILED and edited_after_failure(experiment):
        forgiven = max((attempt.number for attempt in before.attempts), default=0)
        base = before.model_copy(update={"forgiven_attempts": forgiven, "failed_attempts": 0})
    attempts = _attempts(base, children, now)
    ended_before = {attempt.number for attempt in base.attempts if attempt.state in ENDED}
    new_ends = [attempt for attempt in attempts if attempt.state in ENDED and attempt.number not in ended_before]
    counted = count_failures(spec, node, base, new_ends)
    record = counted.model_copy(update={"attempts": attempts[-MAX_ATTEMPTS:]})
    done = before is not None and before.state is StageState.SUCCEEDED
    return StageView(
        node=node,
        record=record,
        before=before,
        children=children,
        succeeded=done or any(attempt.state is AttemptState.SUCCEEDED for attempt in attempts),
        next=decide(experiment, spec, node, record, attempts, now),
    )


def decide(
    experiment: Experiment,
    spec: ExperimentSpec,
    node: StageNode,
    record: StageStatus,
    attempts: Sequence[Attempt],
    now: datetime,
) -> RetryDecision:
    """Decide what follows these attempts, with the counters of the record."""
    return decide_next(
        attempts,
        forgiven=record.forgiven_attempts,
        failures=record.failed_attempts,
        policy=spec.retries,
        now=now,
        disruptions=record.consecutive_disruptions,
        seed=f"{experiment.uid}/{node.id}",
    )


def count_failures(
    spec: ExperimentSpec, node: StageNode, before: StageStatus, new_ends: Sequence[Attempt]
) -> StageStatus:
    """Return a record whose counters include attempts that have just ended."""
    failures = sum(
        attempt.state is AttemptState.FAILED and attempt.number > before.forgiven_attempts for attempt in new_ends
    )
    return before.model_copy(
        update={
            "failed_attempts": before.failed_attempts + failures,
            "consecutive_disruptions": _in_a_row(before.consecutive_disruptions, new_ends),
            "gpu_seconds": (before.gpu_seconds or 0) + gpu_seconds(new_ends, gpus_of(spec, node)),
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
    oldest = base.attempts[0].number if len(base.attempts) == MAX_ATTEMPTS else 0
    for child in children:
        if child.attempt < oldest:
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
