"""Events about experiments, and the probes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from wrpo_operator.plan.model import PlannedEvent
from wrpo_operator.runtime.events import EventWriter
from wrpo_operator.runtime.health import contact, health_app, heartbeat
from wrpo_operator.runtime.kube import KubeError
from wrpo_operator.runtime.metrics import Metrics

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
EXPERIMENT = {"metadata": {"name": "fusion", "namespace": "ns", "uid": "e-1", "resourceVersion": "7"}}


def post(kube: Any, message: str, at: datetime = NOON) -> None:
    writer = EventWriter(client=kube, now=lambda: at, host="op-1")
    asyncio.run(writer.post(EXPERIMENT, PlannedEvent("Normal", "StageStarted", message)))


def test_the_same_event_again_is_counted_and_another_message_is_another_event(kube: Any) -> None:
    post(kube, "Started train.")
    post(kube, "Started train.", NOON + timedelta(minutes=1))
    post(kube, "Started report.")
    first, second = sorted(kube.objects.values(), key=lambda event: -event["count"])
    assert (first["message"], first["count"]) == ("Started train.", 2)
    assert (first["firstTimestamp"], first["lastTimestamp"]) == ("2026-01-01T12:00:00Z", "2026-01-01T12:01:00Z")
    assert (second["message"], second["count"]) == ("Started report.", 1)
    assert first["involvedObject"] == {
        "apiVersion": "wrpo.ai/v1alpha1",
        "kind": "WRPOExperiment",
        "name": "fusion",
        "namespace": "ns",
        "uid": "e-1",
        "resourceVersion": "7",
    }


def test_a_long_message_is_cut_to_what_the_api_takes(kube: Any) -> None:
    post(kube, "x" * 2000)
    (event,) = kube.objects.values()
    assert event["message"] == "x" * 1023 + "…"


def test_an_event_that_cannot_be_written_hurts_nobody(kube: Any) -> None:
    kube.fail["create", "events"] = KubeError(403, "Forbidden", "no")
    post(kube, "Started train.")
    assert kube.objects == {}


def probe(path: str, *, age: float = 0.0, problem: str = "") -> tuple[int, Any]:
    async def main() -> tuple[int, Any]:
        app = health_app(
            live={"watch": heartbeat("watches", lambda: age, 300.0)},
            ready={"watch": lambda: problem},
            metrics=Metrics().render,
        )
        async with TestClient(TestServer(app)) as client, client.get(path) as answer:
            return answer.status, await (answer.json() if "json" in answer.content_type else answer.text())

    return asyncio.run(main())


def test_liveness_fails_when_the_watches_are_dead_although_the_process_lives() -> None:
    assert probe("/healthz", age=10) == (200, {"ok": True, "checks": {"watch": "ok"}})
    assert probe("/healthz", age=301) == (
        503,
        {"ok": False, "checks": {"watch": "watches: nothing for 301 s (limit 300 s)"}},
    )


def test_readiness_says_what_is_missing() -> None:
    assert probe("/readyz") == (200, {"ok": True, "checks": {"watch": "ok"}})
    assert probe("/readyz", problem="the CRD is not installed") == (
        503,
        {"ok": False, "checks": {"watch": "the CRD is not installed"}},
    )


def test_metrics_are_in_prometheus_form() -> None:
    status, text = probe("/metrics")
    assert status == 200
    assert "wrpo_queue_depth 0.0" in text


def test_readiness_fails_with_its_cause_while_every_request_is_refused() -> None:
    age = [0.0]
    check = contact("the API server", lambda: age[0], 20.0, lambda: "GET /apis/x: Unauthorized")
    assert check() == ""
    age[0] = 21.0
    assert check() == "the API server: no request has succeeded for 21 s: GET /apis/x: Unauthorized"
