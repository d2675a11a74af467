"""Probes and lifecycle hooks of one container while it runs."""

from __future__ import annotations

import asyncio
import json

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.kubelet import containers as processes
from wrpo_devcluster.kubelet.context import PodContext
from wrpo_devcluster.kubelet.probes import ProbeTarget, tally_of, try_once
from wrpo_devcluster.kubelet.records import Attempt
from wrpo_devcluster.kubelet.report import PodReport
from wrpo_devcluster.kubelet.status import ContainerState


class Prober:
    """Prober of a container: updates its readiness, and stops runs that fail their liveness probe."""

    def __init__(self, context: PodContext, report: PodReport, spec: JsonObject, state: ContainerState) -> None:
        self._context = context
        self._node = context.node
        self._handle = context.handle
        self._report = report
        self._spec = spec
        self._state = state

    async def probe(self, attempt: Attempt) -> None:
        """Run the container's probes until cancelled or until the run is unhealthy."""
        target = self._probe_target(attempt)
        if "startupProbe" in self._spec:
            if not await self._probe_until(self._spec["startupProbe"], target, "Startup", wanted=None):
                await self._restart_unhealthy(attempt, "startup")
                return
            self._state.has_started = True
            self._state.is_ready = "readinessProbe" not in self._spec
            await self._report.publish()
        async with asyncio.TaskGroup() as group:
            if "readinessProbe" in self._spec:
                group.create_task(self._watch_readiness(self._spec["readinessProbe"], target))
            if "livenessProbe" in self._spec:
                group.create_task(self._watch_liveness(self._spec["livenessProbe"], target, attempt))

    def _probe_target(self, attempt: Attempt) -> ProbeTarget:
        launched = json.loads(attempt.spec_file.read_text(encoding="utf-8"))
        ports = {p["name"]: int(p["containerPort"]) for p in self._spec.get("ports") or [] if p.get("name")}
        return ProbeTarget(self._context.address, ports, launched["env"], launched["cwd"])

    async def _probe_until(self, probe: JsonObject, target: ProbeTarget, kind: str, *, wanted: bool | None) -> bool:
        """Probe until a threshold is reached (or the threshold `wanted`); return which."""
        tally = tally_of(probe)
        period_s = float(probe.get("periodSeconds") or 10)
        await self._node.clock.sleep(float(probe.get("initialDelaySeconds") or 0))
        while True:
            why = await try_once(probe, target)
            if why is not None:
                await self._handle.event("Warning", "Unhealthy", f"{kind} probe failed: {why}")
            outcome = tally.add(why is None)
            if outcome is not None and wanted in {None, outcome}:
                return outcome
            await self._node.clock.sleep(period_s)

    async def _watch_readiness(self, probe: JsonObject, target: ProbeTarget) -> None:
        while True:
            self._state.is_ready = await self._probe_until(probe, target, "Readiness", wanted=not self._state.is_ready)
            await self._report.publish()

    async def _watch_liveness(self, probe: JsonObject, target: ProbeTarget, attempt: Attempt) -> None:
        await self._probe_until(probe, target, "Liveness", wanted=False)
        await self._restart_unhealthy(attempt, "liveness")

    async def _restart_unhealthy(self, attempt: Attempt, kind: str) -> None:
        message = f"Container {self._state.name} failed {kind} probe, will be restarted"
        await self._handle.event("Normal", "Killing", message)
        await processes.stop(attempt, self._handle.grace_period_s())

    async def run_hook(self, name: str, attempt: Attempt) -> None:
        """Run a lifecycle hook (`postStart`, `preStop`) if the container has it. A failure is recorded as an event."""
        hook = (self._spec.get("lifecycle") or {}).get(name)
        if not hook:
            return
        if "sleep" in hook:
            await self._node.clock.sleep(float(hook["sleep"]["seconds"]))
            return
        why = await try_once({**hook, "timeoutSeconds": self._handle.grace_period_s()}, self._probe_target(attempt))
        if why is not None:
            await self._handle.event("Warning", f"Failed{name[0].upper()}{name[1:]}Hook", why)
