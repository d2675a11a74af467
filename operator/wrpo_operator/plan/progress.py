"""How far stages and the experiment are, as percent and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wrpo_engine.config import TerminationMessage
from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.status import MAX_METRICS, Progress, StageState, StageStatus, from_time
from wrpo_operator.plan.memory import StageView
from wrpo_operator.plan.model import ChildFact, ProgressFact

_ROUND_S = 10
"""Estimates are rounded, so that they do not cause a status write with every post."""

MAX_REMAINING_S = 10 * 365 * 24 * 3600
"""Ten years: longer estimates mean nothing, and the API server stores integers of 64 bits only."""


@dataclass(frozen=True, slots=True)
class StageProgress:
    """What the progress posts of a running stage say together."""

    percent: int | None = None
    remaining_s: int | None = None
    metrics: Mapping[str, float] | None = None


def stage_progress(view: StageView, child: ChildFact, posts: Sequence[ProgressFact]) -> StageProgress:
    """Combine the shards' posts: mean percent (a shard that has finished counts 100, a silent one 0), longest rest."""
    if not posts and not child.succeeded_shards:
        return StageProgress()
    shards = view.node.runtime.shards if view.node.shape is Shape.INDEXED_JOB else 1
    silent = max(0, shards - len(posts))
    total = sum(min(100.0, max(0.0, post.percent)) for post in posts)
    total += 100.0 * min(silent, child.succeeded_shards)
    rests = [post.remaining_s for post in posts if post.remaining_s is not None]
    newest = max(posts, key=lambda post: post.received_at, default=None)
    return StageProgress(
        percent=min(100, int(total / max(shards, len(posts)))),
        remaining_s=_rounded(max(rests)) if rests else None,
        metrics=bounded_metrics(newest.metrics) if newest else None,
    )


def bounded_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return finite metrics, as many as the status may hold."""
    finite = {name[:128]: float(value) for name, value in metrics.items() if abs(value) < float("inf")}
    return dict(sorted(finite.items())[:MAX_METRICS])


def result_of(child: ChildFact) -> TerminationMessage | None:
    """Return the termination message that speaks for a finished child: the committing pod's, else the first pod's."""
    done = [(pod, pod.termination) for pod in child.pods if pod.termination and pod.termination.outcome == "Succeeded"]
    if not done:
        return None
    committed = [item for item in done if item[1].artifact]
    return min(committed or done, key=lambda item: (item[1].cached, item[0].index or 0, item[0].name))[1]


def overall(views: Sequence[StageView], stages: Sequence[StageStatus]) -> Progress:
    """Return the weighted progress of all stages, and the time left as the stages that ran so far suggest it."""
    weights = [STAGES[view.node.id.kind].weight for view in views]
    done = sum(weight * _percent(stage) / 100 for weight, stage in zip(weights, stages, strict=True))
    total = sum(weights)
    percent = int(100 * done / total) if total else 0
    if all(stage.state is StageState.SUCCEEDED for stage in stages):
        return Progress(percent=100, remaining_seconds=0)
    return Progress(percent=min(99, percent), remaining_seconds=_remaining(weights, stages))


def _percent(stage: StageStatus) -> float:
    if stage.state is StageState.SUCCEEDED:
        return 100.0
    return float(stage.progress or 0)


def _remaining(weights: Sequence[int], stages: Sequence[StageStatus]) -> int | None:
    """Return the seconds left: finished stages tell the seconds a unit of weight takes."""
    spent, worth = 0.0, 0
    for weight, stage in zip(weights, stages, strict=True):
        if stage.state is StageState.SUCCEEDED and not stage.cached and stage.started_at and stage.finished_at:
            spent += (from_time(stage.finished_at) - from_time(stage.started_at)).total_seconds()
            worth += weight
    if not worth:
        return None
    rest = 0.0
    for weight, stage in zip(weights, stages, strict=True):
        if stage.state is StageState.SUCCEEDED:
            continue
        if stage.remaining_seconds is not None:
            rest += stage.remaining_seconds
        else:
            rest += weight * (1 - _percent(stage) / 100) * spent / worth
    return _rounded(rest)


def _rounded(seconds: float) -> int:
    return round(min(MAX_REMAINING_S, max(0.0, seconds)) / _ROUND_S) * _ROUND_S
