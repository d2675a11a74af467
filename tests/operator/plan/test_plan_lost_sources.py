"""sampling.onSourceFailure: what follows when a source fails for good."""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot
from support.model_cluster import ModelCluster

from wrpo_operator.api.status import ExperimentStatus, Phase, StageState
from wrpo_operator.plan.model import ChildState
from wrpo_operator.plan.planner import plan

GO_ON: dict[str, Any] = {"sampling": {"onSourceFailure": "Continue"}, "retries": {"limit": 0}}


def make_cluster(**changes: Any) -> ModelCluster:
    cluster = ModelCluster()
    cluster.add("demo", **changes)
    return cluster


def status_of(cluster: ModelCluster) -> ExperimentStatus:
    return cluster.experiments["demo"].status


def let(cluster: ModelCluster, *, fail: set[str], rounds: int = 40) -> None:
    """Run everything; children of the stages in `fail` fail with a bad configuration."""
    for _ in range(rounds):
        cluster.reconcile("demo")
        for child in list(cluster.children.values()):
            if child.state is ChildState.PENDING:
                cluster.run(child.name)
            elif child.state is ChildState.RUNNING and child.stage in fail:
                cluster.fail(child.name, 78)
            elif child.state is ChildState.RUNNING:
                cluster.succeed(child.name)
        cluster.advance(60)
    cluster.reconcile("demo")


@pytest.mark.parametrize("stage", ["sample/yi", "score/yi"])
def test_the_experiment_goes_on_without_it_and_says_so(stage: str) -> None:
    cluster = make_cluster(**GO_ON)
    let(cluster, fail={stage})
    status = status_of(cluster)
    assert status.phase is Phase.SUCCEEDED
    degraded = status.condition("SourcesDegraded")
    assert degraded is not None
    assert (degraded.status, degraded.reason) == ("True", "SourceFailed")
    assert stage in degraded.message
    failed = status.stage_named(stage)
    assert failed is not None
    assert failed.state is StageState.FAILED
    assert status.progress is not None
    assert status.progress.percent == 100


def test_its_other_stages_do_not_run() -> None:
    cluster = make_cluster(**GO_ON)
    let(cluster, fail={"sample/yi"})
    scores = status_of(cluster).stage_named("score/yi")
    assert scores is not None
    assert scores.state is StageState.SKIPPED
    assert not any(child.stage == "score/yi" for child in cluster.children.values())


@pytest.mark.parametrize(("state", "is_warned"), [(ChildState.RUNNING, True), (ChildState.FAILED, False)])
def test_what_looks_like_a_mistake_about_it_is_said_no_more(state: ChildState, is_warned: bool) -> None:
    idle = {"name": "yi", "model": "org/yi", "resources": {"limits": {"nvidia.com/gpu": 4}}}
    experiment = make_experiment(**GO_ON, sources=[{"name": "qwen", "model": "org/qwen"}, idle])
    pods = (make_pod(exit_code=78),) if state is ChildState.FAILED else (make_pod(node="n"),)
    child = make_child(experiment, "sample/yi", state, pods=pods)
    prepared = make_child(experiment, "prepare", ChildState.SUCCEEDED)
    status = plan(make_snapshot(experiment, [prepared, child]), NOON).status
    assert status is not None
    warned = status.condition("Warned")
    assert warned is not None
    assert ("sample/yi" in warned.message, warned.status) == (is_warned, str(is_warned))


def test_without_the_option_the_experiment_fails() -> None:
    cluster = make_cluster(retries={"limit": 0})
    let(cluster, fail={"sample/yi"})
    assert status_of(cluster).phase is Phase.FAILED


def test_with_no_source_left_the_experiment_fails() -> None:
    cluster = make_cluster(**GO_ON)
    let(cluster, fail={"sample/yi", "sample/qwen"})
    status = status_of(cluster)
    assert status.phase is Phase.FAILED
    assert status.stage == "sample/qwen"


def test_a_failure_of_the_target_is_not_forgiven() -> None:
    cluster = make_cluster(**GO_ON)
    let(cluster, fail={"sample/target"})
    assert status_of(cluster).phase is Phase.FAILED


def test_an_edit_tries_the_source_again() -> None:
    cluster = make_cluster(**GO_ON)
    let(cluster, fail={"sample/yi"})
    cluster.edit("demo", retries={"limit": 1})
    let(cluster, fail=set())
    status = status_of(cluster)
    assert status.phase is Phase.SUCCEEDED
    degraded = status.condition("SourcesDegraded")
    assert degraded is not None
    assert degraded.status == "False"
