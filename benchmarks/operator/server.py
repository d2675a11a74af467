"""Control plane of a measurement, in a separate process: simulated pods, and records of the operator's requests.

It starts, waits until an operator leads, creates experiments, waits until all of them have succeeded, then watches an
idle operator for a while. All times are of this process's monotonic clock, so that no two clocks are compared.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.bootstrap import crd_files, install_crds
from wrpo_devcluster.client import CLAIMS, NAMESPACES, Client, JsonObject, Resource
from wrpo_devcluster.clock import FastClock
from wrpo_devcluster.cluster import Cluster
from wrpo_devcluster.config import ClusterConfig, NodeConfig
from wrpo_devcluster.delays import NONE, REALISTIC
from wrpo_devcluster.memory import collect_rarely

EXPERIMENTS = Resource("wrpo.ai", "v1alpha1", "wrpoexperiments")
LEASES = Resource("coordination.k8s.io", "v1", "leases")
CHILDREN = frozenset({"jobs", "pytorchjobs"})
WATCHED = CHILDREN | {"pods"}
NAMESPACE = "bench"
CRD = Path(__file__).resolve().parents[2] / "crds" / "wrpoexperiments.wrpo.ai.yaml"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
StageOf = tuple[str, str]
"""(experiment, stage)"""


@dataclass
class Notes:
    """Events of the measurement, and their times."""

    created: dict[StageOf, float] = field(default_factory=dict)
    completed: dict[StageOf, float] = field(default_factory=dict)
    """Time when the status that reports it was written."""
    phases: dict[str, str] = field(default_factory=dict)
    changes: Counter[str] = field(default_factory=Counter)
    """Changes of pods and children, each of which is a watch event."""
    requests: Counter[str] = field(default_factory=Counter)
    """`verb resource` -> number; watches are counted when they end."""
    handling_s: list[float] = field(default_factory=list)
    """Seconds from the first byte of a request to the reply, without watches."""

    def written(self, kind: Kind, new: JsonObject | None, _old: JsonObject | None) -> None:
        if kind.plural in WATCHED:
            self.changes[kind.plural] += 1
        if new is None:
            return
        if kind.plural in CHILDREN:
            labels = new["metadata"].get("labels") or {}
            stage = (labels.get("wrpo.ai/experiment", ""), labels.get("wrpo.ai/stage", "").replace(".", "/", 1))
            self.created.setdefault(stage, time.monotonic())
            ends = {entry["type"] for entry in (new.get("status") or {}).get("conditions") or () if _is_true(entry)}
            if ends & {"Complete", "Succeeded"}:
                self.completed.setdefault(stage, time.monotonic())
        elif kind.plural == EXPERIMENTS.plural:
            self.phases[new["metadata"]["name"]] = (new.get("status") or {}).get("phase", "")

    def writes(self) -> int:
        """Return the operator's writes so far, without those of the lease."""
        return sum(
            count
            for what, count in self.requests.items()
            if what.split()[0] in {"POST", "PUT", "PATCH", "DELETE"} and not what.endswith("leases")
        )


class MeasuredCluster(Cluster):
    """Cluster that counts and times its HTTP requests, which only the operator makes here."""

    def __init__(self, config: ClusterConfig, notes: Notes, *, speed: float) -> None:
        super().__init__(config, clock=FastClock(speed))
        self._notes = notes

    async def _listen(self) -> None:
        make = self.api.app

        def measured() -> web.Application:
            app = make()
            app.middlewares.append(self._measure)
            return app

        self.api.app = measured  # type: ignore[method-assign]
        self.api.pipeline.after_write.append(self._notes.written)
        await super()._listen()

    @web.middleware
    async def _measure(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.monotonic()
        try:
            return await handler(request)
        finally:
            if request.query.get("watch") not in {"true", "1"}:
                self._notes.handling_s.append(time.monotonic() - began)
                self._notes.requests[f"{request.method} {_what(request.path)}"] += 1


def _is_true(entry: JsonObject) -> bool:
    return bool(entry.get("status") == "True")


def _what(path: str) -> str:
    """`/apis/batch/v1/namespaces/bench/jobs/a` -> `jobs`, with the subresource where there is one."""
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    return "/".join([*rest[:1], *rest[2:3]]) or "discovery"


async def run(specification: dict[str, Any], directory: Path) -> dict[str, Any]:
    notes = Notes()
    node = NodeConfig(name="node", cpu="1000000", memory="65536Gi", gpus=100_000, pods=100_000)
    delays = REALISTIC if specification["realistic"] else NONE
    config = ClusterConfig(state_dir=directory / "cluster", nodes=(node,), simulated=True, delays=delays)
    async with MeasuredCluster(config, notes, speed=specification["speed"]) as cluster:
        client = cluster.client
        await install_crds(client, [*crd_files("pytorchjob"), CRD])
        await _prepare(client)
        collect_rarely()
        (directory / "ready").write_text(str(cluster.kubeconfig_path))
        await _until(lambda: _leads(client), 60)
        began, used = time.monotonic(), time.process_time()
        names = []
        for body in specification["experiments"]:
            names.append(body["metadata"]["name"])
            await client.create(EXPERIMENTS, body, NAMESPACE)
            await asyncio.sleep(specification["ramp_s"] / len(specification["experiments"]))

        async def finished() -> bool:
            return all(notes.phases.get(name) == "Succeeded" for name in names)

        await _until(finished, specification["limit_s"])
        took, processor_s = time.monotonic() - began, time.process_time() - used
        await asyncio.sleep(specification["settle_s"])
        requests, handling, before = dict(notes.requests), list(notes.handling_s), notes.writes()
        await asyncio.sleep(specification["idle_s"])
        return {
            "took_s": took,
            "server_processor_s": processor_s,
            "requests": requests,
            "handling_s": handling,
            "changes": dict(notes.changes),
            "idle_writes": notes.writes() - before,
            "created": [[*stage, at - began] for stage, at in notes.created.items()],
            "completed": [[*stage, at - began] for stage, at in notes.completed.items()],
        }


async def _prepare(client: Client) -> None:
    await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "artifacts"}, "spec": spec}
    await client.create(CLAIMS, claim, NAMESPACE)

    async def bound() -> bool:
        return bool((await client.get(CLAIMS, "artifacts", NAMESPACE))["status"].get("phase") == "Bound")

    await _until(bound, 30)


async def _leads(client: Client) -> bool:
    leases = await client.list(LEASES, "default")
    return any(lease["spec"].get("holderIdentity") for lease in leases)


async def _until(condition: Callable[[], Awaitable[bool]], limit_s: float) -> None:
    async with asyncio.timeout(limit_s):
        while not await condition():  # noqa: ASYNC110  # what it asks for is in another process or behind an API
            await asyncio.sleep(0.1)


def main() -> None:
    directory = Path(sys.argv[1])
    specification = json.loads((directory / "spec.json").read_text())
    (directory / "result.json").write_text(json.dumps(asyncio.run(run(specification, directory))))


if __name__ == "__main__":
    main()
