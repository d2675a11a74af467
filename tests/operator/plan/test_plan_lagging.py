"""Between the end of a pod and its controller's word on it, however long that takes, what the pod says counts."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot, node_of

from wrpo_operator.api.status import Attempt, AttemptState, ExperimentStatus, StageState, StageStatus, to_time
from wrpo_operator.plan.model import ChildState, Experiment, Plan, PodFact
from wrpo_operator.plan.planner import plan

HOUR = timedelta(hours=1)
DONE = make_pod("p", exit_code=0, finished_at=NOON)


def recorded(experiment: Experiment, stage: str, **attempt: Any) -> Experiment:
    """Return the experiment with a status that records one attempt of a stage."""
    node = node_of(experiment, stage)
    entry = Attempt(number=1, child="c", **attempt)
    status = StageStatus(name=stage, state=StageState.RUNNING, hash=node.hash, attempts=(entry,))
    return replace(experiment, status=ExperimentStatus(stages=(status,), observed_generation=experiment.generation))


def look(experiment: Experiment, state: ChildState, pods: tuple[PodFact, ...], stage: str = "prepare") -> Plan:
    child = make_child(experiment, stage, state, pods=pods)
    return plan(make_snapshot(experiment, [child]), NOON + HOUR)


@pytest.mark.parametrize("field", ["preRunningSeconds", "activeSeconds"])
def test_no_deadline_ends_a_child_whose_pod_has_ended_while_its_controller_is_away(field: str) -> None:
    experiment = make_experiment(deadlines={field: 60})
    experiment = recorded(experiment, "prepare", state=AttemptState.RUNNING, started_at=to_time(NOON))
    answer = look(experiment, ChildState.RUNNING, (DONE,))
    assert answer.delete == ()
    assert answer.status is not None
    assert (answer.status.phase, answer.status.stages[0].state) == ("Running", "Running")
    assert answer.status.stages[0].attempts[0].pending_since is None
    assert answer.requeue_after_s is None


def test_a_deadline_still_ends_a_child_of_which_one_pod_runs() -> None:
    experiment = make_experiment(deadlines={"activeSeconds": 60}, sampling={"shards": 2})
    answer = look(experiment, ChildState.RUNNING, (DONE, make_pod("q")))
    assert [item.reason for item in answer.delete] == ["it ran too long"]


SHARDS: dict[str, Any] = {"sampling": {"shards": 2}}
OUTDATED: dict[str, tuple[str, tuple[PodFact, ...], bool]] = {
    "it waits for its pod": ("prepare", (make_pod("p", phase="Pending"),), True),
    "its pod was refused": ("prepare", (), True),
    "its pod has succeeded": ("prepare", (DONE,), False),
    "one of two shards has succeeded, the other was never made": ("sample/qwen", (DONE,), True),
    "both shards have succeeded": ("sample/qwen", (DONE, replace(DONE, name="q")), False),
    "one of two shards has succeeded, the other has failed": (
        "sample/qwen",
        (DONE, make_pod("q", exit_code=1)),
        True,
    ),
}


@pytest.mark.parametrize(("stage", "pods", "is_replaced"), OUTDATED.values(), ids=OUTDATED.keys())
def test_an_edit_of_settings_replaces_what_waits_and_never_what_has_done_its_work(
    stage: str, pods: tuple[PodFact, ...], is_replaced: bool
) -> None:
    experiment = make_experiment(**SHARDS)
    node = node_of(experiment, stage)
    attempt = Attempt(number=1, child="c", state=AttemptState.PENDING, settings="old")
    before = StageStatus(name=stage, state=StageState.WAITING, hash=node.hash, attempts=(attempt,))
    experiment = replace(experiment, status=ExperimentStatus(stages=(before,)))
    answer = look(experiment, ChildState.SUSPENDED, pods, stage)
    assert [item.reason for item in answer.delete] == (
        ["its settings were edited before it ran"] if is_replaced else []
    )
