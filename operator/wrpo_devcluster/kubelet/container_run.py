"""Life cycle of one container: its runs, restarts and termination."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import timestamp
from wrpo_devcluster.controllers.base import cancel_all
from wrpo_devcluster.kubelet import containers as processes
from wrpo_devcluster.kubelet.context import PodContext
from wrpo_devcluster.kubelet.environment import ConfigError
from wrpo_devcluster.kubelet.launching import NamesPending, PullError, plan_launch
from wrpo_devcluster.kubelet.prober import Prober
from wrpo_devcluster.kubelet.records import Attempt, ExitRecord, last_attempt
from wrpo_devcluster.kubelet.report import PodReport
from wrpo_devcluster.kubelet.status import (
    ContainerState,
    Ending,
    Termination,
    crash_backoff_s,
    should_restart,
    waiting,
    whole_seconds,
)
from wrpo_devcluster.kubelet.volumes import VolumeError

NAMES_PATIENCE = timedelta(seconds=60)
"""Seconds that a container waits for the addresses of its peers. Then it starts without them."""
LOST = "ContainerStatusUnknown"
_LOST_MESSAGE = (
    "The container's processes are gone and left no exit status: the machine or the control plane's host went down"
)


class ContainerRun:
    """Runs a container until its pod's restart policy lets it end."""

    def __init__(
        self, context: PodContext, report: PodReport, spec: JsonObject, state: ContainerState, *, is_init: bool
    ) -> None:
        self._context = context
        self._node = context.node
        self._handle = context.handle
        self._report = report
        self._is_init = is_init
        self._prober = Prober(context, report, spec, state)
        self.spec = spec
        self.state = state

    async def run(self) -> None:
        """Run the container to its end. An existing run is adopted."""
        policy = self._handle.pod["spec"].get("restartPolicy", "Always")
        directory = self._context.log_dir(self.state.name)
        attempt = last_attempt(directory)
        adopted = attempt is not None
        while True:
            if attempt is None:
                attempt = await self._start(Attempt(directory, self.state.restart_count))
            self.state.restart_count = attempt.number
            record = await self._attend(attempt, adopted=adopted)
            if record is None and adopted and policy == "Never":
                self._report.ending = Ending(LOST, _LOST_MESSAGE, is_disruption=True)
                self.state.is_final = True
                return
            code = record.exit_code if record else 137
            self.state.is_final = not should_restart(policy, code, is_init=self._is_init)
            await self._report.publish()
            if self.state.is_final:
                return
            await self._back_off()
            attempt = await self._start(attempt.following())
            adopted = False

    async def _start(self, attempt: Attempt) -> Attempt:
        """Start a run as soon as its image and its configuration allow it."""
        failures = 0
        give_up_at = self._node.clock.now() + NAMES_PATIENCE
        while True:
            may_wait = self._node.clock.now() < give_up_at
            try:
                launch = await plan_launch(self._context, self.spec, attempt, names_may_wait=may_wait)
            except NamesPending:
                await self._node.clock.sleep(0.05)
                continue
            except PullError as error:
                await self._pull_failed(str(error), failures)
            except (ConfigError, VolumeError) as error:
                self.state.state = waiting("CreateContainerConfigError", str(error))
                await self._handle.event("Warning", "Failed", f"Error: {error}")
                await self._report.publish()
                await self._node.clock.sleep(min(0.5 * 2**failures, 10.0))
            else:
                break
            failures += 1
        image = self.spec.get("image", "")
        await self._handle.event("Normal", "Pulled", f'Container image "{image}" already present on machine')
        processes.launch(attempt, launch, self._node.warm)
        await self._handle.event("Normal", "Created", f"Created container: {self.state.name}")
        return attempt

    async def _pull_failed(self, message: str, failures: int) -> None:
        self.state.state = waiting("ErrImagePull", message)
        await self._handle.event("Warning", "Failed", f'Failed to pull image "{self.state.image}": {message}')
        await self._handle.event("Warning", "Failed", "Error: ErrImagePull")
        await self._report.publish()
        await self._node.clock.sleep(0.5)
        why = f'Back-off pulling image "{self.state.image}": ErrImagePull: {message}'
        self.state.state = waiting("ImagePullBackOff", why)
        await self._handle.event("Normal", "BackOff", f'Back-off pulling image "{self.state.image}"')
        await self._report.publish()
        await self._node.clock.sleep(min(10 * 2**failures, 300) * self._node.config.backoff_scale)

    async def _attend(self, attempt: Attempt, *, adopted: bool) -> ExitRecord | None:
        """Report a run from its start to its end."""
        await processes.wait_started(attempt)
        process = attempt.process()
        self.state.container_id = f"process://{processes.marker(attempt)}"
        ended = attempt.exit()
        is_over = ended is not None or process is None or not process.is_alive()
        # A program that ends at once has started nevertheless.
        if process is not None and not adopted and not (ended is not None and ended.error):
            await self._handle.event("Normal", "Started", f"Started container: {self.state.name}")
        probing: asyncio.Task[None] | None = None
        if process is not None and not is_over:
            self.state.state = {"running": {"startedAt": whole_seconds(process.started_at)}}
            self.state.has_started = "startupProbe" not in self.spec
            self.state.is_ready = self.state.has_started and "readinessProbe" not in self.spec
            if not adopted:
                await self._prober.run_hook("postStart", attempt)
            await self._report.publish()
            probing = asyncio.create_task(self._prober.probe(attempt))
        try:
            record = await processes.wait_ended(attempt)
        finally:
            if probing is not None:
                await cancel_all([probing])
        self.note_end(attempt, record)
        return record

    def note_end(self, attempt: Attempt, record: ExitRecord | None) -> None:
        """Keep how a run ended. Without a record its processes were lost."""
        now = timestamp(self._node.clock.now())
        self.state.is_ready, self.state.has_started = False, False
        if record is None:
            process = attempt.process()
            self.state.state = Termination(
                exit_code=137,
                signal=9,
                started_at=whole_seconds(process.started_at) if process else now,
                finished_at=now,
                reason=LOST,
                message=_LOST_MESSAGE,
                container_id=self.state.container_id,
            ).as_state()
            return
        policy = self.spec.get("terminationMessagePolicy") or "File"
        self.state.state = Termination(
            exit_code=record.exit_code,
            signal=record.signal,
            started_at=whole_seconds(record.started_at),
            finished_at=whole_seconds(record.finished_at),
            message=record.error or processes.termination_message(attempt, policy, record.exit_code),
            container_id=self.state.container_id,
            reason="StartError" if record.error else "",
        ).as_state()

    async def _back_off(self) -> None:
        pause_s = crash_backoff_s(self.state.restart_count, scale=self._node.config.backoff_scale)
        self.state.last_state, ended = self.state.state, self.state.state
        if pause_s <= 0:
            return
        where = f"{self._handle.name}_{self._handle.namespace}({self._handle.uid})"
        text = f"back-off {pause_s:g}s restarting failed container={self.state.name} pod={where}"
        self.state.state = waiting("CrashLoopBackOff", text)
        self.state.last_state = ended
        await self._handle.event(
            "Warning", "BackOff", f"Back-off restarting failed container {self.state.name} in pod {where}"
        )
        await self._report.publish()
        await self._node.clock.sleep(pause_s)

    async def stop(self, attempt: Attempt, grace_s: float) -> None:
        """Run the preStop hook within the grace period, then signal."""
        start = asyncio.get_running_loop().time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._prober.run_hook("preStop", attempt)
        await processes.stop(attempt, max(0.0, grace_s - (asyncio.get_running_loop().time() - start)))
