"""PodDisruptionBudgets: how many pods may be evicted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from wrpo_devcluster.clock import timestamp
from wrpo_devcluster.controllers.disruption import budget_status

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OWNED = {"ownerReferences": [{"kind": "Job", "name": "j", "uid": "u", "apiVersion": "batch/v1", "controller": True}]}


def pod(name: str, *, ready: bool = True, owned: bool = True, **meta: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "metadata": {"name": name, "namespace": "ns", **(OWNED if owned else {}), **meta},
        "status": {"phase": "Running", "conditions": conditions},
    }


def budget(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "b", "generation": 2}, "spec": spec, "status": status or {}}


FOUR = [pod("a"), pod("b"), pod("c"), pod("d", ready=False)]
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], tuple[int, int, int, int, str]]] = {
    "a count that has to stay": ({"minAvailable": 2}, FOUR, (4, 3, 2, 1, "SufficientPods")),
    "a share that has to stay is rounded up": ({"minAvailable": "60%"}, FOUR, (4, 3, 3, 0, "InsufficientPods")),
    "a count that may go": ({"maxUnavailable": 2}, FOUR, (4, 3, 2, 1, "SufficientPods")),
    "a share that may go is rounded up": ({"maxUnavailable": "30%"}, FOUR, (4, 3, 2, 1, "SufficientPods")),
    "more may go than there are": ({"maxUnavailable": 9}, FOUR, (4, 3, 0, 3, "SufficientPods")),
    "neither: one has to stay": ({}, FOUR, (4, 3, 1, 2, "SufficientPods")),
    "no pod": ({"minAvailable": 0}, [], (0, 0, 0, 0, "InsufficientPods")),
    "bare pods and a count": ({"minAvailable": 1}, [pod("a", owned=False)], (1, 1, 1, 0, "InsufficientPods")),
    "bare pods and a share": ({"minAvailable": "1%"}, [pod("a", owned=False)], (1, 1, 0, 0, "SyncFailed")),
    "bare pods of which some may go": ({"maxUnavailable": 1}, [pod("a", owned=False)], (1, 1, 0, 0, "SyncFailed")),
    "a pod that goes is not healthy": (
        {"minAvailable": 1}, [pod("a", deletionTimestamp=timestamp(NOW)), pod("b")], (2, 1, 1, 0, "InsufficientPods"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "pods", "expected"), CASES.values(), ids=CASES.keys())
def test_a_budget_counts_its_pods(
    spec: dict[str, Any], pods: list[dict[str, Any]], expected: tuple[int, int, int, int, str]
) -> None:
    status = budget_status(budget(**spec), pods, NOW)

    found = [status[name] for name in ("expectedPods", "currentHealthy", "desiredHealthy", "disruptionsAllowed")]
    assert (*found, status["conditions"][0]["reason"]) == expected
    assert status["observedGeneration"] == 2


def test_an_evicted_pod_counts_as_gone_for_two_minutes() -> None:
    old = {"disruptedPods": {"a": timestamp(NOW - timedelta(seconds=90)), "gone": timestamp(NOW)}}

    status = budget_status(budget(old, minAvailable=1), [pod("a"), pod("b")], NOW)
    later = budget_status(budget(old, minAvailable=1), [pod("a"), pod("b")], NOW + timedelta(seconds=31))

    assert (status["currentHealthy"], list(status["disruptedPods"])) == (1, ["a"])
    assert (later["currentHealthy"], "disruptedPods" in later) == (2, False)
