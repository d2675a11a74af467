"""JobSet controller: created Jobs, restarts and conditions."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from devcluster.memory_api import MemoryClient
from devcluster.rig import has_condition, simulated, until

from wrpo_devcluster.client import EVENTS, JOB_SETS, JOBS, PODS, SERVICES, JsonObject
from wrpo_devcluster.clock import Clock, timestamp
from wrpo_devcluster.controllers.base import Controller
from wrpo_devcluster.controllers.job import JobController
from wrpo_devcluster.controllers.jobset import JobSetController
from wrpo_devcluster.controllers.jobset_decide import Decision, decide
from wrpo_devcluster.controllers.jobset_render import refusal, render_service, too_long

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def entry(name: str = "node", *, replicas: int = 1, completions: int = 2, **more: Any) -> JsonObject:
    annotations = more.pop("annotations", {})
    template = {
        # The server adds the Job's name; the API in memory has no defaults.
        "metadata": {"labels": {"batch.kubernetes.io/job-name": f"s-{name}-0"}, "annotations": annotations},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "stage", "image": "i"}]},
    }
    job = {"completions": completions, "parallelism": completions, "backoffLimit": 0, "template": template}
    return {"name": name, "replicas": replicas, "template": {"spec": job}, **more}


def make_jobset(*entries: JsonObject, status: JsonObject | None = None, name: str = "s", **spec: Any) -> JsonObject:
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "namespace": "ns", "uid": "u", "creationTimestamp": timestamp(NOON)},
        "spec": {"replicatedJobs": list(entries or (entry(),)), **spec},
        "status": status or {},
    }


def created(jobset: JsonObject) -> list[JsonObject]:
    return list(decide(jobset, [], NOON).create)


def ended(job: JsonObject, kind: str = "", *, reason: str = "BackoffLimitExceeded", **status: Any) -> JsonObject:
    """Return a Job with a terminal condition, or, without one, with a status."""
    at = timestamp(NOON + timedelta(seconds=int(status.pop("second", 0))))
    condition = {"type": kind, "status": "True", "reason": reason, "message": f"{reason}: exit code 65"}
    conditions = [{**condition, "lastTransitionTime": at}] if kind else []
    return {**job, "status": {"conditions": conditions, **status}}


def conditions_of(decision: Decision) -> list[tuple[str, str, str]]:
    return [(c["type"], c["status"], c["reason"]) for c in decision.status.get("conditions") or []]


(JOB,) = created(make_jobset())
NO_RESTART: dict[str, Any] = {"failurePolicy": {"maxRestarts": 0}}
FINAL: dict[str, Any] = {"failurePolicy": {"maxRestarts": 0, "rules": [
    {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]}}  # fmt: skip
SUSPENDED = decide(make_jobset(suspend=True), [], NOON).status
CASES: dict[str, tuple[JsonObject, JsonObject | None, list[tuple[str, str, str]]]] = {
    "a new one has no conditions": (make_jobset(), None, []),
    "a running one has none either": (make_jobset(), ended(JOB, active=2, ready=2), []),
    "suspended": (make_jobset(suspend=True), None, [("Suspended", "True", "SuspendedJobs")]),
    "resumed": (make_jobset(status=SUSPENDED), JOB, [("Suspended", "False", "ResumeJobs")]),
    "completed": (make_jobset(), ended(JOB, "Complete"), [("Completed", "True", "AllJobsCompleted")]),
    "failed without a policy": (make_jobset(), ended(JOB, "Failed"), [("Failed", "True", "FailedJobs")]),
    "failed with no restart left": (
        make_jobset(**NO_RESTART), ended(JOB, "Failed"), [("Failed", "True", "ReachedMaxRestarts")]),
    "failed by a rule": (
        make_jobset(**FINAL), ended(JOB, "Failed", reason="PodFailurePolicy"),
        [("Failed", "True", "FailJobSetFailurePolicyAction")]),
    "failed with a reason that the rule does not name": (
        make_jobset(**FINAL), ended(JOB, "Failed"), [("Failed", "True", "ReachedMaxRestarts")]),
}  # fmt: skip


@pytest.mark.parametrize(("jobset", "job", "expected"), CASES.values(), ids=CASES.keys())
def test_conditions_follow_the_job_and_deciding_again_changes_nothing(
    jobset: JsonObject, job: JsonObject | None, expected: list[tuple[str, str, str]]
) -> None:
    jobs = [] if job is None else [job]
    once = decide(jobset, jobs, NOON)
    assert conditions_of(once) == expected
    assert once.status.get("terminalState", "") == ("" if expected[:1] == [] or "Suspended" in expected[0] else
                                                     expected[0][0])  # fmt: skip
    again = decide({**jobset, "status": once.status}, jobs, NOON + timedelta(seconds=9))
    assert (again.status, again.events) == (once.status, ())


def test_the_first_failed_job_is_named() -> None:
    jobset = make_jobset(entry("a"), entry("b"))
    a, b = created(jobset)
    decision = decide(jobset, [ended(a, "Failed", second=9), ended(b, "Failed", second=4)], NOON)
    (condition,) = decision.status["conditions"]
    assert condition["message"] == "jobset failed due to one or more job failures (first failed job: s-b-0)"
    assert [(notice.kind, notice.reason) for notice in decision.events] == [("Warning", "FailedJobs")]


def test_a_restart_replaces_the_jobs_and_counts_up_to_the_limit() -> None:
    jobset = make_jobset(failurePolicy={"maxRestarts": 1})
    first = decide(jobset, [ended(JOB, "Failed")], NOON)
    assert (first.status["restarts"], first.status["restartsCountTowardsMax"], first.create) == (1, 1, ())
    jobset["status"] = first.status
    second = decide(jobset, [ended(JOB, "Failed")], NOON)
    assert ([job["metadata"]["name"] for job in second.delete], second.create) == (["s-node-0"], ())
    (again,) = decide(jobset, [], NOON).create
    assert again["metadata"]["labels"]["jobset.sigs.k8s.io/restart-attempt"] == "1"
    assert conditions_of(decide(jobset, [ended(again, "Failed")], NOON)) == [("Failed", "True", "ReachedMaxRestarts")]
    endless = [{"name": "any", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureMessagePatterns": ["65$"]}]
    jobset["spec"]["failurePolicy"]["rules"] = endless
    assert decide(jobset, [ended(again, "Failed")], NOON).status["restarts"] == 2


def test_a_restart_that_blocks_waits_until_all_jobs_of_the_last_one_are_gone() -> None:
    policy = {"maxRestarts": 3, "restartStrategy": "BlockingRecreate"}
    jobset = make_jobset(entry("a"), entry("b"), failurePolicy=policy)
    a, b = created(jobset)
    jobset["status"] = decide(jobset, [ended(a, "Failed"), b], NOON).status
    assert decide(jobset, [b], NOON).create == ()
    del policy["restartStrategy"]
    assert [job["metadata"]["name"] for job in decide(jobset, [b], NOON).create] == ["s-a-0"]
    policy["restartStrategy"] = "BlockingRecreate"
    assert len(decide(jobset, [], NOON).create) == 2


def test_only_jobs_that_have_not_ended_are_suspended() -> None:
    jobset = make_jobset(entry("a"), entry("b"), suspend=True)
    a, b = created(make_jobset(entry("a"), entry("b")))
    gone = {**b, "metadata": {**b["metadata"], "deletionTimestamp": timestamp(NOON)}}
    told = decide(jobset, [ended(a, "Complete"), b], NOON).suspend
    assert [(job["metadata"]["name"], suspend) for job, suspend in told] == [("s-b-0", True)]
    assert decide(jobset, [ended(a, "Complete"), gone], NOON).suspend == ()
    assert decide(make_jobset(entry("a"), entry("b")), [a, b], NOON).suspend == ()


def test_a_jobset_that_runs_is_not_refused_any_more() -> None:
    jobset = make_jobset(volumeClaimPolicies=[{}])
    assert conditions_of(decide(jobset, [JOB], NOON)) == []
    jobset["status"] = {"restarts": 1}
    assert conditions_of(decide(jobset, [], NOON)) == []


def test_success_may_need_one_replicated_job_alone() -> None:
    jobset = make_jobset(
        entry("driver"), entry("worker", replicas=2), successPolicy={"operator": "All",
                                                                     "targetReplicatedJobs": ["driver"]})  # fmt: skip
    driver, *workers = created(jobset)
    done = decide(jobset, [ended(driver, "Complete"), *workers], NOON)
    assert conditions_of(done) == [("Completed", "True", "AllJobsCompleted")]
    cleaned = decide({**jobset, "status": done.status}, [ended(driver, "Complete"), *workers], NOON)
    assert [job["metadata"]["name"] for job in cleaned.delete] == ["s-worker-0", "s-worker-1"]
    jobset["spec"]["successPolicy"] = {"operator": "All"}
    assert conditions_of(decide(jobset, [ended(driver, "Complete"), *workers], NOON)) == []
    jobset["spec"]["successPolicy"] = {"operator": "Any"}
    assert conditions_of(decide(jobset, [driver, ended(workers[0], "Complete")], NOON)) == conditions_of(done)


@pytest.mark.parametrize(("status", "state"), [("Ready", {"ready": 1, "succeeded": 1}), ("Complete", {})])
def test_a_replicated_job_waits_for_what_it_depends_on(status: str, state: dict[str, Any]) -> None:
    jobset = make_jobset(entry("a"), entry("b", dependsOn=[{"name": "a", "status": status}]))
    (a,) = created(jobset)
    assert decide(jobset, [ended(a, active=2, ready=1)], NOON).create == ()
    reached = ended(a, **state) if state else ended(a, "Complete")
    assert [job["metadata"]["name"] for job in decide(jobset, [reached], NOON).create] == ["s-b-0"]


def test_a_finished_jobset_starts_nothing_and_is_deleted_when_its_time_is_over() -> None:
    jobset = make_jobset(ttlSecondsAfterFinished=60)
    jobset["status"] = decide(jobset, [ended(JOB, "Complete")], NOON).status
    waiting = decide(jobset, [], NOON + timedelta(seconds=20))
    assert (waiting.create, waiting.requeue_after_s, waiting.expired) == ((), 40.0, False)
    assert not decide(jobset, [], NOON + timedelta(seconds=59)).expired
    assert decide(jobset, [], NOON + timedelta(seconds=60)).expired


STATES: dict[str, tuple[JsonObject, str]] = {
    "pods wait": (ended(JOB, active=2), "active"),
    "all pods are ready": (ended(JOB, active=2, ready=2), "active ready"),
    "one pod of two is ready": (ended(JOB, active=2, ready=1), "active"),
    "fewer completions than pods at once": (
        ended({**JOB, "spec": {"parallelism": 4, "completions": 2}}, active=2, ready=2),
        "active ready",
    ),
    "suspended": ({**JOB, "spec": {**JOB["spec"], "suspend": True}}, "suspended"),
    "complete": (ended(JOB, "Complete", succeeded=2), "succeeded"),
    "failed": (ended(JOB, "Failed", failed=1), "failed"),
}


@pytest.mark.parametrize(("job", "expected"), STATES.values(), ids=STATES.keys())
def test_the_status_counts_the_jobs(job: JsonObject, expected: str) -> None:
    (counts,) = decide(make_jobset(), [job], NOON).status["replicatedJobsStatus"]
    assert counts.pop("name") == "node"
    assert {state for state, count in counts.items() if count} == set(expected.split())


def test_jobs_and_pods_carry_their_place_as_labels_and_annotations() -> None:
    jobset = make_jobset(entry("a", replicas=2, groupName="x"), entry("b"), entry("c", replicas=2, groupName="x"))
    prefix = "jobset.sigs.k8s.io"
    job = created(jobset)[-1]
    assert job["metadata"]["name"] == "s-c-1"
    assert (job["metadata"]["ownerReferences"][0]["kind"], job["metadata"]["ownerReferences"][0]["uid"]) == (
        "JobSet", "u")  # fmt: skip
    expected = {
        "jobset-name": "s", "jobset-uid": "u", "replicatedjob-name": "c", "replicatedjob-replicas": "2",
        "global-replicas": "5", "job-index": "1", "job-global-index": "4", "group-name": "x", "group-replicas": "4",
        "job-group-index": "3", "restart-attempt": "0",
    }  # fmt: skip
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        for part in ("labels", "annotations"):
            found = {key: value for key, value in metadata[part].items() if key.startswith(prefix)}
            key = found.pop(f"{prefix}/job-key")
            assert found == {f"{prefix}/{name}": value for name, value in expected.items()}
            assert re.fullmatch("[0-9a-f]{40}", key)
    assert job["spec"]["completionMode"] == "Indexed"


def test_pods_have_host_names_in_the_domain_that_is_asked_for() -> None:
    def domain(**network: Any) -> str | None:
        (job,) = created(make_jobset(network=network))
        found: str | None = job["spec"]["template"]["spec"].get("subdomain")
        return found

    assert domain() == "s"
    assert domain(subdomain="gang") == "gang"
    assert domain(enableDNSHostnames=False) is None


@pytest.mark.parametrize(
    ("length", "completions", "words"),
    [(48, 10, ""), (49, 10, "pod names"), (47, 11, ""), (48, 11, "pod names"), (56, None, ""), (57, None, "job names")],
)
def test_a_name_leaves_room_for_those_of_jobs_and_pods(length: int, completions: int | None, words: str) -> None:
    refused = too_long("n" * length, "node", replicas=1, completions=completions)
    text = f"JobSet name is too long, {words} generated for this JobSet will exceed 63 characters"
    assert refused == (text if words else "")


def test_what_is_left_out_has_the_webhooks_defaults() -> None:
    replicated = entry()
    del replicated["replicas"]
    del replicated["template"]["spec"]["template"]["spec"]["restartPolicy"]
    (job,) = created(make_jobset(replicated))
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"
    service = render_service(make_jobset(), "s")
    assert service["spec"]["publishNotReadyAddresses"] is True


REFUSED: dict[str, tuple[JsonObject, str]] = {
    "a name that leaves no room for pods": (
        make_jobset(name="n" * 50), "pod names generated for this JobSet will exceed 63 characters"),
    "a name that leaves no room for Jobs": (
        make_jobset(name="n" * 60), "job names generated for this JobSet will exceed 63 characters"),
    "restarts in place": (
        make_jobset(failurePolicy={"restartStrategy": "InPlaceRestart"}), "restartStrategy is InPlaceRestart"),
    "restarts of one Job": (
        make_jobset(failurePolicy={"rules": [{"name": "r", "action": "RestartJob"}]}), "action RestartJob of"),
    "claims": (make_jobset(volumeClaimPolicies=[{}]), "spec.volumeClaimPolicies is set"),
    "an order": (make_jobset(startupPolicy={"startupPolicyOrder": "InOrder"}), "use dependsOn"),
}  # fmt: skip


@pytest.mark.parametrize(("jobset", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_or_not_run_here_fails_and_says_why(jobset: JsonObject, words: str) -> None:
    assert refusal(make_jobset(**FINAL)) == ""
    decision = decide(jobset, [], NOON)
    (condition,) = decision.status["conditions"]
    assert (condition["type"], condition["reason"]) == ("Failed", "JobSetRefused")
    assert words in condition["message"]
    assert decision.create == ()


def controllers(client: MemoryClient, clock: Clock) -> list[Controller]:
    return [JobController(client, clock, backoff_s=0.1), JobSetController(client, clock)]


def test_a_jobset_runs_to_its_end_behind_a_headless_service() -> None:
    async def scenario() -> None:
        async with simulated(controllers) as (client, _):
            await client.create(JOB_SETS, make_jobset(entry(annotations={"fake.test/run-seconds": "1"})), "ns")

            async def completed() -> bool:
                return has_condition(await client.get(JOB_SETS, "s", "ns"), "Completed")

            await until(completed)
            pods = await client.list(PODS, "ns")
            assert sorted(pod["spec"]["hostname"] for pod in pods) == ["s-node-0-0", "s-node-0-1"]
            (service,) = await client.list(SERVICES, "ns")
            assert (service["metadata"]["name"], service["spec"]["clusterIP"]) == ("s", "None")
            assert service["spec"]["publishNotReadyAddresses"]
            for pod in pods:
                assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()

            async def told() -> bool:
                return "AllJobsCompleted" in {event["reason"] for event in await client.list(EVENTS, "ns")}

            await until(told)

    asyncio.run(scenario())


def test_suspending_ends_the_pods_and_resuming_starts_new_ones() -> None:
    async def scenario() -> None:
        async with simulated(controllers) as (client, _):
            await client.create(JOB_SETS, make_jobset(entry(annotations={"fake.test/run-seconds": "forever"})), "ns")

            async def running() -> set[str]:
                pods = await client.list(PODS, "ns")
                uids = {p["metadata"]["uid"] for p in pods if (p.get("status") or {}).get("phase") == "Running"}
                return uids if len(uids) == 2 else set()

            before = await until(running)
            await client.patch(JOB_SETS, "s", "ns", {"spec": {"suspend": True}})

            async def idle() -> bool:
                job = await client.get(JOBS, "s-node-0", "ns")
                return bool(job["spec"]["suspend"]) and not await client.list(PODS, "ns")

            await until(idle)

            async def suspended() -> bool:
                return has_condition(await client.get(JOB_SETS, "s", "ns"), "Suspended")

            await until(suspended)
            await client.patch(JOB_SETS, "s", "ns", {"spec": {"suspend": False}})
            assert not before & await until(running)

    asyncio.run(scenario())


def test_a_jobset_of_another_manager_is_left_alone() -> None:
    async def scenario() -> None:
        async with simulated(controllers) as (client, _):
            other = make_jobset(managedBy="kueue.x-k8s.io/multikueue", name="other")
            await client.create(JOB_SETS, other, "ns")
            await client.create(JOB_SETS, make_jobset(), "ns")

            async def made() -> list[JsonObject]:
                return await client.list(JOBS, "ns")

            assert [job["metadata"]["name"] for job in await until(made)] == ["s-node-0"]
            assert (await client.get(JOB_SETS, "other", "ns"))["status"] == {}

    asyncio.run(scenario())
