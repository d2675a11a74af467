"""Progress of stages and of the experiment, in percent and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.status import Progress, StageState, StageStatus, from_time
from wrpo_operator.plan.model import ChildFact, ProgressFact
from wrpo_operator.plan.results import bounded_metrics
from wrpo_operator.plan.stage_views import StageView

_ROUND_S = 10
"""Estimates are rounded to this many seconds, so that not every post causes a status write."""

MAX_REMAINING_S = 10 * 365 * 24 * 3600
"""Ten years: longer estimates are meaningless, and the API server stores only 64-bit integers."""


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Combined progress posts of a running stage."""

    percent: int | None = None
    remaining_s: int | None = None
    metrics: Mapping[str, float] | None = None


def stage_progress(view: StageView, child: ChildFact, posts: Sequence[ProgressFact]) -> StageProgress:
    """Combine the shards' posts: mean percent (a finished shard counts 100, one without posts 0), maximum remaining
    time.
    """
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


def overall(views: Sequence[StageView], stages: Sequence[StageStatus]) -> Progress:
    """Return the weighted progress of all stages, and the remaining time estimated from finished stages."""
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
    """Return the remaining seconds, from the seconds per unit of weight of finished stages."""
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
