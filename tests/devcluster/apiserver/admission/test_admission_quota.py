"""Resource quotas: refusals, their messages, and the usage in the status."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from devcluster.api_rig import Rig, pod, refusal

from wrpo_devcluster.client import CLAIMS, PODS, Resource

Run = Callable[[Callable[[Rig], Awaitable[None]]], None]
QUOTAS = Resource("", "v1", "resourcequotas")


def test_a_quota_counts_what_is_there(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(QUOTAS, {"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}}, "ns")
        await rig.client.create(PODS, pod("a"), "ns")
        error = await refusal(rig.client.create(PODS, pod("b"), "ns"))
        assert "exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1" in str(error)

    run(scenario)


def needy(name: str, *, init: dict[str, Any] | None = None, **requests: str) -> dict[str, Any]:
    """Return a pod whose container requests these amounts."""
    container = {"name": "c", "image": "i", "resources": {"requests": requests, "limits": requests}}
    first = {"initContainers": [{"name": "i", "image": "i", "resources": {"requests": init}}]} if init else {}
    return pod(name, containers=[container], **first)


def gpus(count: str) -> dict[str, Any]:
    """Return the argument of `needy` whose name is no identifier."""
    return {"nvidia.com/gpu": count}


OVER: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "gpus": (
        {"requests.nvidia.com/gpu": "4"},
        needy("b", **gpus("2")),
        "requested: requests.nvidia.com/gpu=2, used: requests.nvidia.com/gpu=3, limited: requests.nvidia.com/gpu=4",
    ),
    "cpu and memory": (
        {"cpu": "1500m", "requests.memory": "2Gi"},
        needy("b", cpu="1", memory="1536Mi"),
        (
            "requested: cpu=1,requests.memory=1536Mi, used: cpu=1,requests.memory=1Gi, "
            "limited: cpu=1500m,requests.memory=2Gi"
        ),
    ),
    "an init container that needs more": (
        {"requests.cpu": "3"},
        needy("b", cpu="1", init={"cpu": "2500m"}),
        "requested: requests.cpu=2500m, used: requests.cpu=1, limited: requests.cpu=3",
    ),
}


@pytest.mark.parametrize(("hard", "second", "words"), OVER.values(), ids=OVER.keys())
def test_a_quota_counts_what_pods_ask_for(run: Run, hard: dict[str, str], second: dict[str, Any], words: str) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(QUOTAS, {"metadata": {"name": "q"}, "spec": {"hard": hard}}, "ns")
        first = needy("a", cpu="1", memory="1Gi", **gpus("3"))
        await rig.client.create(PODS, first, "ns")
        error = await refusal(rig.client.create(PODS, second, "ns"))
        assert str(error) == f'pods "b" is forbidden: exceeded quota: q, {words}'
        await rig.client.patch(PODS, "a", "ns", {"status": {"phase": "Succeeded"}}, subresource="status")
        await rig.client.create(PODS, second, "ns")

    run(scenario)


def test_a_quota_tells_what_is_used_and_refuses_pods_that_do_not_say_what_they_need(run: Run) -> None:
    hard = {"requests.cpu": "4", "pods": "5", "count/jobs.batch": "2", "requests.storage": "8Gi"}

    async def scenario(rig: Rig) -> None:
        async def used() -> dict[str, str]:
            return dict((await rig.client.get(QUOTAS, "q", "ns"))["status"]["used"])

        await rig.client.create(QUOTAS, {"metadata": {"name": "q"}, "spec": {"hard": hard}}, "ns")
        assert await used() == dict.fromkeys(hard, "0")
        error = await refusal(rig.client.create(PODS, pod("vague"), "ns"))
        assert str(error) == 'pods "vague" is forbidden: failed quota: q: must specify requests.cpu for: c'
        await rig.client.create(PODS, needy("a", cpu="500m"), "ns")
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "3Gi"}}}
        await rig.client.create(CLAIMS, {"metadata": {"name": "c"}, "spec": claim}, "ns")
        assert await used() == {
            **dict.fromkeys(hard, "0"),
            "requests.cpu": "500m",
            "pods": "1",
            "requests.storage": "3Gi",
        }
        await rig.client.delete(PODS, "a", "ns", grace_period_s=0)
        assert (await used())["pods"] == "0"
        await rig.client.patch(QUOTAS, "q", "ns", {"spec": {"hard": {"pods": "9"}}})
        assert (await rig.client.get(QUOTAS, "q", "ns"))["status"]["hard"]["pods"] == "9"

    run(scenario)
