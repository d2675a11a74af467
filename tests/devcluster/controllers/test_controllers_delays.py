"""The delays of a real control plane, on a cluster whose pods are simulated."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from devcluster.controllers.test_controllers_job_run import make_job
from devcluster.memory_api import MemoryClient
from devcluster.rig import has_condition, simulated, until

from wrpo_devcluster.client import EVENTS, JOBS, PODS, JsonObject
from wrpo_devcluster.clock import Clock, parse_time
from wrpo_devcluster.config import load_config, save_config, simulated_config
from wrpo_devcluster.controllers.base import Controller, WatchHub
from wrpo_devcluster.controllers.job import JobController
from wrpo_devcluster.delays import NONE, REALISTIC, Delays, delays_middleware


class Recorder(Controller):
    """Keeps every version of pods and Jobs that a watch delivers."""

    def __init__(self, client: MemoryClient, clock: Clock) -> None:
        super().__init__(client, clock)
        self.pods: list[JsonObject] = []
        self.jobs: list[JsonObject] = []

    def attach(self, hub: WatchHub) -> None:
        hub.subscribe(PODS, lambda event: self.pods.append(event.object))
        hub.subscribe(JOBS, lambda event: self.jobs.append(event.object))

    async def run(self) -> None:
        await asyncio.Event().wait()


async def run_one(delays: Delays) -> tuple[Recorder, list[str], JsonObject]:
    """Run a Job of one pod to its end; return what watches saw, the reasons of its Events, and the Job."""
    made: list[Recorder] = []

    def make(client: MemoryClient, clock: Clock) -> list[Controller]:
        made.append(Recorder(client, clock))
        return [JobController(client, clock, delays=delays), *made]

    async with simulated(make, speed=20.0, delays=delays) as (client, _):
        await client.create(JOBS, make_job("one", run_seconds="1"), "conf")

        async def finished() -> Any:
            found = await client.get(JOBS, "one", "conf")
            return found if has_condition(found, "Complete") else None

        job = await until(finished)

        async def told() -> bool:
            return "Completed" in {event["reason"] for event in await client.list(EVENTS, "conf")}

        await until(told)
        events = sorted(await client.list(EVENTS, "conf"), key=lambda event: event["metadata"]["name"].split(".")[-1])
        return made[0], [event["reason"] for event in events], job


def seen(versions: list[JsonObject], what: Any) -> list[Any]:
    """Return what each version shows, without repetitions."""
    shown = [what(version) for version in versions]
    return [value for number, value in enumerate(shown) if number == 0 or value != shown[number - 1]]


def waiting_reason(pod: JsonObject) -> tuple[str, bool, str]:
    status = pod.get("status") or {}
    states = [entry["state"] for entry in status.get("containerStatuses") or ()]
    reason = next((state["waiting"]["reason"] for state in states if "waiting" in state), "")
    return status.get("phase", "Pending"), bool(pod["spec"].get("nodeName")), reason


def test_a_pod_takes_its_steps_one_by_one_and_its_job_is_complete_after_it() -> None:
    recorder, events, job = asyncio.run(run_one(REALISTIC))
    assert seen(recorder.pods, waiting_reason) == [
        ("Pending", False, ""),
        ("Pending", True, ""),
        ("Pending", True, "ContainerCreating"),
        ("Running", True, ""),
        ("Succeeded", True, ""),
    ]
    ends = seen(recorder.jobs, lambda job: [c["type"] for c in (job.get("status") or {}).get("conditions") or ()])
    assert ends == [[], ["SuccessCriteriaMet"], ["SuccessCriteriaMet", "Complete"]]
    assert events == ["SuccessfulCreate", "Scheduled", "Pulled", "Created", "Started", "Completed"]
    end = recorder.pods[-1]["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"]
    lag_s = (parse_time(job["status"]["completionTime"]) - parse_time(end)).total_seconds()
    assert lag_s >= 1


def test_without_delays_nothing_of_it_is_seen() -> None:
    recorder, events, _ = asyncio.run(run_one(NONE))
    assert "ContainerCreating" not in {waiting_reason(pod)[2] for pod in recorder.pods}
    assert events == ["SuccessfulCreate", "Scheduled", "Completed"]


def test_a_seed_and_a_name_give_the_same_wait_each_time_and_others_another() -> None:
    draws = {
        (seed, name): replace(REALISTIC, seed=seed).draw(3.0, "start", name) for seed in (1, 2) for name in ("a", "b")
    }
    assert draws[1, "a"] == REALISTIC.draw(3.0, "start", "a")
    assert len(set(draws.values())) == 4
    assert all(1.0 <= wait <= 3.0 for wait in draws.values())


@pytest.mark.parametrize(
    ("path", "waits"),
    [
        ("/api/v1/namespaces/a/events", [4.0]),
        ("/apis/events.k8s.io/v1/namespaces/a/events?limit=100", [4.0]),
        ("/api/v1/events", [10.0]),
        ("/api/v1/namespaces/a/events?watch=true", []),
        ("/api/v1/namespaces/a/events/one", []),
        ("/api/v1/namespaces/a/pods", []),
    ],
)
def test_a_list_of_events_reads_all_events_of_its_namespace(path: str, waits: list[float]) -> None:
    slept: list[float] = []

    class Sleepless:
        async def sleep(self, seconds: float) -> None:
            slept.append(seconds)

    async def ask() -> int:
        counts = {"a": 8, "": 20}
        middleware = delays_middleware(Delays(event_read_s=0.5), lambda where: counts[where], Sleepless())  # type: ignore[arg-type]
        app = web.Application(middlewares=[middleware])
        app.router.add_get("/{path:.*}", lambda _: _answer())
        async with TestClient(TestServer(app)) as client:
            return (await client.get(path)).status

    async def _answer() -> web.Response:
        return web.Response()

    assert (asyncio.run(ask()), slept) == (200, waits)


def test_the_delays_are_kept_with_the_cluster(tmp_path: Path) -> None:
    config = replace(simulated_config(tmp_path, cpu="1", memory="1Gi", gpus=0), delays=REALISTIC)
    save_config(config)
    assert load_config(tmp_path) == config
