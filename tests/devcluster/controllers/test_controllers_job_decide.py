"""The Job controller's pure decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import timestamp
from wrpo_devcluster.controllers.job import render_pod, seconds_to_live
from wrpo_devcluster.controllers.job_decide import JobDecision, NewPod, decide
from wrpo_devcluster.controllers.job_indexes import format_indexes, parse_indexes
from wrpo_devcluster.controllers.job_policy import FailureAction, match_failure
from wrpo_devcluster.controllers.job_view import TRACKING_FINALIZER

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def make_job(status: JsonObject | None = None, **spec: Any) -> JsonObject:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}
    return {
        "metadata": {"name": "j", "namespace": "ns", "uid": "u", "labels": {}},
        "spec": {"parallelism": 1, "completions": 1, "backoffLimit": 6, "template": template, **spec},
        "status": {"startTime": timestamp(NOON - timedelta(seconds=60)), **(status or {})},
    }


def make_pod(
    name: str,
    phase: str = "Running",
    *,
    code: int | None = None,
    ago_s: float = 0,
    index: int | None = None,
    failures: int = 0,
    deleting: bool = False,
    tracked: bool = True,
    disrupted: bool = False,
) -> JsonObject:
    annotations = {"batch.kubernetes.io/job-index-failure-count": str(failures)}
    if index is not None:
        annotations["batch.kubernetes.io/job-completion-index"] = str(index)
    state: JsonObject = {"running": {}}
    if code is not None:
        state = {"terminated": {"exitCode": code, "finishedAt": timestamp(NOON - timedelta(seconds=ago_s))}}
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "creationTimestamp": timestamp(NOON),
            "annotations": annotations,
            **({"finalizers": [TRACKING_FINALIZER]} if tracked else {}),
            **({"deletionTimestamp": timestamp(NOON)} if deleting else {}),
        },
        "status": {
            "phase": phase,
            "containerStatuses": [{"name": "c", "state": state}],
            "conditions": [{"type": "DisruptionTarget", "status": "True"}] if disrupted else [],
        },
    }


def failed(name: str, code: int = 1, **more: Any) -> JsonObject:
    return make_pod(name, "Failed", code=code, **more)


POLICY = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [64, 65, 78]}},
        {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [0]}},
    ]
}

MATCHES: dict[str, tuple[JsonObject, FailureAction, str]] = {
    "a disruption is ignored": (
        failed("p", 65, disrupted=True),
        FailureAction.IGNORE,
        "Pod ns/p has condition DisruptionTarget matching Ignore rule at index 0",
    ),
    "an exit code fails the index": (
        failed("p", 42),
        FailureAction.FAIL_INDEX,
        "Container c for pod ns/p failed with exit code 42 matching FailIndex rule at index 1",
    ),
    "an exit code fails the job": (
        failed("p", 78),
        FailureAction.FAIL_JOB,
        "Container c for pod ns/p failed with exit code 78 matching FailJob rule at index 2",
    ),
    "others count": (
        failed("p", 1),
        FailureAction.COUNT,
        "Container c for pod ns/p failed with exit code 1 matching Count rule at index 3",
    ),
}


@pytest.mark.parametrize(("pod", "action", "message"), MATCHES.values(), ids=MATCHES.keys())
def test_the_first_matching_rule_decides(pod: JsonObject, action: FailureAction, message: str) -> None:
    match = match_failure(POLICY, pod)
    assert (match.action, match.message) == (action, message)


@given(st.sets(st.integers(0, 300)))
def test_index_lists_read_back_as_they_were_written(indexes: set[int]) -> None:
    assert parse_indexes(format_indexes(indexes)) == indexes


def test_index_lists_are_written_as_kubernetes_does() -> None:
    assert format_indexes([0, 1, 3, 5, 6, 7, 9]) == "0,1,3,5-7,9"


CREATES: dict[str, tuple[JsonObject, list[JsonObject], tuple[NewPod, ...], float | None]] = {
    "a new job gets its pods": (make_job(parallelism=2, completions=3), [], (NewPod(), NewPod()), None),
    "no more pods than are still needed": (
        make_job({"succeeded": 2}, parallelism=2, completions=3),
        [],
        (NewPod(),),
        None,
    ),
    "a failure waits for its backoff": (make_job(), [failed("a", ago_s=4, tracked=False)], (), 6.0),
    "the backoff doubles": (
        make_job(),
        [failed("a", ago_s=30, tracked=False), failed("b", ago_s=15, tracked=False)],
        (),
        5.0,
    ),
    "after the backoff comes the next": (make_job(), [failed("a", ago_s=11, tracked=False)], (NewPod(),), None),
    "an ignored failure is replaced at once": (
        make_job(podFailurePolicy=POLICY),
        [failed("a", disrupted=True, tracked=False)],
        (NewPod(),),
        None,
    ),
    "a pod on its way out is replaced only when it has ended": (
        make_job(podReplacementPolicy="Failed"),
        [make_pod("a", deleting=True)],
        (),
        None,
    ),
    "the lowest free indexes first": (
        make_job({"completedIndexes": "0"}, completions=4, parallelism=3, completionMode="Indexed"),
        [make_pod("a", index=2)],
        (NewPod(1), NewPod(3)),
        None,
    ),
    "a retried index carries its failures": (
        make_job(completions=1, completionMode="Indexed", backoffLimitPerIndex=3),
        [failed("a", index=0, failures=1, ago_s=60)],
        (NewPod(0, failure_count=2),),
        None,
    ),
    "a suspended job creates nothing": (make_job(suspend=True), [], (), None),
}


@pytest.mark.parametrize(("job", "pods", "create", "wait_s"), CREATES.values(), ids=CREATES.keys())
def test_which_pods_are_created(
    job: JsonObject, pods: list[JsonObject], create: tuple[NewPod, ...], wait_s: float | None
) -> None:
    decision = decide(job, pods, NOON)
    assert (decision.create, decision.requeue_after_s) == (create, wait_s)


VERDICTS: dict[str, tuple[JsonObject, list[JsonObject], str, str]] = {
    "too many failures": (
        make_job({"failed": 1}, backoffLimit=1),
        [failed("b")],
        "FailureTarget",
        "BackoffLimitExceeded",
    ),
    "the deadline has passed": (make_job(activeDeadlineSeconds=60), [], "FailureTarget", "DeadlineExceeded"),
    "an index failed for good": (
        make_job(
            {"completedIndexes": "0", "failedIndexes": ""},
            completions=2,
            completionMode="Indexed",
            backoffLimit=99,
            backoffLimitPerIndex=0,
        ),
        [failed("b", index=1)],
        "FailureTarget",
        "FailedIndexes",
    ),
    "all completions are there": (make_job({"succeeded": 1}), [], "Complete", "CompletionsReached"),
}


@pytest.mark.parametrize(("job", "pods", "kind", "reason"), VERDICTS.values(), ids=VERDICTS.keys())
def test_when_a_job_is_over(job: JsonObject, pods: list[JsonObject], kind: str, reason: str) -> None:
    conditions = {c["type"]: c for c in decide(job, pods, NOON).status["conditions"]}
    assert conditions[kind]["reason"] == reason


def test_a_finished_pod_is_noted_before_it_is_counted() -> None:
    job, pod = make_job(), make_pod("a", "Succeeded", code=0)
    first = decide(job, [pod], NOON)
    assert first.status["uncountedTerminatedPods"] == {"succeeded": ["uid-a"]}
    assert (first.status.get("succeeded"), first.release) == (None, ("a",))
    pod["metadata"]["finalizers"] = []
    second = decide({**job, "status": first.status}, [pod], NOON)
    assert (second.status["succeeded"], second.status["uncountedTerminatedPods"]) == (1, {})


def test_deciding_again_on_the_result_changes_nothing() -> None:
    job, pods = make_job(parallelism=2, completions=2), [make_pod("a"), make_pod("b")]
    once = decide(job, pods, NOON)
    later = decide({**job, "status": once.status}, pods, NOON + timedelta(seconds=5))
    assert later == JobDecision(status=once.status)


def test_a_finished_job_only_loses_finalizers() -> None:
    done = make_job({"conditions": [{"type": "Failed", "status": "True"}]}, parallelism=5)
    decision = decide(done, [make_pod("a")], NOON)
    assert decision == JobDecision(status=done["status"], release=("a",))


def test_resuming_starts_the_clock_anew() -> None:
    suspended = decide(make_job(suspend=True), [], NOON)
    assert "startTime" not in suspended.status
    resumed = decide({**make_job(), "status": suspended.status}, [], NOON)
    assert resumed.status["startTime"] == timestamp(NOON)
    assert [(e.reason, e.message) for e in resumed.events] == [("Resumed", "Job resumed")]


def test_a_pod_that_the_job_itself_stops_counts_as_no_failure() -> None:
    job, pod = make_job(suspend=True, backoffLimit=0), make_pod("a")
    stopped = decide(job, [pod], NOON)
    assert (stopped.delete, stopped.release) == (("a",), ("a",))
    meta = {**pod["metadata"], "deletionTimestamp": timestamp(NOON), "finalizers": []}
    going = {**pod, "metadata": meta, "status": {**pod["status"], "phase": "Failed"}}
    resumed = decide({**make_job(backoffLimit=0), "status": stopped.status}, [going], NOON)
    assert (resumed.status.get("failed"), resumed.create) == (None, (NewPod(),))


def test_lowering_parallelism_deletes_the_pods_that_got_least_far() -> None:
    ready = make_pod("ready")
    ready["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    assert decide(make_job(parallelism=1, completions=5), [make_pod("late"), ready], NOON).delete == ("late",)


def test_a_pod_template_is_kept_and_extended() -> None:
    job = make_job(completions=2, completionMode="Indexed", backoffLimitPerIndex=1)
    pod = render_pod(job, NewPod(1, failure_count=1))
    assert pod["metadata"]["generateName"] == "j-1-"
    assert pod["metadata"]["finalizers"] == [TRACKING_FINALIZER]
    assert pod["metadata"]["annotations"]["batch.kubernetes.io/job-index-failure-count"] == "1"
    assert "env" not in job["spec"]["template"]["spec"]["containers"][0]


def test_time_to_live_counts_from_the_end() -> None:
    ended = {"type": "Complete", "status": "True", "lastTransitionTime": timestamp(NOON)}
    job = make_job({"conditions": [ended]}, ttlSecondsAfterFinished=100)
    assert seconds_to_live(job, NOON.timestamp() + 40) == 60
    assert seconds_to_live(make_job(ttlSecondsAfterFinished=100), NOON.timestamp()) is None
