"""When the children of an ended experiment are deleted."""

from __future__ import annotations

from typing import Any

import pytest
from support.model_cluster import at_stage, child_of, started, status_of

from wrpo_operator.api.status import Phase

FINISHED, FAILED = "ttlSecondsAfterFinished", "ttlSecondsAfterFailed"
TIMES: dict[str, tuple[dict[str, int], int | None, int | None]] = {
    "one time for both outcomes": ({FINISHED: 100}, 100, 100),
    "what failed is kept longer": ({FINISHED: 100, FAILED: 5000}, 100, 5000),
    "what failed goes earlier": ({FINISHED: 100, FAILED: 1}, 100, 1),
    "only what failed goes": ({FAILED: 100}, None, 100),
    "never": ({}, None, None),
}


def ended(outcome: Phase, spec: dict[str, Any]) -> Any:
    cluster = started(**spec)
    if outcome is Phase.FAILED:
        at_stage(cluster, "sample/yi")
        cluster.fail(child_of(cluster, "sample/yi"), 65)
        for child in list(cluster.children.values()):
            if child.state == "Running":
                cluster.succeed(child.name)
        cluster.reconcile("demo")
    else:
        cluster.run_fairly("demo")
    assert status_of(cluster).phase is outcome
    return cluster


@pytest.mark.parametrize("outcome", [Phase.SUCCEEDED, Phase.FAILED])
@pytest.mark.parametrize(("spec", "succeeded_s", "failed_s"), TIMES.values(), ids=TIMES.keys())
def test_children_are_deleted_when_the_time_of_the_outcome_is_over(
    outcome: Phase, spec: dict[str, int], succeeded_s: int | None, failed_s: int | None
) -> None:
    cluster = ended(outcome, spec)
    seconds = succeeded_s if outcome is Phase.SUCCEEDED else failed_s
    if seconds is not None:
        answer = cluster.reconcile("demo")
        assert (answer.delete, answer.requeue_after_s) == ((), float(seconds))
    before = len(cluster.children)
    assert before > 2
    cluster.advance(10**6 if seconds is None else seconds)
    cluster.reconcile("demo")
    cluster.reconcile("demo")
    assert len(cluster.children) == (before if seconds is None else 0)
    assert status_of(cluster).phase is outcome
