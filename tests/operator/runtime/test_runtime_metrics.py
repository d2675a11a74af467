"""What is counted, when, and under which labels."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from wrpo_operator.api.conditions import Reason
from wrpo_operator.runtime.fleet import FleetCollector
from wrpo_operator.runtime.metering import count_ended, count_status_write
from wrpo_operator.runtime.metrics import Metrics

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    found: float | None = metrics.registry.get_sample_value(name, labels)
    return found


def stage(state: str, *, name: str = "sample/qwen", attempts: Any = (), **more: Any) -> dict[str, Any]:
    return {"name": name, "hash": "h", "state": state, "attempts": list(attempts), **more}


def attempt(number: int, state: str, failure: str | None = None) -> dict[str, Any]:
    return {"number": number, "child": "c", "state": state, **({"failure": failure} if failure else {})}


BEFORE = {"stages": [stage("Running", attempts=[attempt(1, "Failed", "Application"), attempt(2, "Running")])]}
AFTER = {
    "stages": [
        stage(
            "Succeeded",
            attempts=[attempt(1, "Failed", "Application"), attempt(2, "Succeeded")],
            startedAt="2026-01-01T12:00:00Z",
            finishedAt="2026-01-01T12:20:00Z",
            gpuSeconds=2400,
        )
    ]
}


def test_what_ends_between_two_statuses_is_counted_once() -> None:
    metrics = Metrics()
    count_ended(metrics, BEFORE, AFTER)
    count_ended(metrics, AFTER, AFTER)
    assert value(metrics, "wrpo_attempts_total", kind="sample", state="Succeeded", failure="") == 1
    assert value(metrics, "wrpo_attempts_total", kind="sample", state="Failed", failure="Application") is None
    assert value(metrics, "wrpo_gpu_seconds_total", kind="sample") == 2400
    assert value(metrics, "wrpo_stage_seconds_sum", kind="sample", outcome="Succeeded") == 1200
    assert value(metrics, "wrpo_stage_seconds_count", kind="sample", outcome="Succeeded") == 1


def test_a_stage_that_runs_anew_under_another_hash_is_another_one() -> None:
    metrics = Metrics()
    anew = {"stages": [{**AFTER["stages"][0], "hash": "other", "cached": True}]}
    count_ended(metrics, AFTER, anew)
    assert value(metrics, "wrpo_stage_seconds_count", kind="sample", outcome="Cached") == 1
    assert value(metrics, "wrpo_attempts_total", kind="sample", state="Failed", failure="Application") == 1


def test_labels_are_closed_sets_whatever_a_status_holds() -> None:
    metrics = Metrics()
    edited = {"stages": [stage("Failed", name="my-secret/x", attempts=[attempt(1, "Failed", "token-abc")])]}
    count_ended(metrics, {}, edited)
    assert value(metrics, "wrpo_attempts_total", kind="other", state="Failed", failure="") == 1
    text = metrics.render().decode()
    assert "my-secret" not in text
    assert "token-abc" not in text


def test_status_writes_are_counted_by_outcome_with_what_ended() -> None:
    metrics = Metrics()
    count_status_write(metrics, BEFORE, AFTER)
    count_status_write(metrics, BEFORE, None)
    assert value(metrics, "wrpo_status_writes_total", outcome="done") == 1
    assert value(metrics, "wrpo_status_writes_total", outcome="error") == 1
    assert value(metrics, "wrpo_attempts_total", kind="sample", state="Succeeded", failure="") == 1


def test_requests_are_counted_by_verb_resource_and_status_with_their_time() -> None:
    metrics = Metrics()
    for code in (200, 404, 0):
        metrics.observe_request("patch", "wrpoexperiments/status", code, 0.5)
        labels = {"verb": "patch", "resource": "wrpoexperiments/status", "code": str(code)}
        assert value(metrics, "wrpo_api_requests_total", **labels) == 1
    labels = {"verb": "patch", "resource": "wrpoexperiments/status"}
    assert value(metrics, "wrpo_api_request_seconds_sum", **labels) == 1.5


class Fleet:
    def __init__(self, *, per_experiment: bool = False) -> None:
        self.metrics, self.leading, self.now = Metrics(), True, NOON
        self.objects: list[dict[str, Any]] = []
        self.metrics.registry.register(
            FleetCollector(
                self.metrics,
                lambda: self.objects,
                leading=lambda: self.leading,
                now=lambda: self.now,
                per_experiment=per_experiment,
            )
        )

    def add(self, name: str, phase: str, blocked: str = "", since: datetime = NOON) -> None:
        conditions = [{"type": "Blocked", "status": "True", "reason": blocked, "lastTransitionTime": since.isoformat()}]
        status = {"phase": phase, "conditions": conditions if blocked else [], "progress": {"percent": 40}}
        self.objects.append({"metadata": {"namespace": "ns", "name": name}, "status": status})


def test_experiments_are_counted_by_phase_and_by_the_leader_alone() -> None:
    fleet = Fleet()
    fleet.add("a", "Running")
    fleet.add("b", "Running")
    fleet.objects.append({"metadata": {"namespace": "ns", "name": "new"}})
    assert value(fleet.metrics, "wrpo_experiments", phase="Running") == 2
    assert value(fleet.metrics, "wrpo_experiments", phase="Pending") == 1
    assert value(fleet.metrics, "wrpo_experiments", phase="Failed") == 0
    fleet.leading = False
    assert value(fleet.metrics, "wrpo_experiments", phase="Running") is None


def test_blocked_time_adds_up_from_look_to_look_by_known_reasons() -> None:
    fleet = Fleet()
    fleet.add("a", "Running", "Unschedulable")
    fleet.add("b", "Running", "Unschedulable", since=NOON + timedelta(seconds=20))
    fleet.add("c", "Running", "MadeUpByHand")
    fleet.metrics.render()
    fleet.now = NOON + timedelta(seconds=30)
    fleet.metrics.render()
    assert value(fleet.metrics, "wrpo_blocked_seconds_total", reason="Unschedulable") == 40
    assert value(fleet.metrics, "wrpo_blocked_seconds_total", reason="Other") == 30


@pytest.mark.parametrize("reason", Reason)
def test_blocked_time_is_counted_under_every_reason_there_is(reason: Reason) -> None:
    fleet = Fleet()
    fleet.add("a", "Running", reason.value)
    fleet.metrics.render()
    fleet.now = NOON + timedelta(seconds=30)
    fleet.metrics.render()
    assert value(fleet.metrics, "wrpo_blocked_seconds_total", reason=reason.value) == 30


def test_names_are_labels_only_where_they_were_asked_for() -> None:
    quiet, loud = Fleet(), Fleet(per_experiment=True)
    for fleet in (quiet, loud):
        fleet.add("fusion", "Running")
    assert b"fusion" not in quiet.metrics.render()
    assert value(loud.metrics, "wrpo_experiment_progress_percent", namespace="ns", experiment="fusion") == 40
