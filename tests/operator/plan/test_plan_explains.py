"""status.blockers: what the planner makes of the cluster's words, beyond pods that cannot be scheduled or pulled."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot

from wrpo_engine.config import ErrorInfo, TerminationMessage
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.lifecycle import Retries
from wrpo_operator.api.status import Attempt, AttemptState, Blocker, to_time
from wrpo_operator.plan.classify import failure_of
from wrpo_operator.plan.model import ChildState, Note, ProgressFact, Snapshot
from wrpo_operator.plan.planner import LOOK_AGAIN_S, plan
from wrpo_operator.plan.retry import GiveUp, History, StartAttempt, decide_next

BEFORE_SFT = ("prepare", "sample/qwen", "sample/yi", "score/qwen", "score/yi", "curate-sft")


def blockers_of(snapshot: Snapshot, now: Any = NOON) -> tuple[Blocker, ...]:
    status = plan(snapshot, now).status
    assert status is not None
    return status.blockers


@pytest.mark.parametrize(
    ("reason", "message", "remedy"),
    [
        ("QuotaExceeded", 'pods "x" is forbidden: exceeded quota: gpus', "raise the ResourceQuota"),
        ("PodSecurityViolation", "violates PodSecurity restricted", "spec.podTemplate"),
        ("WaitingForQuota", "couldn't assign flavors to pod set main", "when the queue has free quota"),
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "x" : secret "y" not found',
            "Create the Secret, ConfigMap",
        ),
        ("FailedAttachVolume", "Multi-Attach error for volume pvc-1", "ReadWriteMany claim"),
        ("FailedCreatePodSandBox", "plugin type=calico failed", "spec.scheduling.nodeSelector"),
        ("Preempted", "Preempted to accommodate a workload of higher priority", "no retry is used up"),
    ],
)
def test_what_a_controller_says_of_a_waiting_child_is_shown_with_a_remedy(
    reason: str, message: str, remedy: str
) -> None:
    experiment = make_experiment()
    child = make_child(experiment, "prepare", ChildState.PENDING)
    note = Note("Workload/job-prepare", Reason(reason), message)
    snapshot = replace(make_snapshot(experiment, [child]), notes={child.uid: (note,)})
    (blocker,) = blockers_of(snapshot)
    assert (blocker.object, blocker.reason, blocker.stage) == ("Workload/job-prepare", reason, "prepare")
    assert blocker.message.startswith(message)
    assert remedy in blocker.message
    status = plan(snapshot, NOON).status
    assert status is not None
    assert status.reason == reason


def test_a_waiting_child_is_looked_at_again_for_no_watch_tells_why_it_waits() -> None:
    experiment = make_experiment()
    child = make_child(experiment, "prepare", ChildState.PENDING)
    assert plan(make_snapshot(experiment, [child]), NOON).requeue_after_s == LOOK_AGAIN_S


def test_a_running_child_with_a_pod_that_does_not_run_is_looked_at_again() -> None:
    experiment = make_experiment(sampling={"shards": 2})
    pods = (make_pod("p0"), make_pod("p1", phase="Pending", node="n"))
    done = make_child(experiment, "prepare", ChildState.SUCCEEDED)
    child = make_child(experiment, "sample/qwen", ChildState.RUNNING, pods=pods)
    other = make_child(experiment, "sample/yi", ChildState.RUNNING, pods=pods[:1])
    assert plan(make_snapshot(experiment, [done, child, other]), NOON).requeue_after_s == LOOK_AGAIN_S
    assert plan(make_snapshot(experiment, [done, replace(child, pods=pods[:1]), other]), NOON).requeue_after_s is None


@pytest.mark.parametrize(("pods", "wait_s"), [(1, LOOK_AGAIN_S), (2, None)], ids=["one pod is missing", "all run"])
def test_a_gang_that_lacks_pods_is_looked_at_again(pods: int, wait_s: float | None) -> None:
    experiment = make_experiment(
        training={"nodes": 2}, scheduling={"gang": "BestEffort"}, evaluation={"enabled": False}
    )
    facts = tuple(make_pod(f"p{index}") for index in range(pods))
    done = [make_child(experiment, stage, ChildState.SUCCEEDED) for stage in BEFORE_SFT]
    gang = make_child(experiment, "sft", ChildState.RUNNING, pods=facts)
    snapshot = make_snapshot(experiment, [*done, gang])
    answer = plan(snapshot, NOON)
    assert (answer.apply, answer.delete) == ((), ())
    assert answer.requeue_after_s == wait_s


def test_the_deadline_of_a_refused_pod_repeats_the_refusal() -> None:
    experiment = make_experiment(deadlines={"preRunningSeconds": 60})
    child = make_child(experiment, "prepare", ChildState.PENDING)
    note = Note(f"Job/{child.name}", Reason.QUOTA_EXCEEDED, "exceeded quota: gpus")
    snapshot = replace(make_snapshot(experiment, [child]), notes={child.uid: (note,)})
    status = plan(snapshot, NOON + timedelta(seconds=60)).status
    assert status is not None
    failed = status.condition("Failed")
    assert failed is not None
    assert "exceeded quota: gpus" in failed.message


def test_an_unbound_claim_is_named_while_a_child_waits() -> None:
    experiment = make_experiment()
    child = make_child(experiment, "prepare", ChildState.PENDING)
    snapshot = replace(make_snapshot(experiment, [child]), pending_claims=(("wrpo", "fast"),))
    (blocker,) = blockers_of(snapshot)
    assert (blocker.object, blocker.reason) == ("PersistentVolumeClaim/wrpo", "ClaimPending")
    assert "storage class `fast`" in blocker.message
    running = make_child(experiment, "prepare", ChildState.RUNNING)
    assert blockers_of(replace(snapshot, children=(running,))) == ()


def test_a_crash_loop_is_told() -> None:
    experiment = make_experiment()
    pod = make_pod("p", phase="Pending", waiting_reason="CrashLoopBackOff", waiting_message="back-off 5m0s")
    child = make_child(experiment, "prepare", ChildState.PENDING, pods=(pod,))
    (blocker,) = blockers_of(make_snapshot(experiment, [child]))
    assert (blocker.object, blocker.reason) == ("Pod/p", "CrashLooping")


def test_an_init_container_that_never_ends_is_told_and_its_sentence_is_steady() -> None:
    experiment = make_experiment()
    pod = make_pod("worker-0", phase="Pending", init_since=NOON)
    child = make_child(experiment, "prepare", ChildState.PENDING, pods=(pod,))
    snapshot = make_snapshot(experiment, [child])
    assert blockers_of(snapshot, NOON + timedelta(minutes=4)) == ()
    (early,) = blockers_of(snapshot, NOON + timedelta(minutes=6))
    (later,) = blockers_of(snapshot, NOON + timedelta(minutes=9))
    assert early.reason == "InitContainerWaiting"
    assert early.message == later.message


def stalled_snapshot(**post: Any) -> Snapshot:
    experiment = make_experiment(deadlines={"stalledSeconds": 600})
    child = make_child(experiment, "prepare", pods=(make_pod("p", phase="Running"),))
    fact = ProgressFact(40.0, None, {}, NOON + timedelta(minutes=30), advanced_at=NOON)
    return replace(make_snapshot(experiment, [child]), progress={("prepare", 1): (replace(fact, **post),)})


def test_a_stage_that_posts_but_does_not_advance_has_stalled_and_goes_on_running() -> None:
    at = NOON + timedelta(minutes=31)
    answer = plan(stalled_snapshot(), at)
    assert answer.status is not None
    (blocker,) = answer.status.blockers
    assert blocker.reason == "ProgressStalled"
    assert "at 40% for more than 30 min" in blocker.message
    assert answer.delete == ()
    assert answer.apply == ()


@pytest.mark.parametrize("post", [{"advanced_at": NOON + timedelta(minutes=25)}, {"percent": 100.0}])
def test_a_stage_that_advances_or_is_done_has_not_stalled(post: dict[str, Any]) -> None:
    assert blockers_of(stalled_snapshot(**post), NOON + timedelta(minutes=31)) == ()


def test_memory_that_ran_out_is_called_so() -> None:
    experiment = make_experiment()
    pod = make_pod("p", exit_code=137, terminated_reason="OOMKilled")
    failure = failure_of(make_child(experiment, "prepare", ChildState.FAILED, pods=(pod,)))
    assert (failure.reason, failure.exit_code) == ("OOMKilled", 137)
    assert "spec.resources" in failure.message


def failed_attempt(number: int, **values: Any) -> Attempt:
    fields = {"state": AttemptState.FAILED, "failure": "Application", "finished_at": to_time(NOON), "reason": "Hang"}
    return Attempt(number=number, child=f"c{number}", **(fields | values))


MUCH = Retries(limit=10, backoffSeconds=0)


@pytest.mark.parametrize(
    ("second", "gives_up"),
    [
        ({"step": 7}, True),
        ({"step": 8}, False),
        ({"step": 7, "reason": "LossNotFinite"}, False),
        ({"step": None}, False),
    ],
)
def test_the_same_error_at_the_same_step_is_not_tried_a_third_time(second: dict[str, Any], gives_up: bool) -> None:
    attempts = (failed_attempt(1, step=7), failed_attempt(2, **second))
    decision = decide_next(History(attempts, failures=2), MUCH, NOON)
    assert decision == (GiveUp(Reason("SameErrorAgain")) if gives_up else StartAttempt(3))


def test_the_step_of_a_failure_is_remembered() -> None:
    experiment = make_experiment(retries={"limit": 5, "backoffSeconds": 0})
    error = ErrorInfo(code="Hang", message="rank 1 hung")
    message = TerminationMessage(outcome="Failed", step=7, error=error, exit_code=1)
    pod = make_pod("p", exit_code=1, termination=message)
    child = make_child(experiment, "prepare", ChildState.FAILED, pods=(pod,))
    status = plan(make_snapshot(experiment, [child]), NOON).status
    assert status is not None
    stage = status.stage_named("prepare")
    assert stage is not None
    assert stage.attempts[0].step == 7


def test_a_gang_that_nothing_protects_waits_for_a_decision() -> None:
    from support.model_cluster import ModelCluster

    cluster = ModelCluster()
    cluster.add("demo", training={"nodes": 2})
    for _ in range(40):
        cluster.reconcile("demo")
        for child in list(cluster.children.values()):
            if child.state is ChildState.PENDING:
                cluster.run(child.name)
            elif child.state is ChildState.RUNNING:
                cluster.succeed(child.name)
    status = cluster.experiments["demo"].status
    (blocker,) = status.blockers
    assert (blocker.reason, blocker.stage) == ("GangSchedulingMissing", "sft")
    assert "scheduling.gang: BestEffort" in blocker.message
    cluster.edit("demo", scheduling={"gang": "BestEffort"})
    (start,) = cluster.reconcile("demo").apply
    assert str(start.node.id) == "sft"


MINUTE_AGO = NOON - timedelta(seconds=60)
OVERLOOKED: dict[str, tuple[Any, list[tuple[str, str]]]] = {
    "its scheduler does not run": (
        make_pod("p", phase="Pending", scheduler="nope", created_at=MINUTE_AGO),
        [
            (
                "NoScheduler",
                (
                    "No scheduler has processed the pod for 30 s. It requests the scheduler `nope`: start it, or set "
                    "spec.scheduling.schedulerName to one that runs."
                ),
            )
        ],
    ),
    "it needs claims that do not exist": (
        make_pod("p", phase="Pending", scheduler="default-scheduler", claims=("gpu", "nic"), created_at=MINUTE_AGO),
        [
            (
                "NoScheduler",
                (
                    "No scheduler has processed the pod for 30 s. It needs the resource claims gpu, nic: create the "
                    "missing ones, or change resourceClaims in spec.podTemplate."
                ),
            )
        ],
    ),
    "it was made a moment ago": (
        make_pod("p", phase="Pending", scheduler="nope", created_at=NOON - timedelta(seconds=29)),
        [],
    ),
    "gates are closed": (
        make_pod("p", phase="Pending", gates=("a.io/x", "b.io/y"), scheduler="nope", created_at=MINUTE_AGO),
        [
            (
                "SchedulingGated",
                (
                    "The pod is not scheduled until these scheduling gates are removed: a.io/x, b.io/y. Start the "
                    "controller that removes them, or remove them from spec.podTemplate."
                ),
            )
        ],
    ),
}


@pytest.mark.parametrize(("pod", "expected"), OVERLOOKED.values(), ids=OVERLOOKED.keys())
def test_a_pod_that_no_scheduler_takes_up_says_what_it_waits_for(pod: Any, expected: list[tuple[str, str]]) -> None:
    experiment = make_experiment()
    snapshot = make_snapshot(experiment, [make_child(experiment, "prepare", ChildState.PENDING, pods=(pod,))])
    assert [(blocker.reason, blocker.message) for blocker in blockers_of(snapshot)] == expected
    assert plan(snapshot, NOON).requeue_after_s == LOOK_AGAIN_S


def test_a_deadline_that_a_pod_missed_without_a_scheduler_names_the_scheduler() -> None:
    experiment = make_experiment(deadlines={"preRunningSeconds": 40})
    pod = make_pod("p", phase="Pending", scheduler="nope", created_at=MINUTE_AGO)
    child = make_child(experiment, "prepare", ChildState.PENDING, pods=(pod,), created_at=MINUTE_AGO)
    status = plan(make_snapshot(experiment, [child]), NOON).status
    assert status is not None
    (attempt,) = status.stages[0].attempts
    assert "It requests the scheduler `nope`" in str(attempt.message)
