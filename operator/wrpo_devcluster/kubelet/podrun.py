"""Life cycle of one pod as processes: volumes, init containers, containers, termination."""

from __future__ import annotations

import asyncio
import contextlib

from wrpo_devcluster.clock import parse_time
from wrpo_devcluster.controllers.base import cancel_all
from wrpo_devcluster.kubelet import containers as processes
from wrpo_devcluster.kubelet.container_run import ContainerRun
from wrpo_devcluster.kubelet.context import PodContext
from wrpo_devcluster.kubelet.records import Attempt, last_attempt
from wrpo_devcluster.kubelet.report import PodReport
from wrpo_devcluster.kubelet.status import Ending
from wrpo_devcluster.kubelet.volumes import VolumeError, VolumeManager

_DEADLINE = Ending("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
_SHUTDOWN = Ending("Terminated", "Pod was terminated in response to imminent node shutdown.", is_disruption=True)


class PodRun:
    """A run of one pod. `ContainerRun` runs each of its containers."""

    def __init__(self, context: PodContext) -> None:
        self._context = context
        self._node = context.node
        self._handle = context.handle
        self._report = report = PodReport(context)
        spec = context.handle.pod["spec"]
        self._init = [
            ContainerRun(context, report, container, state, is_init=True)
            for container, state in zip(spec.get("initContainers") or [], report.init, strict=True)
        ]
        self._apps = [
            ContainerRun(context, report, container, state, is_init=False)
            for container, state in zip(spec["containers"], report.apps, strict=True)
        ]
        self._is_node_stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._manager = VolumeManager(
            client=self._node.client,
            clock=self._node.clock,
            pod=context.handle.pod,
            root=context.directory / "volumes",
            state_dir=self._node.config.state_dir,
            issue_token=self._node.issue_token,
            allow_host_path=self._node.config.allow_host_path,
        )

    async def run(self) -> None:
        """Run the pod to its end. After a cancellation its processes keep running, to be adopted later."""
        self._context.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        work = asyncio.create_task(self._work())
        watchers = [asyncio.create_task(self._handle.deletion.wait()), asyncio.create_task(self._past_deadline())]
        try:
            await asyncio.wait({work, *watchers}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not self._handle.deletion.is_set():
                work.result()
                return
            await cancel_all([work, *self._tasks])
            if watchers[1].done():
                self._report.ending = _DEADLINE
            await self._terminate(self._handle.grace_period_s())
        finally:
            await cancel_all([work, *self._tasks, *watchers])

    async def shutdown(self, grace_s: float) -> None:
        """Terminate the processes as a node does at shutdown. Pods that may not restart fail as disrupted."""
        self._is_node_stopping = True
        policy = self._handle.pod["spec"].get("restartPolicy", "Always")
        if policy != "Always":
            self._report.ending = _SHUTDOWN
        await cancel_all(self._tasks)
        await self._terminate(min(grace_s, self._handle.grace_period_s()))

    async def _work(self) -> None:
        await self._report.publish()
        await self._prepare_volumes()
        self._tasks.append(asyncio.create_task(self._refresh_volumes()))
        for container in self._init:
            await container.run()
            if container.state.exit_code != 0 or self._report.ending:
                await self._report.publish()
                return
        loops = [asyncio.create_task(container.run()) for container in self._apps]
        self._tasks += loops
        await asyncio.gather(*loops)
        await self._report.publish()

    async def _prepare_volumes(self) -> None:
        pause_s = 0.5
        while True:
            try:
                self._manager.pod = self._handle.pod
                self._context.volumes = await self._manager.prepare()
            except VolumeError as error:
                await self._handle.event("Warning", "FailedMount", f"MountVolume.SetUp failed: {error}")
                await self._node.clock.sleep(pause_s)
                pause_s = min(pause_s * 2, 10.0)
            else:
                return

    async def _refresh_volumes(self) -> None:
        while True:
            await self._node.clock.sleep(self._node.config.volume_refresh_s)
            self._manager.pod = self._handle.pod
            # A ConfigMap that was deleted under a running pod keeps its last content.
            with contextlib.suppress(VolumeError):
                await self._manager.prepare()

    async def _past_deadline(self) -> None:
        limit = self._handle.pod["spec"].get("activeDeadlineSeconds")
        if limit is None:
            await asyncio.Event().wait()
        started = parse_time(self._report.started_at)
        left = float(limit) - (self._node.clock.now() - started).total_seconds()
        await self._node.clock.sleep(max(0.0, left))

    async def _terminate(self, grace_s: float) -> None:
        """Terminate every container and report how each ended."""
        running: list[tuple[ContainerRun, Attempt]] = []
        for container in [*self._init, *self._apps]:
            attempt = last_attempt(self._context.log_dir(container.state.name))
            if attempt is not None and attempt.exit() is None:
                await processes.wait_started(attempt)
                running.append((container, attempt))
        for container, _ in running:
            await self._handle.event("Normal", "Killing", f"Stopping container {container.state.name}")
        await asyncio.gather(*(container.stop(attempt, grace_s) for container, attempt in running))
        for container, attempt in running:
            container.state.container_id = f"process://{processes.marker(attempt)}"
            container.note_end(attempt, await processes.wait_ended(attempt))
        may_restart = self._report.ending is None and self._is_node_stopping
        for state in self._report.states:
            state.is_final = not may_restart
            state.is_ready = False
        ran = all(state.exit_code is not None for state in self._report.apps)
        if not may_restart and self._report.ending is None and not ran:
            # A deleted pod whose containers never ran ends as failed, as the real kubelet reports it.
            self._report.ending = Ending("", "")
        await self._report.publish()
