"""Cleanup of pods of absent nodes and of expired events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from typing_extensions import override

from wrpo_devcluster.client import EVENTS, NODES, PODS, JsonObject
from wrpo_devcluster.clock import parse_time, timestamp
from wrpo_devcluster.controllers.base import Controller, Watched, delete_if_exists
from wrpo_devcluster.objects import is_terminal

EVENT_LIFETIME = timedelta(hours=1)
_PERIOD_S = 300.0
_ALL = ("all",)


class _PeriodicController(Controller):
    """A controller with one key; it runs at every change of a node and once a period."""

    workers = 1

    @override
    def watched(self) -> Sequence[Watched]:
        return (Watched(NODES, lambda _: _ALL),)


class PodGarbageCollector(_PeriodicController):
    """Controller that fails and removes the pods of nodes that no longer exist."""

    name = "pod-garbage-collector"

    @override
    async def reconcile(self, key: str) -> float | None:
        del key
        nodes = {node["metadata"]["name"] for node in await self.client.list(NODES)}
        for pod in orphans(await self.client.list(PODS), nodes):
            if not is_terminal(pod):
                await self._fail(pod)
            await delete_if_exists(self.client, PODS, pod, grace_period_s=0)
        return _PERIOD_S

    async def _fail(self, pod: JsonObject) -> None:
        meta = pod["metadata"]
        entry = {
            "type": "DisruptionTarget",
            "status": "True",
            "lastProbeTime": None,
            "lastTransitionTime": timestamp(self.clock.now()),
            "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists",
        }
        patch = {"status": {"phase": "Failed", "conditions": [entry]}}
        await self.client.patch(PODS, meta["name"], meta["namespace"], patch, kind="strategic", subresource="status")


class EventSweeper(_PeriodicController):
    """Controller that removes events an hour after they last happened."""

    name = "event-sweeper"

    @override
    async def reconcile(self, key: str) -> float | None:
        del key
        for event in expired(await self.client.list(EVENTS), self.clock.now()):
            await delete_if_exists(self.client, EVENTS, event)
        return _PERIOD_S


def orphans(pods: list[JsonObject], nodes: set[str]) -> list[JsonObject]:
    """Return the pods that are bound to nodes which do not exist."""
    return [pod for pod in pods if pod["spec"].get("nodeName") and pod["spec"]["nodeName"] not in nodes]


def expired(events: list[JsonObject], now: datetime) -> list[JsonObject]:
    """Return the events older than their lifetime."""
    old = []
    for event in events:
        last = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
        if parse_time(last) + EVENT_LIFETIME < now:
            old.append(event)
    return old
