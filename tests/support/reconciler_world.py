"""A reconciler over an API server in memory (`FakeKube` of the runtime's tests), with one experiment `fusion`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from wrpo_operator.render import RenderSettings
from wrpo_operator.runtime.cluster import Cluster
from wrpo_operator.runtime.progress_server import ProgressStore
from wrpo_operator.runtime.reconciler import Reconciler, ReconcilerHost, ReconcilerSettings
from wrpo_operator.runtime.resources import CLAIMS, EXPERIMENTS, JOBS, JsonObject
from wrpo_operator.runtime.snapshot import SnapshotBuilder
from wrpo_operator.runtime.store import ObjectStore

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SPEC: JsonObject = {
    "target": {"model": "org/target"},
    "sources": [{"name": "a", "model": "org/a"}],
    "prompts": {"dataset": "org/prompts"},
    "reward": {"model": "org/reward"},
    "storage": {"volume": {"claimName": "artifacts"}},
    "training": {"gpusPerNode": 0},
    "resources": {stage: {"limits": {"nvidia.com/gpu": 0}} for stage in ("sample", "score", "evaluate")},
}
"""The stages are sized, so that no model is inspected."""


class World:
    def __init__(self, kube: Any, clock: Any, *, moment_s: float = 0.0) -> None:
        self.kube, self.store, self.clock = kube, ObjectStore(), clock
        self.now = NOON
        self.leading = True
        self.generation = 1
        self.forgotten: list[tuple[str, str]] = []
        self.statuses: list[tuple[JsonObject, JsonObject | None]] = []
        """Of each write of the status: the one before it, and the one after it or None."""
        self.kube.put(CLAIMS, {"metadata": {"name": "artifacts"}, "status": {"phase": "Bound"}})
        self.backends = frozenset({"PyTorchJob"})
        snapshots = SnapshotBuilder(self.store, ProgressStore(), backends=lambda: self.backends)
        self.reconciler = Reconciler(
            Cluster(client=kube, store=self.store, now=lambda: self.now, monotonic=clock),
            snapshots,
            ReconcilerSettings(RenderSettings(), "op-1", manage_service_account=True, moment_s=moment_s),
            ReconcilerHost(
                may_act=lambda: self.leading,
                forget=self.forgotten.append,
                on_status=lambda before, after: self.statuses.append((before, after)),
            ),
        )

    def put_experiment(self, **spec: Any) -> JsonObject:
        body = {
            "metadata": {"name": "fusion", "generation": 1, "creationTimestamp": "2026-01-01T11:59:00Z"},
            "spec": {**SPEC, **spec},
        }
        obj: JsonObject = self.kube.put(EXPERIMENTS, body)
        self.store.upsert(EXPERIMENTS, obj)
        return obj

    def edit(self, **spec: Any) -> None:
        """Change the spec as a user does, with a new generation."""
        self.generation += 1
        stored = self.kube.objects[EXPERIMENTS, "default", "fusion"]
        metadata = {**stored["metadata"], "generation": self.generation}
        body = {**stored, "metadata": metadata, "spec": {**stored["spec"], **spec}}
        self.store.upsert(EXPERIMENTS, self.kube.put(EXPERIMENTS, body))

    def reconcile(self) -> float | None:
        self.kube.calls.clear()
        return asyncio.run(self.reconciler.reconcile(("default", "fusion")))

    def job(self, stage: str) -> JsonObject:
        (job,) = [obj for (kind, _, name), obj in self.kube.objects.items() if kind == JOBS and f"-{stage}-" in name]
        found: JsonObject = job
        return found

    def finish(self, stage: str) -> None:
        status = {"conditions": [{"type": "Complete", "status": "True"}], "completionTime": "2026-01-01T12:05:00Z"}
        self.store.upsert(JOBS, self.kube.put(JOBS, {**self.job(stage), "status": status}))

    def status(self) -> JsonObject:
        found: JsonObject = self.kube.objects[EXPERIMENTS, "default", "fusion"].get("status", {})
        return found
