"""The Job controller with scheduler and simulated pods, compared with a real server's record."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from devcluster.memory_api import MemoryClient
from devcluster.rig import has_condition, simulated, until

from wrpo_devcluster.client import EVENTS, JOBS, PODS, JsonObject
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.base import Controller
from wrpo_devcluster.controllers.garbage import GarbageCollector
from wrpo_devcluster.controllers.job import JobController, JobTtlController


def controllers(client: MemoryClient, clock: Clock) -> list[Controller]:
    return [JobController(client, clock), JobTtlController(client, clock), GarbageCollector(client, clock)]


def make_job(name: str, *, run_seconds: str = "0.3", exit_code: str = "0", **spec: Any) -> JsonObject:
    labels = {"batch.kubernetes.io/job-name": name, "job-name": name}
    annotations = {"fake.test/run-seconds": run_seconds, "fake.test/exit-code": exit_code}
    template = {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "img"}]},
    }
    defaults = {"parallelism": 1, "completions": 1, "backoffLimit": 6, "suspend": False}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {**defaults, "template": template, **spec},
    }


async def run_to_end(job: JsonObject, kind: str) -> tuple[JsonObject, list[JsonObject]]:
    async with simulated(controllers) as (client, _):
        await client.create(JOBS, job, "conf")

        async def finished() -> Any:
            found = await client.get(JOBS, job["metadata"]["name"], "conf")
            return found if has_condition(found, kind) else None

        done = await until(finished)

        async def released() -> bool:
            return not any(p["metadata"].get("finalizers") for p in await client.list(PODS, "conf"))

        await until(released)
        return done["status"], await client.list(PODS, "conf")


ENDINGS: dict[str, tuple[JsonObject, str, JsonObject]] = {
    "a plain job completes": (make_job("plain"), "Complete", {"succeeded": 1, "ready": 0, "terminating": 0}),
    "retries are bounded": (make_job("failing", exit_code="1", backoffLimit=1), "Failed", {"failed": 2}),
    "an exit code the policy names fails at once": (
        make_job(
            "policy",
            exit_code="65",
            podFailurePolicy={
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [64, 65, 78]}},
                ]
            },
            podReplacementPolicy="Failed",
        ),
        "Failed",
        {"failed": 1},
    ),
    "every index completes": (
        make_job("indexed", completions=3, parallelism=2, completionMode="Indexed", backoffLimitPerIndex=1),
        "Complete",
        {"succeeded": 3, "completedIndexes": "0-2", "failedIndexes": ""},
    ),
    "too many failed indexes": (
        make_job(
            "perindex",
            exit_code="1",
            completions=2,
            parallelism=2,
            completionMode="Indexed",
            backoffLimitPerIndex=0,
            maxFailedIndexes=1,
        ),
        "Failed",
        {"failed": 2, "failedIndexes": "0,1"},
    ),
    "an index is retried with its own count": (
        make_job("retry", exit_code="1", completions=1, completionMode="Indexed", backoffLimitPerIndex=1),
        "Failed",
        {"failed": 2, "failedIndexes": "0"},
    ),
    "a deadline ends a job": (
        make_job("late", run_seconds="forever", activeDeadlineSeconds=2),
        "Failed",
        {"failed": 1},
    ),
}


@pytest.mark.parametrize(("job", "kind", "expected"), ENDINGS.values(), ids=ENDINGS.keys())
def test_a_job_ends_as_on_a_real_cluster(job: JsonObject, kind: str, expected: JsonObject) -> None:
    status, _ = asyncio.run(run_to_end(job, kind))
    assert {name: status.get(name) for name in expected} == expected
    assert status["uncountedTerminatedPods"] == {}
    assert "active" not in status


def test_indexed_pods_know_their_index() -> None:
    _, pods = asyncio.run(
        run_to_end(make_job("indexed", completions=2, parallelism=2, completionMode="Indexed"), "Complete")
    )
    assert sorted(p["spec"]["hostname"] for p in pods) == ["indexed-0", "indexed-1"]
    for pod in pods:
        env = pod["spec"]["containers"][0]["env"]
        assert env[0]["name"] == "JOB_COMPLETION_INDEX"
        assert pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] in {"0", "1"}


def test_a_finished_job_disappears_after_its_ttl_with_its_pods() -> None:
    async def scenario() -> None:
        async with simulated(controllers) as (client, _):
            await client.create(JOBS, make_job("ttl", ttlSecondsAfterFinished=2), "conf")

            async def nothing_left() -> bool:
                return not await client.list(JOBS, "conf") and not await client.list(PODS, "conf")

            async def is_running() -> bool:
                return bool(await client.list(PODS, "conf"))

            await until(is_running)
            await until(nothing_left)

    asyncio.run(scenario())


def test_a_suspended_job_starts_when_it_is_resumed() -> None:
    async def scenario() -> None:
        async with simulated(controllers) as (client, _):
            await client.create(JOBS, make_job("paused", suspend=True), "conf")

            async def check(kind: str) -> bool:
                return has_condition(await client.get(JOBS, "paused", "conf"), kind)

            await until(lambda: check("Suspended"))
            status = (await client.get(JOBS, "paused", "conf"))["status"]
            assert "startTime" not in status
            assert not await client.list(PODS, "conf")
            await client.patch(JOBS, "paused", "conf", {"spec": {"suspend": False}})
            await until(lambda: check("Complete"))

    asyncio.run(scenario())


def test_a_refused_pod_is_told_in_the_jobs_events_and_tried_again_with_pauses() -> None:
    async def scenario() -> list[JsonObject]:
        async with simulated(controllers, speed=10) as (client, clock):
            client.refuse_create[PODS] = 'violates PodSecurity "restricted:latest"'
            began = clock.now()
            await client.create(JOBS, make_job("j"), "conf")

            async def refusals() -> list[JsonObject] | None:
                events = [e for e in await client.list(EVENTS, "conf") if e["reason"] == "FailedCreate"]
                return events if len(events) >= 3 else None

            events: list[JsonObject] = await until(refusals)
            # The pauses are 1 s and 2 s.
            assert clock.now() - began >= timedelta(seconds=3)
            return events

    for event in asyncio.run(scenario()):
        assert event["message"].startswith('Error creating: pods "j-')
        assert event["message"].endswith('is forbidden: violates PodSecurity "restricted:latest"')
