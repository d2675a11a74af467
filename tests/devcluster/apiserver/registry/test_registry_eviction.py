"""Evictions: effects of disruption budgets, policies and dry runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from devcluster.api_rig import Rig, pod

from wrpo_devcluster.client import BUDGETS, PODS

Run = Callable[[Callable[[Rig], Awaitable[None]]], None]
EVICT = "/api/v1/namespaces/ns/pods/p/eviction"
RUNNING = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


async def protected(rig: Rig, status: dict[str, Any], **spec: Any) -> None:
    """Create a running pod `p` and a budget that selects it, with this status."""
    body = {**pod("p"), "metadata": {"name": "p", "labels": {"app": "p"}}}
    await rig.client.create(PODS, body, "ns")
    await rig.client.patch(PODS, "p", "ns", {"status": RUNNING}, subresource="status")
    budget = {"metadata": {"name": "b"}, "spec": {"selector": {"matchLabels": {"app": "p"}}, "minAvailable": 1, **spec}}
    await rig.client.create(BUDGETS, budget, "ns")
    await rig.client.patch(BUDGETS, "b", "ns", {"status": status}, subresource="status")


async def evict(rig: Rig, **options: Any) -> tuple[int, Any]:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p", "namespace": "ns"}, **options}
    return await rig.request("POST", EVICT, body)


def counts(allowed: int, healthy: int = 1, desired: int = 1, generation: int = 1) -> dict[str, Any]:
    return {
        "observedGeneration": generation, "disruptionsAllowed": allowed, "currentHealthy": healthy,
        "desiredHealthy": desired, "expectedPods": 1,
    }  # fmt: skip


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "none is left": (counts(0), "The disruption budget b needs 1 healthy pods and has 1 currently"),
    "it was not counted yet": (
        counts(1, generation=0),
        "The disruption budget b is still being processed by the server.",
    ),
}


@pytest.mark.parametrize(("status", "cause"), REFUSALS.values(), ids=REFUSALS.keys())
@pytest.mark.parametrize("options", [{}, {"deleteOptions": {"dryRun": ["All"]}}], ids=["really", "as a dry run"])
def test_a_budget_refuses_an_eviction(run: Run, status: dict[str, Any], cause: str, options: dict[str, Any]) -> None:
    async def scenario(rig: Rig) -> None:
        await protected(rig, status)

        code, body = await evict(rig, **options)

        assert (code, body["reason"]) == (429, "TooManyRequests")
        assert body["message"] == "Cannot evict pod as it would violate the pod's disruption budget."
        assert body["details"]["causes"] == [{"reason": "DisruptionBudget", "message": cause}]
        assert "deletionTimestamp" not in (await rig.client.get(PODS, "p", "ns"))["metadata"]

    run(scenario)


def test_an_eviction_takes_one_disruption_and_a_dry_run_none(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await protected(rig, counts(1))

        assert (await evict(rig, deleteOptions={"dryRun": ["All"]}))[0] == 201
        assert (await rig.client.get(BUDGETS, "b", "ns"))["status"]["disruptionsAllowed"] == 1
        assert (await rig.client.get(PODS, "p", "ns"))["status"]["phase"] == "Running"

        assert (await evict(rig))[0] == 201
        status = (await rig.client.get(BUDGETS, "b", "ns"))["status"]
        assert (status["disruptionsAllowed"], list(status["disruptedPods"])) == (0, ["p"])
        assert await rig.client.list(PODS, "ns") == []

    run(scenario)


def test_a_pod_that_is_not_ready_goes_where_the_budget_is_met_or_lets_it(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await protected(rig, counts(0, healthy=0, desired=1), unhealthyPodEvictionPolicy="AlwaysAllow")
        waiting = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
        await rig.client.patch(PODS, "p", "ns", waiting, subresource="status")
        assert (await evict(rig))[0] == 201

    run(scenario)


def test_a_pod_of_two_budgets_cannot_be_evicted(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await protected(rig, counts(1))
        await rig.client.create(BUDGETS, {"metadata": {"name": "c"}, "spec": {"selector": {}}}, "ns")
        code, body = await evict(rig)
        assert (code, body["reason"]) == (500, "InternalError")
        assert "more than one PodDisruptionBudget" in body["message"]

    run(scenario)


def test_an_eviction_names_its_pod(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await protected(rig, counts(1))
        code, body = await evict(rig, metadata={"name": "other"})
        assert (code, body["message"]) == (400, "name in URL does not match name in Eviction object")

    run(scenario)
