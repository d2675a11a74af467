"""Scheduler: binds pending pods to nodes, by priority and then in the order of creation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from typing_extensions import override

from wrpo_devcluster.client import CLAIMS, NODES, PODS, ApiError, Client, JsonObject
from wrpo_devcluster.clock import Clock, timestamp
from wrpo_devcluster.controllers.base import Controller, Watched, WatchHub, get_or_none
from wrpo_devcluster.controllers.events import EventRecorder
from wrpo_devcluster.delays import NONE, Delays, Holds, pod_identity
from wrpo_devcluster.faults import Faults
from wrpo_devcluster.objects import condition, is_deleting, is_terminal
from wrpo_devcluster.scheduler.arrivals import Arrivals
from wrpo_devcluster.scheduler.fit import NodeView, Verdict, choose
from wrpo_devcluster.scheduler.ledger import Ledger

_ALL = "all"


class Scheduler(Controller):
    """Scheduler with a single key: every pass handles all pending pods, so that none overtakes a fitting one."""

    name = "default-scheduler"
    workers = 1

    def __init__(self, client: Client, clock: Clock, *, faults: Faults, delays: Delays = NONE) -> None:
        super().__init__(client, clock)
        self._faults = faults
        self._holds = Holds(delays, clock)
        self._events = EventRecorder(client, clock, self.name)
        self._ledger = Ledger()
        self._arrivals = Arrivals()
        self._has_counted = False

    @override
    def watched(self) -> Sequence[Watched]:
        everything = _everything
        return (Watched(PODS, everything), Watched(NODES, everything), Watched(CLAIMS, everything))

    @override
    def attach(self, hub: WatchHub) -> None:
        hub.subscribe(PODS, self._ledger.heard)
        hub.subscribe(PODS, self._arrivals.heard)
        super().attach(hub)

    @override
    async def reconcile(self, key: str) -> float | None:
        del key
        waiting, held_s = self._due(await self._waiting())
        if not waiting:
            return held_s
        if self._faults.scheduling_delay_s > 0:
            await self.clock.sleep(self._faults.scheduling_delay_s)
        is_exact = not self._has_counted
        if is_exact:
            await self._count()
        nodes = [n for n in await self.client.list(NODES) if not is_deleting(n)]
        waiting.sort(key=self._turn)
        for pod in waiting:
            verdict = self._choose(pod, nodes)
            if verdict.node is None and not is_exact:
                await self._count()
                is_exact = True
                verdict = self._choose(pod, nodes)
            missing = await self._missing_claim(pod)
            if verdict.node is None or missing:
                message = f"0/{len(nodes)} nodes are available: {missing}." if missing else verdict.message
                await self._refuse(pod, message)
            else:
                await self._bind(pod, verdict.node)
        return held_s

    def _due(self, waiting: list[JsonObject]) -> tuple[list[JsonObject], float | None]:
        """Return the pods whose delay is over, and the seconds until that of the next pod ends."""
        longest_s = self._holds.delays.schedule_s
        left = [self._holds.left_s(p["metadata"]["uid"], "schedule", longest_s, pod_identity(p)) for p in waiting]
        due = [pod for pod, left_s in zip(waiting, left, strict=True) if left_s <= 0]
        return due, min((left_s for left_s in left if left_s > 0), default=None)

    def _turn(self, pod: JsonObject) -> tuple[int, str, float]:
        """Return the sort key of a pod. After a restart only the times show which pods are older."""
        meta = pod["metadata"]
        return -int(pod["spec"].get("priority") or 0), meta["creationTimestamp"], self._arrivals.place(meta["uid"])

    async def _waiting(self) -> list[JsonObject]:
        pods = await self.client.list(PODS, field_selector="spec.nodeName=")
        waiting = [p for p in pods if not p["spec"].get("nodeName") and not is_deleting(p) and not is_terminal(p)]
        # It implements every scheduler name. Resource claims are not supported.
        return [p for p in waiting if not (p["spec"].get("schedulingGates") or p["spec"].get("resourceClaims"))]

    def _choose(self, pod: JsonObject, nodes: Sequence[JsonObject]) -> Verdict:
        return choose(pod, [NodeView(node, self._ledger.used(node["metadata"]["name"])) for node in nodes])

    async def _count(self) -> None:
        self._ledger.count(await self.client.list(PODS))
        self._has_counted = True

    async def _missing_claim(self, pod: JsonObject) -> str:
        for volume in pod["spec"].get("volumes") or []:
            claim = volume.get("persistentVolumeClaim")
            if claim is None:
                continue
            found = await get_or_none(self.client, CLAIMS, claim["claimName"], pod["metadata"]["namespace"])
            if found is None:
                return f'persistentvolumeclaim "{claim["claimName"]}" not found'
            if is_deleting(found):
                return f'persistentvolumeclaim "{claim["claimName"]}" is being deleted'
            if not found["spec"].get("volumeName") and (found.get("status") or {}).get("phase") != "Bound":
                return "pod has unbound immediate PersistentVolumeClaims"
        return ""

    async def _bind(self, pod: JsonObject, node: str) -> None:
        meta = pod["metadata"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            await self.client.update(PODS, binding, subresource="binding")
        except ApiError as error:
            if error.code in {404, 409}:
                return
            raise
        self._ledger.add(pod, node)
        self._holds.forget(meta["uid"])
        message = f"Successfully assigned {meta['namespace']}/{meta['name']} to {node}"
        await self._events.event(_typed(pod), "Normal", "Scheduled", message)

    async def _refuse(self, pod: JsonObject, message: str) -> None:
        current = condition(pod, "PodScheduled")
        if current is not None and current.get("status") == "False" and current.get("message") == message:
            return
        meta = pod["metadata"]
        entry: dict[str, Any] = {
            "type": "PodScheduled",
            "observedGeneration": meta.get("generation", 1),
            "status": "False",
            "lastProbeTime": None,
            "lastTransitionTime": timestamp(self.clock.now()),
            "reason": "Unschedulable",
            "message": message,
        }
        patch = {"status": {"conditions": [entry]}}
        try:
            await self.client.patch(
                PODS, meta["name"], meta["namespace"], patch, kind="strategic", subresource="status"
            )
        except ApiError as error:
            if error.code not in {404, 409}:
                raise
        await self._events.event(_typed(pod), "Warning", "FailedScheduling", message)


def _typed(pod: JsonObject) -> JsonObject:
    return {**pod, "apiVersion": "v1", "kind": "Pod"}


def _everything(obj: JsonObject) -> Iterable[str]:
    del obj
    return (_ALL,)
