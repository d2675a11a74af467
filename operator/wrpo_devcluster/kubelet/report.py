"""Status report of a pod whose containers are processes: their states, the pod's end, publication."""

from __future__ import annotations

import asyncio

from wrpo_devcluster.clock import timestamp
from wrpo_devcluster.kubelet.context import PodContext
from wrpo_devcluster.kubelet.status import ContainerState, Ending, PodState, compose, waiting


class PodReport:
    """State of a pod's containers; `publish` writes it to the API server."""

    def __init__(self, context: PodContext) -> None:
        pod = context.handle.pod
        self._context = context
        self._lock = asyncio.Lock()
        self.init = [ContainerState(c["name"], c.get("image", "")) for c in pod["spec"].get("initContainers") or []]
        self.apps = [ContainerState(c["name"], c.get("image", "")) for c in pod["spec"]["containers"]]
        if self.init:
            for state in self.apps:
                state.state = waiting("PodInitializing")
        started = (pod.get("status") or {}).get("startTime")
        self.started_at: str = started or timestamp(context.node.clock.now())
        self.ending: Ending | None = None
        """Why the pod ended, if its containers do not show it."""

    @property
    def states(self) -> list[ContainerState]:
        """States of all containers, init containers first."""
        return [*self.init, *self.apps]

    async def publish(self) -> None:
        """Write the pod's status as its containers are now."""
        async with self._lock:
            state = PodState(self.init, self.apps, self._context.address, self.started_at, self.ending)
            status = compose(self._context.handle.pod, state, self._context.node.clock.now())
            if not status.get("reason", "x"):
                status.pop("reason")
                status.pop("message")
            await self._context.handle.write_status(status)
