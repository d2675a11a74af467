"""Why children wait: Events and Kueue's Workloads become notes."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_operator.runtime.explain import refusal_reason
from wrpo_operator.runtime.kueue import workload_note, workload_owner


def workload(*conditions: dict[str, Any], **spec: Any) -> dict[str, Any]:
    owners = [{"kind": "Job", "name": "j", "uid": "u1", "controller": True}]
    return {
        "metadata": {"name": "job-j-1", "ownerReferences": owners},
        "spec": spec,
        "status": {"conditions": list(conditions)},
    }


def of(type_: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": reason, "message": message}


ADMITTED = of("Admitted", "True", "Admitted")
RESERVED = of("QuotaReserved", "True", "QuotaReserved")


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ((), ("WaitingForQuota", "Kueue has not looked at it yet")),
        ((of("QuotaReserved", "False", "Pending", "insufficient quota for gpu"),),
         ("WaitingForQuota", "insufficient quota for gpu")),
        ((of("QuotaReserved", "False", "Inadmissible", "LocalQueue q doesn't exist"),),
         ("Inadmissible", "LocalQueue q doesn't exist")),
        ((RESERVED, of("Admitted", "False", "UnsatisfiedChecks", "provisioning")),
         ("WaitingForAdmissionChecks", "provisioning")),
        ((of("QuotaReserved", "False", "Pending", "no room"), of("Evicted", "True", "Preempted", "By a/b.")),
         ("Preempted", "By a/b; no room")),
        ((of("QuotaReserved", "False", "Pending", "no room"), of("Evicted", "True", "PodsReadyTimeout", "Exceeded")),
         ("PodsReadyTimeout", "Exceeded; no room")),
    ],
)  # fmt: skip
def test_a_workload_that_waits_says_why(conditions: tuple[dict[str, Any], ...], expected: tuple[str, str]) -> None:
    note = workload_note(workload(*conditions))
    assert note is not None
    assert (note.reason, note.message) == expected
    assert note.object == "Workload/job-j-1"


@pytest.mark.parametrize("conditions", [(RESERVED, ADMITTED), (ADMITTED, of("Evicted", "False", "QuotaReserved"))])
def test_an_admitted_workload_is_no_reason(conditions: tuple[dict[str, Any], ...]) -> None:
    assert workload_note(workload(*conditions)) is None


def test_a_workload_that_somebody_stopped_is_told() -> None:
    note = workload_note(workload(ADMITTED, active=False))
    assert note is not None
    assert note.reason == "WorkloadInactive"


def test_a_workload_belongs_to_the_child_that_controls_it_or_that_its_label_names() -> None:
    assert workload_owner(workload()) == "u1"
    assert workload_owner({"metadata": {"labels": {"kueue.x-k8s.io/job-uid": "u2"}}}) == "u2"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('Error creating: pods "a" is forbidden: exceeded quota: q, requested: pods=1', "QuotaExceeded"),
        ('Error creating: pods "a" is forbidden: violates PodSecurity "restricted:latest"', "PodSecurityViolation"),
        ('Error creating: admission webhook "policy.example.com" denied the request', "AdmissionDenied"),
        ("Error creating: Internal error occurred", "PodsRefused"),
    ],
)
def test_refusals_are_told_apart_by_the_servers_words(message: str, reason: str) -> None:
    assert refusal_reason(message) == reason
