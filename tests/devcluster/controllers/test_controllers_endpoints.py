"""Endpoints: services that select a pod, and updates after changes of pods and services."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from devcluster.rig import simulated, until

from wrpo_devcluster.client import ENDPOINTS, PODS, SERVICES
from wrpo_devcluster.controllers.base import get_or_none
from wrpo_devcluster.controllers.network import EndpointsController, ServiceSelectors

SELECTING: dict[str, tuple[dict[str, str], set[str]]] = {
    "all of a selector": ({"app": "a", "tier": "web", "x": "y"}, {"ns/both", "ns/one"}),
    "a part of a selector": ({"app": "a"}, {"ns/one"}),
    "another value": ({"app": "b"}, set()),
    "no labels": ({}, set()),
}


@pytest.mark.parametrize(("labels", "expected"), SELECTING.values(), ids=SELECTING.keys())
def test_services_that_select_a_pod(labels: dict[str, str], expected: set[str]) -> None:
    selectors = ServiceSelectors()
    selectors.note("ns/both", {"app": "a", "tier": "web"})
    selectors.note("ns/one", {"app": "a"})
    selectors.note("ns/none", {})
    selectors.note("other/one", {"app": "a"})
    assert selectors.selecting("ns", labels) == expected


def test_a_selector_that_changes_selects_anew() -> None:
    selectors = ServiceSelectors()
    selectors.note("ns/s", {"app": "a"})
    selectors.note("ns/s", {"app": "b"})
    assert selectors.selecting("ns", {"app": "a"}) == set()
    assert selectors.selecting("ns", {"app": "b"}) == {"ns/s"}
    selectors.note("ns/s", {})
    assert selectors.selecting("ns", {"app": "b"}) == set()


def test_endpoints_follow_labels_and_selectors() -> None:
    async def scenario() -> None:
        async with simulated(lambda client, clock: [EndpointsController(client, clock)]) as (client, _):

            async def addresses() -> list[str]:
                found = await get_or_none(client, ENDPOINTS, "s", "ns") or {}
                entries = [entry for subset in found.get("subsets") or [] for entry in subset.get("addresses", [])]
                return [entry["targetRef"]["name"] for entry in entries]

            async def becomes(*names: str) -> None:
                async def check() -> bool:
                    return await addresses() == list(names)

                await until(check)

            service: dict[str, Any] = {"metadata": {"name": "s"}, "spec": {"selector": {"app": "a"}}}
            await client.create(SERVICES, service, "ns")
            for name, app in (("p", "a"), ("q", "b")):
                meta = {"name": name, "labels": {"app": app}, "annotations": {"fake.test/run-seconds": "forever"}}
                spec = {"containers": [{"name": "c", "image": "i"}]}
                await client.create(PODS, {"metadata": meta, "spec": spec}, "ns")
            await becomes("p")
            await client.patch(PODS, "p", "ns", {"metadata": {"labels": {"app": "c"}}})
            await becomes()
            await client.patch(SERVICES, "s", "ns", {"spec": {"selector": {"app": "b"}}})
            await becomes("q")
            await client.delete(PODS, "q", "ns", grace_period_s=0)
            await becomes()

    asyncio.run(scenario())
