"""Counters of ended stages and attempts, from written statuses.

Statuses are counted where they are written. Only the leader writes them, and each change once, so nothing is counted
twice by standbys, by repeated watch events, or after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.status import AttemptState, StageState
from wrpo_operator.runtime.metrics import Metrics

ENDED = frozenset({AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.DISRUPTED, AttemptState.STOPPED})
FAILURES = frozenset({"Application", "Config", "Disruption"})


def count_status_write(metrics: Metrics, before: Mapping[str, Any], after: Mapping[str, Any] | None) -> None:
    """Count a status write and the stages and attempts that ended with it; `after` is None if it was refused."""
    metrics.status_writes.labels("error" if after is None else "done").inc()
    if after is not None:
        count_ended(metrics, before, after)


def count_ended(metrics: Metrics, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Count the attempts and stages that have ended between two statuses, and their GPU time."""
    known = {stage.get("name"): stage for stage in before.get("stages") or ()}
    for stage in after.get("stages") or ():
        old = known.get(stage.get("name"), {})
        if old.get("hash") != stage.get("hash"):
            old = {}
        kind = kind_of(stage)
        for attempt in _newly_ended(old, stage):
            failure = attempt.get("failure")
            metrics.attempts.labels(kind, attempt["state"], failure if failure in FAILURES else "").inc()
        grown = int(stage.get("gpuSeconds") or 0) - int(old.get("gpuSeconds") or 0)
        if grown > 0:
            metrics.gpu_seconds.labels(kind).inc(grown)
        if stage.get("state") in {StageState.SUCCEEDED, StageState.FAILED} and old.get("state") != stage["state"]:
            outcome = "Cached" if stage.get("cached") else str(stage["state"])
            metrics.stage_seconds.labels(kind, outcome).observe(_lasted_s(stage))


def kind_of(stage: Mapping[str, Any]) -> str:
    """Return a stage's kind: `sample` of `sample/qwen`."""
    kind = str(stage.get("name", "")).partition("/")[0]
    return kind if kind in STAGES else "other"


def _newly_ended(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    over = {attempt.get("number") for attempt in before.get("attempts") or () if attempt.get("state") in ENDED}
    for attempt in after.get("attempts") or ():
        if attempt.get("state") in ENDED and attempt.get("number") not in over:
            yield attempt


def _lasted_s(stage: Mapping[str, Any]) -> float:
    try:
        began, ended = (datetime.fromisoformat(str(stage[key])) for key in ("startedAt", "finishedAt"))
    except (KeyError, ValueError):
        return 0.0
    return max(0.0, (ended - began).total_seconds())
