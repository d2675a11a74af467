"""Simulated pods that follow annotations instead of running, for transcripts and scale tests.

`fake.test/run-seconds` (a number, or `forever`: until the annotation of the running pod is changed),
`fake.test/start-seconds`, `fake.test/exit-code`, `fake.test/pull-error`, `fake.test/termination-message`. The cluster's
configuration can add annotations to pods with certain labels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from typing_extensions import override

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import Clock, timestamp
from wrpo_devcluster.config import SimulatedRule
from wrpo_devcluster.controllers.base import cancel_all
from wrpo_devcluster.controllers.network import pick_address
from wrpo_devcluster.delays import NONE, Delays, pod_identity
from wrpo_devcluster.kubelet.agent import PodHandle, PodRuntime
from wrpo_devcluster.objects import annotations_of, is_terminal, labels_of

_NETWORK = "10.244"


class SimulatedRuntime(PodRuntime):
    """Runtime whose pods run no processes: their annotations say how long they run and how they end."""

    def __init__(
        self,
        clock: Clock,
        *,
        start_latency_s: float = 1.0,
        delays: Delays = NONE,
        rules: Sequence[SimulatedRule] = (),
    ) -> None:
        # The status is a second younger than the binding, as on a cluster whose kubelets take time to start pods.
        self._start_latency_s = start_latency_s
        self._delays = delays
        self._rules = rules
        self._clock = clock
        self._addresses: dict[str, str] = {}

    @override
    async def run(self, handle: PodHandle) -> None:
        if is_terminal(handle.pod):
            return
        address = self._address(handle)
        started = timestamp(self._clock.now())
        if await self._deleted_while_starting(handle, address, started):
            return
        annotations = self._annotations(handle.pod)
        if annotations.get("fake.test/pull-error"):
            waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "fake"}}
            await self._report(handle, address, started, phase="Pending", state=waiting)
            await handle.deletion.wait()
            return
        await self._tell_of_start(handle)
        begun = timestamp(self._clock.now())
        running = {"running": {"startedAt": begun}}
        await self._report(handle, address, started, phase="Running", state=running)
        killed = await self._deleted_while_running(handle)
        annotations = self._annotations(handle.pod)
        code = 137 if killed else int(annotations.get("fake.test/exit-code", "0"))
        ended = {
            "terminated": {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "startedAt": begun,
                "finishedAt": timestamp(self._clock.now()),
                "containerID": f"fake://{handle.uid}/0",
            }
        }
        if not killed and annotations.get("fake.test/termination-message"):
            ended["terminated"]["message"] = annotations["fake.test/termination-message"]
        phase = "Succeeded" if code == 0 else "Failed"
        await self._report(handle, address, started, phase=phase, state=ended)

    async def _deleted_while_running(self, handle: PodHandle) -> bool:
        """Wait as long as the pod runs, which is `forever` until its annotation is changed."""
        while True:
            handle.change.clear()
            wanted = self._annotations(handle.pod).get("fake.test/run-seconds", "0")
            if wanted != "forever":
                return await self._deleted_within(handle, float(wanted))
            await handle.change.wait()
            if handle.deletion.is_set():
                return True

    def _annotations(self, pod: JsonObject) -> dict[str, str]:
        """Return a pod's annotations, and those that the configuration adds to pods with its labels."""
        labels = labels_of(pod).items()
        added = next((each.annotations for each in self._rules if each.labels.items() <= labels), {})
        return {**added, **annotations_of(pod)}

    async def _deleted_while_starting(self, handle: PodHandle, address: str, started: str) -> bool:
        delays = self._delays
        if not delays.are_on:
            wanted = self._annotations(handle.pod).get("fake.test/start-seconds", self._start_latency_s)
            return await self._deleted_within(handle, float(wanted))
        who = pod_identity(handle.pod)
        if await self._deleted_within(handle, delays.draw(delays.create_s, "create", who)):
            return True
        creating = {"waiting": {"reason": "ContainerCreating"}}
        await self._report(handle, address, started, phase="Pending", state=creating)
        return await self._deleted_within(handle, delays.draw(delays.start_s, "start", who))

    async def _tell_of_start(self, handle: PodHandle) -> None:
        """Post the Events of a kubelet that starts containers."""
        for container in handle.pod["spec"]["containers"] if self._delays.are_on else ():
            image, name = container.get("image", ""), container["name"]
            await handle.event("Normal", "Pulled", f'Container image "{image}" already present on machine')
            await handle.event("Normal", "Created", f"Created container: {name}")
            await handle.event("Normal", "Started", f"Started container {name}")

    @override
    async def forget(self, uid: str) -> None:
        self._addresses.pop(uid, None)

    def _address(self, handle: PodHandle) -> str:
        known = (handle.pod.get("status") or {}).get("podIP")
        address = known or pick_address(_NETWORK, handle.uid, self._addresses.values())
        self._addresses[handle.uid] = address
        return str(address)

    async def _deleted_within(self, handle: PodHandle, seconds: float | None) -> bool:
        """Wait for the pod's deletion, at most this long; None waits forever."""
        if seconds is None:
            await handle.deletion.wait()
            return True
        waiter = asyncio.create_task(handle.deletion.wait())
        timer = asyncio.create_task(self._clock.sleep(seconds))
        try:
            await asyncio.wait({waiter, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_all([waiter, timer])
        return handle.deletion.is_set()

    async def _report(self, handle: PodHandle, address: str, started: str, *, phase: str, state: JsonObject) -> None:
        now = timestamp(self._clock.now())
        ready = phase == "Running"
        readiness = {"PodScheduled": True, "Initialized": True, "ContainersReady": ready, "Ready": ready}
        status: JsonObject = {
            "phase": phase,
            "conditions": [
                {
                    "type": kind,
                    "status": "True" if value else "False",
                    "lastProbeTime": None,
                    "lastTransitionTime": now,
                }
                for kind, value in readiness.items()
            ],
            "hostIP": "127.0.0.1",
            "hostIPs": [{"ip": "127.0.0.1"}],
            "podIP": address,
            "podIPs": [{"ip": address}],
            "startTime": started,
            "containerStatuses": [
                {
                    "name": container["name"],
                    "state": state,
                    "lastState": {},
                    "ready": ready,
                    "restartCount": 0,
                    "image": container.get("image", ""),
                    "imageID": f"fake://{container.get('image', '')}",
                    "containerID": f"fake://{handle.uid}/{container['name']}/0",
                    "started": ready,
                }
                for container in handle.pod["spec"]["containers"]
            ],
        }
        await handle.write_status(status)
