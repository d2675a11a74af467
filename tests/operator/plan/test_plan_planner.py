"""plan(snapshot, now): what happens to an experiment, told as stories."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot, raw_spec
from support.crd_validation import experiment_object, refusals
from support.model_cluster import ModelCluster, at_stage, child_of, started, status_of

from wrpo_engine.config import ErrorInfo, TerminationMessage
from wrpo_operator.api.status import AttemptState, ExperimentStatus, Phase, StageState
from wrpo_operator.plan.model import ChildState, DeleteChild, Plan, SetSuspend
from wrpo_operator.plan.planner import LOOK_AGAIN_S, plan
from wrpo_operator.plan.retry import JITTER

ALL_STAGES = 19


def live_names(cluster: ModelCluster) -> list[str]:
    return sorted(child.stage for child in cluster.children.values() if child.state is not ChildState.SUCCEEDED)


def condition(status: ExperimentStatus, kind: str) -> tuple[str, str, str]:
    found = status.condition(kind)
    assert found is not None
    return found.status, found.reason, found.message


def test_a_new_experiment_starts_with_prepare() -> None:
    answer = started(sources=[{"name": "a", "model": "org/a"}]).reconcile("demo")
    assert [str(start.node.id) for start in answer.apply] == ["prepare"]
    assert answer.status is not None
    assert answer.status.phase is Phase.PENDING
    assert [event.message for event in answer.events if event.type == "Normal"] == [
        f"Started stage prepare (attempt 1) as {answer.apply[0].child_name}."
    ]


def test_all_sources_are_sampled_at_once() -> None:
    cluster = started()
    at_stage(cluster, "sample/yi")
    assert live_names(cluster) == ["answer/target--held-out", "sample/qwen", "sample/yi"]


def test_an_experiment_runs_to_its_end() -> None:
    cluster = started()
    assert cluster.run_fairly("demo") is Phase.SUCCEEDED
    status = status_of(cluster)
    assert {stage.state for stage in status.stages} == {StageState.SUCCEEDED}
    assert len(status.stages) == ALL_STAGES
    assert (status.progress_text, status.reason, status.stage) == ("100%", "AllStagesSucceeded", None)
    assert condition(status, "Succeeded") == ("True", "AllStagesSucceeded", "All 19 stages have succeeded.")


def test_deleting_finished_children_re_runs_nothing() -> None:
    cluster = started()
    cluster.run_fairly("demo")
    before = status_of(cluster)
    cluster.children.clear()
    answer = cluster.reconcile("demo")
    assert (answer.apply, answer.status) == ((), before)


def test_a_failed_stage_ends_the_experiment_with_the_engine_s_words() -> None:
    cluster = started()
    at_stage(cluster, "sample/yi")
    name = child_of(cluster, "sample/yi")
    error = ErrorInfo(code="ModelNotFound", field="sources[1].model", message="No such model.", hint="Check the id.")
    pods = (make_pod(exit_code=66, error=error),)
    cluster.children[name] = replace(cluster.children[name], state=ChildState.FAILED, pods=pods)
    answer = cluster.reconcile("demo")
    status = status_of(cluster)
    assert condition(status, "Failed") == (
        "True", "StageFailed",
        "Stage sample/yi failed (attempt 1): ModelNotFound (spec.sources[1].model): No such model. Check the id.",
    )  # fmt: skip
    assert (status.phase, status.stage) == (Phase.FAILED, "sample/yi")
    assert {deletion.reason for deletion in answer.delete} == {"stage sample/yi has failed"}
    states = {stage.name: stage.state for stage in status.stages}
    assert (states["prepare"], states["sample/qwen"], states["train"]) == ("Succeeded", "Skipped", "Skipped")


def test_a_failure_stays_when_its_children_are_deleted() -> None:
    cluster = started()
    at_stage(cluster, "prepare")
    cluster.fail(child_of(cluster, "prepare"), 65)
    cluster.reconcile("demo")
    cluster.children.clear()
    assert cluster.reconcile("demo").apply == ()
    assert status_of(cluster).phase is Phase.FAILED


def test_an_edit_after_a_failure_tries_again_with_all_its_retries() -> None:
    cluster = started(retries={"limit": 0})
    at_stage(cluster, "prepare")
    cluster.fail(child_of(cluster, "prepare"), 65)
    cluster.reconcile("demo")
    cluster.edit("demo", images={"trainer": "org/fixed"})
    answer = cluster.reconcile("demo")
    assert [(str(start.node.id), start.attempt) for start in answer.apply] == [("prepare", 2)]
    assert cluster.run_fairly("demo") is Phase.SUCCEEDED


def test_a_crash_is_tried_again_after_the_backoff_and_then_no_more() -> None:
    cluster = started(retries={"limit": 1, "backoffSeconds": 60})
    at_stage(cluster, "prepare")
    cluster.fail(child_of(cluster, "prepare"), 1)
    waiting = cluster.reconcile("demo")
    assert waiting.apply == ()
    assert waiting.requeue_after_s is not None
    assert 60 <= waiting.requeue_after_s <= 60 * (1 + JITTER)
    cluster.advance(60 * (1 + JITTER))
    (second,) = cluster.reconcile("demo").apply
    assert second.attempt == 2
    cluster.run(second.child_name)
    cluster.fail(second.child_name, 1)
    cluster.reconcile("demo")
    assert condition(status_of(cluster), "Failed")[1:] == (
        "RetriesExhausted",
        "Stage prepare failed (attempt 2; 2 failures, and spec.retries.limit is 1): Broken: It broke.",
    )


def test_a_preempted_attempt_starts_anew_at_once() -> None:
    cluster = started(retries={"limit": 0})
    at_stage(cluster, "train")
    cluster.disrupt(child_of(cluster, "train"))
    (start,) = cluster.reconcile("demo").apply
    assert (str(start.node.id), start.attempt) == ("train", 2)
    stage = status_of(cluster).stage_named("train")
    assert stage is not None
    assert (stage.failed_attempts, stage.attempts[0].state) == (0, AttemptState.DISRUPTED)


def test_a_live_child_deleted_by_hand_comes_back_under_the_same_name() -> None:
    cluster = started()
    at_stage(cluster, "prepare")
    name = child_of(cluster, "prepare")
    cluster.delete(name)
    assert cluster.reconcile("demo").apply == ()
    cluster.vanish(name)
    assert [start.child_name for start in cluster.reconcile("demo").apply] == [name]


def test_suspending_stops_children_and_resuming_goes_on() -> None:
    cluster = started()
    at_stage(cluster, "train")
    name = child_of(cluster, "train")
    cluster.edit("demo", suspend=True)
    answer = cluster.reconcile("demo")
    assert answer.suspend == (SetSuspend("PyTorchJob", name, suspend=True),)
    assert (status_of(cluster).phase, status_of(cluster).reason) == (Phase.SUSPENDED, "SuspendedByUser")
    cluster.edit("demo", suspend=False)
    assert cluster.reconcile("demo").suspend == (SetSuspend("PyTorchJob", name, suspend=False),)
    assert cluster.run_fairly("demo") is Phase.SUCCEEDED


def test_with_a_queue_suspending_deletes_instead_for_suspend_is_kueue_s() -> None:
    cluster = started(scheduling={"queueName": "gpus"})
    at_stage(cluster, "train")
    name = child_of(cluster, "train")
    cluster.edit("demo", suspend=True)
    answer = cluster.reconcile("demo")
    assert answer.suspend == ()
    assert [(item.name, item.reason) for item in answer.delete] == [(name, "the experiment is suspended")]
    cluster.vanish(name)
    cluster.edit("demo", suspend=False)
    assert [start.attempt for start in cluster.reconcile("demo").apply] == [2]


def test_a_child_that_kueue_holds_is_left_alone_and_explained() -> None:
    cluster = started(scheduling={"queueName": "gpus"})
    cluster.reconcile("demo")
    name = child_of(cluster, "prepare")
    cluster.children[name] = replace(cluster.children[name], state=ChildState.SUSPENDED, suspended=True)
    answer = cluster.reconcile("demo")
    assert (answer.suspend, answer.delete) == ((), ())
    assert [(item.reason, item.message) for item in status_of(cluster).blockers] == [
        ("Queued", "Waiting for admission by Kueue queue `gpus`. `kubectl describe workload` shows what is missing.")
    ]


def test_an_experiment_made_suspended_starts_nothing() -> None:
    cluster = started(suspend=True)
    answer = cluster.reconcile("demo")
    assert answer.apply == ()
    assert status_of(cluster).phase is Phase.SUSPENDED


def test_an_edit_re_runs_what_depends_on_it_and_deletes_its_stale_children() -> None:
    cluster = started()
    cluster.run_fairly("demo")
    cluster.edit("demo", training={"learningRate": 1e-6})
    answer = cluster.reconcile("demo")
    assert [str(start.node.id) for start in answer.apply] == ["train"]
    assert sorted(deletion.name.split("-")[1] for deletion in answer.delete) == [
        "answer", "evaluate", "grade", "report", "train",
    ]  # fmt: skip
    assert cluster.run_fairly("demo") is Phase.SUCCEEDED
    assert max(cluster.started.values()) == 1


def test_two_experiments_with_the_same_sources_share_them() -> None:
    cluster = started()
    cluster.add("other", training={"objective": "DPO"})
    cluster.reconcile("demo")
    answer = cluster.reconcile("other")
    assert answer.apply == ()
    assert answer.requeue_after_s == 15.0
    assert status_of(cluster, "other").blockers[0].message == (
        "Experiment `demo` is creating the same artifact of prepare; it is used once it is complete."
    )
    assert cluster.run_fairly("other") is Phase.SUCCEEDED


def test_a_suspended_experiment_does_not_hold_up_another() -> None:
    cluster = started()
    cluster.add("other")
    cluster.reconcile("demo")
    cluster.edit("demo", suspend=True)
    cluster.reconcile("demo")
    assert len(cluster.reconcile("other").apply) == 1


def test_a_missing_claim_is_named_and_looked_for_again() -> None:
    snapshot = make_snapshot(make_experiment(), missing_objects=(("PersistentVolumeClaim", "wrpo"),))
    answer = plan(snapshot, NOON)
    assert (answer.apply, answer.requeue_after_s) == ((), 15.0)
    assert answer.status is not None
    assert answer.status.reason == "MissingObject"
    assert condition(answer.status, "Blocked")[2] == (
        "PersistentVolumeClaim/wrpo: PersistentVolumeClaim `wrpo` does not exist in the experiment's namespace. Create "
        "it; the experiment then continues."
    )


def test_a_missing_training_backend_blocks_training_alone() -> None:
    cluster = started()
    at_stage(cluster, "curate-sft")
    cluster.succeed(child_of(cluster, "curate-sft"))
    answer = plan(replace(cluster.snapshot("demo"), training_backends=frozenset()), cluster.now)
    assert answer.apply == ()
    assert answer.status is not None
    assert [(item.object, item.message) for item in answer.status.blockers] == [(
        "CustomResource/PyTorchJob",
        ("The cluster does not know kind PyTorchJob. Install Kubeflow's training operator; the experiment then "
         "continues."),
    )]  # fmt: skip


def with_pods(*pods: Any, **changes: Any) -> Plan:
    experiment = make_experiment(**changes)
    child = make_child(experiment, "prepare", ChildState.PENDING, pods=pods)
    return plan(make_snapshot(experiment, [child]), NOON)


def blockers(answer: Plan) -> list[tuple[str, str, str]]:
    assert answer.status is not None
    return [(item.object, item.reason, item.message) for item in answer.status.blockers]


def test_the_scheduler_s_words_are_passed_on_once_for_many_pods() -> None:
    pods = [make_pod(f"p{i}", phase="Pending", unschedulable_message="0/3 nodes have 8 GPUs") for i in range(3)]
    assert blockers(with_pods(*pods)) == [(
        "Pod/p0", "Unschedulable",
        ("No node fits the pod: 0/3 nodes have 8 GPUs. Change spec.resources or spec.scheduling, or wait for free "
        "capacity. (The same is true of 2 more pods of the stage.)"),
    )]  # fmt: skip


def test_an_image_that_cannot_be_pulled_is_named() -> None:
    pod = make_pod("p", phase="Pending", waiting_reason="ImagePullBackOff", waiting_message="no such image a/b")
    assert blockers(with_pods(pod)) == [(
        "Pod/p", "ImagePullFailed",
        "The image cannot be pulled: no such image a/b. Check spec.images and spec.imagePullSecrets.",
    )]  # fmt: skip


def test_a_missing_secret_is_named() -> None:
    pod = make_pod(
        phase="Pending", waiting_reason="CreateContainerConfigError", waiting_message='secret "hf" not found'
    )
    assert blockers(with_pods(pod))[0][1:] == (
        "ContainerConfigError",
        (
            'The container cannot be created: secret "hf" not found. Check that the Secrets named in spec.env and '
            "spec.storage exist."
        ),
    )


def test_an_edit_of_settings_reaches_a_child_that_waits_but_not_one_that_runs() -> None:
    cluster = started()
    cluster.reconcile("demo")
    name = child_of(cluster, "prepare")
    cluster.edit("demo", resources={"prepare": {"requests": {"cpu": 1}}})
    (deletion,) = cluster.reconcile("demo").delete
    assert (deletion.name, deletion.reason) == (name, "its settings were edited before it ran")
    cluster.vanish(name)
    (start,) = cluster.reconcile("demo").apply
    assert start.attempt == 2
    cluster.run(start.child_name)
    cluster.edit("demo", resources={"prepare": {"requests": {"cpu": 2}}})
    assert cluster.reconcile("demo").delete == ()


def test_waiting_too_long_fails_with_the_reason() -> None:
    experiment = make_experiment(deadlines={"preRunningSeconds": 60})
    pod = make_pod("p", phase="Pending", unschedulable_message="no GPUs.")
    child = make_child(experiment, "prepare", ChildState.PENDING, pods=(pod,))
    early = plan(make_snapshot(experiment, [child]), NOON)
    assert (early.delete, early.requeue_after_s) == ((), LOOK_AGAIN_S)
    cluster_time = NOON.replace(minute=1)
    late = plan(make_snapshot(experiment, [child]), cluster_time)
    assert late.delete == (DeleteChild("Job", child.name, child.uid, "no pod ran in time"),)
    assert late.status is not None
    assert condition(late.status, "Failed")[1:] == (
        "PendingTooLong",
        (
            "Stage prepare failed (attempt 1): no pod ran within 60 s (spec.deadlines.preRunningSeconds). No node "
            "fits the pod: no GPUs. Change spec.resources or spec.scheduling, or wait for free capacity."
        ),
    )


def test_an_experiment_being_deleted_is_left_to_the_garbage_collector() -> None:
    experiment = make_experiment(deleting=True)
    child = make_child(experiment, "prepare")
    todo = plan(make_snapshot(experiment, [child]), NOON)
    assert todo == Plan(status=todo.status)


def test_an_experiment_that_a_finalizer_holds_tells_what_its_children_did_and_starts_nothing() -> None:
    experiment = make_experiment(deleting=True, generation=2)
    child = make_child(experiment, "prepare", ChildState.SUCCEEDED)
    status = plan(make_snapshot(experiment, [child]), NOON).status
    assert status is not None
    assert status.observed_generation == 2
    assert status.stages[0].state is StageState.SUCCEEDED
    progressing = status.condition("Progressing")
    assert progressing is not None
    assert (progressing.status, progressing.message) == (
        "False",
        "The experiment is being deleted and waits for a finalizer; no stage starts.",
    )


def test_an_invalid_spec_is_told_and_nothing_is_destroyed() -> None:
    valid = make_experiment()
    child = make_child(valid, "prepare")
    status = plan(make_snapshot(valid, [child]), NOON).status
    assert status is not None
    errors = ("spec.training.beta is 0: too small.",)
    broken = replace(valid, spec=None, spec_errors=errors, generation=2, status=status)
    answer = plan(make_snapshot(broken, [child]), NOON)
    assert (answer.apply, answer.delete, answer.suspend) == ((), (), ())
    assert answer.status is not None
    assert answer.status.phase is Phase.INVALID
    assert condition(answer.status, "Accepted") == ("False", "InvalidSpec", errors[0])
    assert answer.status.stages == status.stages
    assert [(event.type, event.message) for event in answer.events] == [("Warning", errors[0])]


def test_the_result_s_metrics_and_cache_use_land_in_the_stage() -> None:
    experiment = make_experiment()
    message = TerminationMessage(outcome="Succeeded", cached=True, rows=7, metrics={"loss": 0.5}, artifact="prepare/x")
    pod = replace(make_pod(exit_code=0), termination=message)
    child = make_child(experiment, "prepare", ChildState.SUCCEEDED, pods=(pod,))
    answer = plan(make_snapshot(experiment, [child]), NOON)
    assert answer.status is not None
    stage = answer.status.stages[0]
    assert (stage.metrics, stage.cached, stage.artifact) == ({"loss": 0.5, "rows": 7.0}, True, f"prepare/{stage.hash}")
    assert "its artifact already existed" in answer.events[1].message


def test_a_result_seen_late_is_filled_in() -> None:
    experiment = make_experiment()
    child = make_child(experiment, "prepare", ChildState.SUCCEEDED)
    first = plan(make_snapshot(experiment, [child]), NOON).status
    assert first is not None
    assert first.stages[0].metrics == {}
    pod = replace(make_pod(exit_code=0), termination=TerminationMessage(outcome="Succeeded", rows=3))
    late = plan(make_snapshot(replace(experiment, status=first), [replace(child, pods=(pod,))]), NOON).status
    assert late is not None
    assert late.stages[0].metrics == {"rows": 3.0}


def test_gpu_time_is_counted_when_an_attempt_ends() -> None:
    cluster = started(training={"nodes": 2, "gpusPerNode": 4}, scheduling={"gang": "BestEffort"})
    at_stage(cluster, "train")
    cluster.advance(100)
    cluster.succeed(child_of(cluster, "train"))
    cluster.reconcile("demo")
    stage = status_of(cluster).stage_named("train")
    assert stage is not None
    assert stage.gpu_seconds == 100 * 2 * 4
    cluster.reconcile("demo")
    assert status_of(cluster).stage_named("train") == stage


def test_a_transition_time_changes_only_with_the_status_of_its_condition() -> None:
    cluster = started()
    cluster.reconcile("demo")
    before = {item.type: item.last_transition_time for item in status_of(cluster).conditions}
    cluster.advance(100)
    cluster.run_fairly("demo")
    after = {item.type: item.last_transition_time for item in status_of(cluster).conditions}
    changed = {kind for kind, time in after.items() if time != before[kind]}
    assert changed == {"Progressing", "Succeeded"}


def test_a_status_edited_by_hand_into_nothing_re_runs_only_what_has_no_child() -> None:
    cluster = started()
    cluster.run_fairly("demo")
    cluster.experiments["demo"].status = ExperimentStatus()
    answer = cluster.reconcile("demo")
    assert answer.apply == ()
    assert status_of(cluster).phase is Phase.SUCCEEDED


def test_the_largest_status_fits_into_etcd_and_its_schema() -> None:
    """A stage that failed often, with long words and many metrics, 75 times: 32 sources make that many stages."""
    cluster = started(retries={"limit": 20, "backoffSeconds": 0})
    error = ErrorInfo(code="Broken", message="x" * 4000)
    metrics = {f"metric-{i:03}-{'x' * 20}": 0.123456789 for i in range(99)}
    for attempt in range(1, 9):
        (start,) = cluster.reconcile("demo").apply
        cluster.run(start.child_name)
        child = cluster.children[start.child_name]
        pod = make_pod(exit_code=1, error=error, finished_at=cluster.now)
        state = ChildState.FAILED
        if attempt == 8:
            pod = replace(make_pod(exit_code=0), termination=TerminationMessage(outcome="Succeeded", metrics=metrics))
            state = ChildState.SUCCEEDED
        cluster.children[child.name] = replace(child, state=state, pods=(pod,), finished_at=cluster.now)
        cluster.artifacts.add(child.artifact_key)
    cluster.reconcile("demo")
    stored = status_of(cluster).to_dict()
    stage = stored["stages"][0]
    assert (len(stage["attempts"]), len(stage["metrics"])) == (5, 64)
    assert len(json.dumps(stage)) * 75 < 1_000_000
    assert refusals(experiment_object(raw_spec()) | {"status": stored}) == []


def test_the_children_of_a_removed_stage_are_deleted() -> None:
    cluster = started()
    at_stage(cluster, "report")
    name = child_of(cluster, "report")
    cluster.edit("demo", report={"enabled": False})
    assert [deletion.name for deletion in cluster.reconcile("demo").delete] == [name]
    assert status_of(cluster).phase is Phase.SUCCEEDED
