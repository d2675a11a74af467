"""Kubelet: one task per pod bound to its nodes, independent of the pod runtime."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal, Protocol

from wrpo_devcluster.client import PODS, ApiError, Client, JsonObject, WatchEvent
from wrpo_devcluster.clock import Clock, parse_time
from wrpo_devcluster.controllers.base import WatchHub, cancel_all
from wrpo_devcluster.controllers.events import EventRecorder
from wrpo_devcluster.objects import is_deleting

log = logging.getLogger(__name__)


class PodHandle:
    """A runtime's handle of its pod: the newest object, a signal of its deletion, and status updates."""

    def __init__(self, pod: JsonObject, client: Client, clock: Clock, events: EventRecorder) -> None:
        self.pod = pod
        self.clock = clock
        self.deletion = asyncio.Event()
        self.change = asyncio.Event()
        """Set at each new version of the object; who waits for it clears it."""
        self._client = client
        self._events = events
        self._written: JsonObject | None = None
        if is_deleting(pod):
            self.deletion.set()

    @property
    def uid(self) -> str:
        """The pod's uid, which no other pod ever has."""
        return str(self.pod["metadata"]["uid"])

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return str(self.pod["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """The pod's name, which a later pod may get."""
        return str(self.pod["metadata"]["name"])

    def observe(self, pod: JsonObject) -> None:
        """Take over a new version of the object, and wake who waits for it."""
        self.pod = pod
        self.change.set()
        if is_deleting(pod):
            self.deletion.set()

    def grace_period_s(self) -> float:
        """Return the seconds left until the pod must be gone."""
        meta = self.pod["metadata"]
        if meta.get("deletionTimestamp"):
            # The timestamp has whole seconds. Rounding must not reduce a short period to zero.
            left = (parse_time(meta["deletionTimestamp"]) - self.clock.now()).total_seconds() + 1.0
            return max(0.0, min(left, float(meta.get("deletionGracePeriodSeconds") or 0)))
        return float(self.pod["spec"].get("terminationGracePeriodSeconds", 30))

    async def write_status(self, status: JsonObject) -> None:
        """Merge into the pod's status. Write nothing if it would not change."""
        if status == self._written:
            return
        try:
            self.pod = await self._client.patch(
                PODS,
                self.name,
                self.namespace,
                {"metadata": {"uid": self.uid}, "status": status},
                kind="strategic",
                subresource="status",
            )
        except ApiError as error:
            if error.code not in {404, 409}:
                raise
        else:
            self._written = status
            if is_deleting(self.pod):
                self.deletion.set()

    async def event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Record an event about the pod."""
        await self._events.event({**self.pod, "apiVersion": "v1", "kind": "Pod"}, kind, reason, message)


class PodRuntime(Protocol):
    """Pod runtime. `run` returns when the pod has ended, or after its deletion when none of its processes run."""

    async def run(self, handle: PodHandle) -> None:
        """Run a pod, and report its state by the handle."""
        ...

    async def forget(self, uid: str) -> None:
        """Remove the data of a pod that is gone from the API."""
        ...


class Kubelet:
    """Kubelet of all nodes of the cluster: supervises each pod that is bound to one of them."""

    def __init__(self, client: Client, clock: Clock, runtime: PodRuntime, *, nodes: frozenset[str]) -> None:
        self._client = client
        self._clock = clock
        self._runtime = runtime
        self._nodes = nodes
        self._events = EventRecorder(client, clock, "kubelet", host=min(nodes, default=""))
        self._handles: dict[str, PodHandle] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def attach(self, hub: WatchHub) -> None:
        """Subscribe to pods; call it before the hub starts."""
        hub.subscribe(PODS, self._observe)

    async def close(self) -> None:
        """Stop supervising pods. Their processes keep running."""
        await cancel_all(self._tasks.values())

    def _observe(self, event: WatchEvent) -> None:
        pod = event.object
        uid = pod["metadata"]["uid"]
        handle = self._handles.get(uid)
        if event.type == "DELETED":
            if handle is not None:
                handle.pod = {**pod, "metadata": {**pod["metadata"], "deletionGracePeriodSeconds": 0}}
                handle.deletion.set()
            return
        if handle is not None:
            handle.observe(pod)
        elif pod["spec"].get("nodeName") in self._nodes:
            handle = PodHandle(pod, self._client, self._clock, self._events)
            self._handles[uid] = handle
            self._tasks[uid] = asyncio.create_task(self._supervise(handle), name=f"pod-{handle.name}")

    async def _supervise(self, handle: PodHandle) -> None:
        pause_s = 0.5
        while True:
            try:
                await self._runtime.run(handle)
                break
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("pod %s/%s: the kubelet failed unexpectedly; it retries", handle.namespace, handle.name)
                await self._clock.sleep(pause_s)
                pause_s = min(pause_s * 2, 30.0)
        await handle.deletion.wait()
        await self._remove(handle)
        await self._runtime.forget(handle.uid)
        self._handles.pop(handle.uid, None)
        self._tasks.pop(handle.uid, None)

    async def _remove(self, handle: PodHandle) -> None:
        """Remove the pod from the API server, because none of its processes run any more."""
        options: dict[str, Any] = {"propagation": "Background", "grace_period_s": 0, "uid": handle.uid}
        for _ in range(20):
            try:
                await self._client.delete(PODS, handle.name, handle.namespace, **options)
            except ApiError as error:
                if error.code in {404, 409}:
                    return
                log.warning("pod %s/%s cannot be removed: %s", handle.namespace, handle.name, error)
                await self._clock.sleep(0.5)
            else:
                return
