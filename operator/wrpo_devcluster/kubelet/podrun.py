"""The life of one pod as processes: volumes, init containers, containers with restarts and probes, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import parse_time, timestamp
from wrpo_devcluster.controllers.base import cancel_all
from wrpo_devcluster.kubelet import containers as processes
from wrpo_devcluster.kubelet.agent import PodHandle
from wrpo_devcluster.kubelet.environment import ConfigError
from wrpo_devcluster.kubelet.launching import NamesPending, PullError, plan_launch
from wrpo_devcluster.kubelet.probes import ProbeTarget, tally_of, try_once
from wrpo_devcluster.kubelet.records import Attempt, ExitRecord, last_attempt
from wrpo_devcluster.kubelet.status import (
    ContainerState,
    Ending,
    compose,
    crash_backoff_s,
    should_restart,
    terminated,
    waiting,
    whole_seconds,
)
from wrpo_devcluster.kubelet.volumes import VolumeError, VolumeManager

if TYPE_CHECKING:
    from wrpo_devcluster.kubelet.process import ProcessRuntime

NAMES_PATIENCE = timedelta(seconds=60)
"""How long a container waits for the addresses of its peers; then it starts, and finds out that they are missing."""
LOST = "ContainerStatusUnknown"
_LOST_MESSAGE = (
    "The container's processes are gone and left no exit status: the machine or the control plane's host went down"
)
_SHUTDOWN_MESSAGE = "Pod was terminated in response to imminent node shutdown."


class PodRun:
    def __init__(self, runtime: ProcessRuntime, handle: PodHandle) -> None:
        self.runtime = runtime
        self.handle = handle
        self.directory = runtime.pod_dir(handle.uid)
        self.address = runtime.address_of(handle.pod)
        spec = handle.pod["spec"]
        self._init_specs: list[JsonObject] = spec.get("initContainers") or []
        self._app_specs: list[JsonObject] = spec["containers"]
        self._init = [ContainerState(c["name"], c.get("image", "")) for c in self._init_specs]
        self._apps = [ContainerState(c["name"], c.get("image", "")) for c in self._app_specs]
        if self._init:
            for state in self._apps:
                state.state = waiting("PodInitializing")
        started = (handle.pod.get("status") or {}).get("startTime")
        self._started_at = started or timestamp(runtime.clock.now())
        self._ending: Ending | None = None
        self._publishing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.volumes: dict[str, Path] = {}
        self._manager = VolumeManager(
            client=runtime.client,
            clock=runtime.clock,
            pod=handle.pod,
            root=self.directory / "volumes",
            state_dir=runtime.config.state_dir,
            issue_token=runtime.issue_token,
            allow_host_path=runtime.config.allow_host_path,
        )

    async def run(self) -> None:
        """Run the pod to its end. Cancelling it leaves its processes running, to be adopted later."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        work = asyncio.create_task(self._work())
        watchers = [asyncio.create_task(self.handle.deletion.wait()), asyncio.create_task(self._past_deadline())]
        try:
            await asyncio.wait({work, *watchers}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not self.handle.deletion.is_set():
                work.result()
                return
            await cancel_all([work, *self._tasks])
            if watchers[1].done():
                self._ending = Ending(
                    "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
                )
            await self._terminate(self.handle.grace_period_s())
        finally:
            await cancel_all([work, *self._tasks, *watchers])

    async def shutdown(self, grace_s: float) -> None:
        """End the processes as a node that goes down; pods that may not restart fail as disrupted."""
        policy = self.handle.pod["spec"].get("restartPolicy", "Always")
        if policy != "Always":
            self._ending = Ending("Terminated", _SHUTDOWN_MESSAGE, is_disruption=True)
        await cancel_all(self._tasks)
        await self._terminate(min(grace_s, self.handle.grace_period_s()))

    # -- start to end ---------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        await self._publish()
        await self._prepare_volumes()
        self._spawn(self._refresh_volumes())
        for spec, state in zip(self._init_specs, self._init, strict=True):
            await self._run_container(spec, state, is_init=True)
            if state.exit_code != 0 or self._ending:
                await self._publish()
                return
        loops = [
            asyncio.create_task(self._run_container(spec, state, is_init=False))
            for spec, state in zip(self._app_specs, self._apps, strict=True)
        ]
        self._tasks += loops
        await asyncio.gather(*loops)
        await self._publish()

    async def _prepare_volumes(self) -> None:
        pause_s = 0.5
        while True:
            try:
                self._manager.pod = self.handle.pod
                self.volumes = await self._manager.prepare()
            except VolumeError as error:
                await self.handle.event("Warning", "FailedMount", f"MountVolume.SetUp failed: {error}")
                await self.runtime.clock.sleep(pause_s)
                pause_s = min(pause_s * 2, 10.0)
            else:
                return

    async def _refresh_volumes(self) -> None:
        while True:
            await self.runtime.clock.sleep(self.runtime.config.volume_refresh_s)
            self._manager.pod = self.handle.pod
            # A ConfigMap that was deleted under a running pod keeps its last content.
            with contextlib.suppress(VolumeError):
                await self._manager.prepare()

    async def _past_deadline(self) -> None:
        limit = self.handle.pod["spec"].get("activeDeadlineSeconds")
        if limit is None:
            await asyncio.Event().wait()
        started = parse_time(self._started_at)
        left = float(limit) - (self.runtime.clock.now() - started).total_seconds()
        await self.runtime.clock.sleep(max(0.0, left))

    # -- one container --------------------------------------------------------------------------------------------

    async def _run_container(self, spec: JsonObject, state: ContainerState, *, is_init: bool) -> None:
        policy = self.handle.pod["spec"].get("restartPolicy", "Always")
        directory = self.runtime.log_dir(self.handle.uid, state.name)
        attempt = last_attempt(directory)
        adopted = attempt is not None
        while True:
            if attempt is None:
                attempt = await self._start(spec, state, Attempt(directory, state.restart_count))
            state.restart_count = attempt.number
            record = await self._attend(spec, state, attempt, adopted=adopted)
            if record is None and adopted and policy == "Never":
                self._ending = Ending(LOST, _LOST_MESSAGE, is_disruption=True)
                state.is_final = True
                return
            code = record.exit_code if record else 137
            state.is_final = not should_restart(policy, code, is_init=is_init)
            await self._publish()
            if state.is_final:
                return
            await self._back_off(state)
            attempt = await self._start(spec, state, attempt.following())
            adopted = False

    async def _start(self, spec: JsonObject, state: ContainerState, attempt: Attempt) -> Attempt:
        """Start a run as soon as its image and its configuration allow."""
        failures = 0
        give_up_at = self.runtime.clock.now() + NAMES_PATIENCE
        while True:
            may_wait = self.runtime.clock.now() < give_up_at
            try:
                launch = await plan_launch(self, spec, attempt, names_may_wait=may_wait)
            except NamesPending:
                await self.runtime.clock.sleep(0.05)
                continue
            except PullError as error:
                await self._pull_failed(state, str(error), failures)
            except (ConfigError, VolumeError) as error:
                state.state = waiting("CreateContainerConfigError", str(error))
                await self.handle.event("Warning", "Failed", f"Error: {error}")
                await self._publish()
                await self.runtime.clock.sleep(min(0.5 * 2**failures, 10.0))
            else:
                break
            failures += 1
        image = spec.get("image", "")
        await self.handle.event("Normal", "Pulled", f'Container image "{image}" already present on machine')
        processes.launch(attempt, launch)
        await self.handle.event("Normal", "Created", f"Created container: {state.name}")
        return attempt

    async def _pull_failed(self, state: ContainerState, message: str, failures: int) -> None:
        state.state = waiting("ErrImagePull", message)
        await self.handle.event("Warning", "Failed", f'Failed to pull image "{state.image}": {message}')
        await self.handle.event("Warning", "Failed", "Error: ErrImagePull")
        await self._publish()
        await self.runtime.clock.sleep(0.5)
        state.state = waiting("ImagePullBackOff", f'Back-off pulling image "{state.image}": ErrImagePull: {message}')
        await self.handle.event("Normal", "BackOff", f'Back-off pulling image "{state.image}"')
        await self._publish()
        await self.runtime.clock.sleep(min(10 * 2**failures, 300) * self.runtime.config.backoff_scale)

    async def _attend(
        self, spec: JsonObject, state: ContainerState, attempt: Attempt, *, adopted: bool
    ) -> ExitRecord | None:
        """Report a run from its start to its end."""
        await processes.wait_started(attempt)
        process = attempt.process()
        state.container_id = f"process://{processes.marker(attempt)}"
        ended = attempt.exit()
        is_over = ended is not None or process is None or not process.is_alive()
        # A program that ends at once has started all the same.
        if process is not None and not adopted and not (ended is not None and ended.error):
            await self.handle.event("Normal", "Started", f"Started container: {state.name}")
        probing: asyncio.Task[None] | None = None
        if process is not None and not is_over:
            state.state = {"running": {"startedAt": whole_seconds(process.started_at)}}
            state.has_started = "startupProbe" not in spec
            state.is_ready = state.has_started and "readinessProbe" not in spec
            if not adopted:
                await self._hook(spec, "postStart", attempt)
            await self._publish()
            probing = asyncio.create_task(self._probe(spec, state, attempt))
            self._tasks.append(probing)
        try:
            record = await processes.wait_ended(attempt)
        finally:
            if probing is not None:
                await cancel_all([probing])
        self._note_end(spec, state, attempt, record)
        return record

    def _note_end(self, spec: JsonObject, state: ContainerState, attempt: Attempt, record: ExitRecord | None) -> None:
        now = timestamp(self.runtime.clock.now())
        state.is_ready, state.has_started = False, False
        if record is None:
            process = attempt.process()
            state.state = terminated(
                exit_code=137,
                signal=9,
                started_at=whole_seconds(process.started_at) if process else now,
                finished_at=now,
                reason=LOST,
                message=_LOST_MESSAGE,
                container_id=state.container_id,
            )
            return
        policy = spec.get("terminationMessagePolicy") or "File"
        state.state = terminated(
            exit_code=record.exit_code,
            signal=record.signal,
            started_at=whole_seconds(record.started_at),
            finished_at=whole_seconds(record.finished_at),
            message=record.error or processes.termination_message(attempt, policy, record.exit_code),
            container_id=state.container_id,
            reason="StartError" if record.error else "",
        )

    async def _back_off(self, state: ContainerState) -> None:
        pause_s = crash_backoff_s(state.restart_count, scale=self.runtime.config.backoff_scale)
        state.last_state, ended = state.state, state.state
        if pause_s <= 0:
            return
        where = f"{self.handle.name}_{self.handle.namespace}({self.handle.uid})"
        text = f"back-off {pause_s:g}s restarting failed container={state.name} pod={where}"
        state.state = waiting("CrashLoopBackOff", text)
        state.last_state = ended
        await self.handle.event(
            "Warning", "BackOff", f"Back-off restarting failed container {state.name} in pod {where}"
        )
        await self._publish()
        await self.runtime.clock.sleep(pause_s)

    # -- probes ---------------------------------------------------------------------------------------------------

    async def _probe(self, spec: JsonObject, state: ContainerState, attempt: Attempt) -> None:
        target = self._probe_target(spec, attempt)
        if "startupProbe" in spec:
            if not await self._probe_until(spec["startupProbe"], target, "Startup", wanted=None):
                await self._restart_unhealthy(state, attempt, "startup")
                return
            state.has_started = True
            state.is_ready = "readinessProbe" not in spec
            await self._publish()
        async with asyncio.TaskGroup() as group:
            if "readinessProbe" in spec:
                group.create_task(self._watch_readiness(spec["readinessProbe"], target, state))
            if "livenessProbe" in spec:
                group.create_task(self._watch_liveness(spec["livenessProbe"], target, state, attempt))

    def _probe_target(self, spec: JsonObject, attempt: Attempt) -> ProbeTarget:
        launched = json.loads(attempt.spec_file.read_text(encoding="utf-8"))
        ports = {p["name"]: int(p["containerPort"]) for p in spec.get("ports") or [] if p.get("name")}
        return ProbeTarget(self.address, ports, launched["env"], launched["cwd"])

    async def _probe_until(self, probe: JsonObject, target: ProbeTarget, kind: str, *, wanted: bool | None) -> bool:
        """Probe until a threshold is reached (or until it is `wanted`); return which."""
        tally = tally_of(probe)
        period_s = float(probe.get("periodSeconds") or 10)
        await self.runtime.clock.sleep(float(probe.get("initialDelaySeconds") or 0))
        while True:
            why = await try_once(probe, target)
            if why is not None:
                await self.handle.event("Warning", "Unhealthy", f"{kind} probe failed: {why}")
            outcome = tally.add(why is None)
            if outcome is not None and wanted in {None, outcome}:
                return outcome
            await self.runtime.clock.sleep(period_s)

    async def _watch_readiness(self, probe: JsonObject, target: ProbeTarget, state: ContainerState) -> None:
        while True:
            state.is_ready = await self._probe_until(probe, target, "Readiness", wanted=not state.is_ready)
            await self._publish()

    async def _watch_liveness(
        self, probe: JsonObject, target: ProbeTarget, state: ContainerState, attempt: Attempt
    ) -> None:
        await self._probe_until(probe, target, "Liveness", wanted=False)
        await self._restart_unhealthy(state, attempt, "liveness")

    async def _restart_unhealthy(self, state: ContainerState, attempt: Attempt, kind: str) -> None:
        message = f"Container {state.name} failed {kind} probe, will be restarted"
        await self.handle.event("Normal", "Killing", message)
        await processes.stop(attempt, self.handle.grace_period_s())

    # -- the end --------------------------------------------------------------------------------------------------

    async def _terminate(self, grace_s: float) -> None:
        """End every container and report how each ended."""
        running: list[tuple[JsonObject, ContainerState, Attempt]] = []
        specs = [*self._init_specs, *self._app_specs]
        for spec, state in zip(specs, [*self._init, *self._apps], strict=True):
            attempt = last_attempt(self.runtime.log_dir(self.handle.uid, state.name))
            if attempt is not None and attempt.exit() is None:
                await processes.wait_started(attempt)
                running.append((spec, state, attempt))
        for _, state, _ in running:
            await self.handle.event("Normal", "Killing", f"Stopping container {state.name}")
        await asyncio.gather(*(self._stop(spec, attempt, grace_s) for spec, _, attempt in running))
        for spec, state, attempt in running:
            state.container_id = f"process://{processes.marker(attempt)}"
            self._note_end(spec, state, attempt, await processes.wait_ended(attempt))
        may_restart = self._ending is None and self.runtime.is_stopping
        for state in [*self._init, *self._apps]:
            state.is_final = not may_restart
            state.is_ready = False
        if not may_restart and self._ending is None and not all(s.exit_code is not None for s in self._apps):
            # A deleted pod whose containers never ran ends as failed, as the real kubelet reports it.
            self._ending = Ending("", "")
        await self._publish()

    async def _stop(self, spec: JsonObject, attempt: Attempt, grace_s: float) -> None:
        """Run the preStop hook within the grace period, then signal."""
        start = asyncio.get_running_loop().time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._hook(spec, "preStop", attempt)
        await processes.stop(attempt, max(0.0, grace_s - (asyncio.get_running_loop().time() - start)))

    async def _hook(self, spec: JsonObject, name: str, attempt: Attempt) -> None:
        hook = (spec.get("lifecycle") or {}).get(name)
        if not hook:
            return
        if "sleep" in hook:
            await self.runtime.clock.sleep(float(hook["sleep"]["seconds"]))
            return
        why = await try_once(
            {**hook, "timeoutSeconds": self.handle.grace_period_s()}, self._probe_target(spec, attempt)
        )
        if why is not None:
            await self.handle.event("Warning", f"Failed{name[0].upper()}{name[1:]}Hook", why)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _publish(self) -> None:
        async with self._publishing:
            status = compose(
                self.handle.pod,
                self._init,
                self._apps,
                address=self.address,
                started_at=self._started_at,
                now=self.runtime.clock.now(),
                ending=self._ending,
            )
            if not status.get("reason", "x"):
                status.pop("reason")
                status.pop("message")
            await self.handle.write_status(status)
