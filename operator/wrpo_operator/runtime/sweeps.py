"""One reconcile of a sweep: snapshot -> plan -> experiments -> at most one status write -> deletions -> events.

It decides nothing. Names of experiments are derived from the spec, so creating one twice changes nothing. A process
that ends between two writes leaves a state from which the next plan continues. Every write first checks that this
process still leads.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from wrpo_operator.api import names
from wrpo_operator.api.pod_template import STRICT, PodTemplatePolicy
from wrpo_operator.api.status import FINISHED, Phase
from wrpo_operator.plan.sweep_expand import Wanted
from wrpo_operator.plan.sweep_model import Action, Member, Refused, SweepPlan, SweepSnapshot, Write
from wrpo_operator.plan.sweep_planner import plan_sweep
from wrpo_operator.runtime.cluster import Cluster
from wrpo_operator.runtime.events import EventWriter
from wrpo_operator.runtime.host import Host, NotLeadingError
from wrpo_operator.runtime.kube import KubeError
from wrpo_operator.runtime.log import bind
from wrpo_operator.runtime.queue import RetryAfterError
from wrpo_operator.runtime.refusals import shorten
from wrpo_operator.runtime.resources import (
    EXPERIMENTS,
    SWEEPS,
    JsonObject,
    meta,
    name_of,
    namespace_of,
    uid_of,
)
from wrpo_operator.runtime.store import Key
from wrpo_operator.runtime.sweep_snapshot import SweepSnapshots
from wrpo_operator.runtime.writes import merge_patch_of, together

log = logging.getLogger(__name__)
INVALID = 422
"""Status of a request that only another spec can make acceptable."""
REFUSED_AGAIN_S = 60.0
"""Seconds until a refused experiment is tried again, e.g. because a quota or an admission policy refuses it."""
AGAIN_S = 0.2
"""Seconds until the next reconcile when the sweep changed during the reconcile."""


class SweepReconciler:
    """Applies the plans of sweeps to the cluster."""

    def __init__(self, cluster: Cluster, host: Host, *, identity: str, policy: PodTemplatePolicy = STRICT) -> None:
        self._client = cluster.client
        self._store = cluster.store
        self._now = cluster.now
        self._monotonic = cluster.monotonic
        self._host = host
        self._snapshots = SweepSnapshots(cluster.store, policy)
        self._events = EventWriter(client=cluster.client, now=cluster.now, host=identity, check=host.check)
        self._refused: dict[Key, dict[str, tuple[str, Refused, float]]] = {}
        """Sweep -> experiment -> digest of the refused spec, refusal, and when to try again."""

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one sweep; return the seconds until the next reconcile, or None."""
        namespace, name = key
        bind(experiment=f"{namespace}/{name}")
        sweep = self._store.get(SWEEPS, namespace, name)
        if sweep is None:
            self._snapshots.forget(key)
            self._refused.pop(key, None)
            self._host.forget(key)
            return None
        if not self._host.may_act():
            return None
        try:
            return await self._carry_out(key, sweep)
        except NotLeadingError:
            log.info("reconcile aborted: this operator is no longer the leader")
            return None
        except KubeError as error:
            raise RetryAfterError(error.retry_after_s or 0.0) from error

    async def _carry_out(self, key: Key, sweep: JsonObject) -> float | None:
        snapshot, todo = self._plan(key, sweep)
        if todo.writes:
            await together(self._write(key, sweep, write) for write in todo.writes)
            # The status describes what the writes have changed.
            snapshot, todo = self._plan(key, sweep)
        if not await self._write_status(sweep, snapshot, todo):
            return AGAIN_S
        await together(self._delete(sweep, member) for member in todo.delete)
        subject = {**sweep, "kind": SWEEPS.kind}
        await together(self._events.post(subject, event) for event in todo.events)
        if todo.writes or todo.delete or todo.status.source_order != snapshot.status.source_order:
            # There may be room for others now, or the sources of further variants are known.
            return AGAIN_S
        if todo.status.phase in FINISHED or todo.status.phase is Phase.INVALID:
            self._snapshots.forget(key)
        waits = [
            due - self._monotonic() for _, refused, due in self._refused.get(key, {}).values() if not refused.is_final
        ]
        return max(0.0, min(waits)) if waits else None

    def _plan(self, key: Key, sweep: JsonObject) -> tuple[SweepSnapshot, SweepPlan]:
        snapshot = self._snapshots.build(sweep)
        wanted = {item.name: item.digest for row in snapshot.expansion.rows for item in row.experiments}
        at = self._monotonic()
        known = self._refused[key] = {
            name: entry
            for name, entry in self._refused.get(key, {}).items()
            if wanted.get(name) == entry[0] and (entry[1].is_final or entry[2] > at)
        }
        snapshot = replace(snapshot, refused={name: refused for name, (_, refused, _) in known.items()})
        return snapshot, plan_sweep(snapshot, self._now())

    async def _write(self, key: Key, sweep: JsonObject, write: Write) -> None:
        """Carry out one write; a refusal is remembered and shown in the row of its variant."""
        self._host.check()
        try:
            if write.action is Action.CREATE:
                answer = await self._create(sweep, write.wanted)
            else:
                answer = await self._change(sweep, write)
        except KubeError as error:
            if error.unreachable or error.code == 429 or error.code >= 500:
                raise
            if error.not_found or error.conflict:
                await self._read_again(sweep, write.wanted.name)
                raise
            log.warning("%s", error.message)
            refused = Refused(shorten(error.words), error.code == INVALID)
            due = self._monotonic() + REFUSED_AGAIN_S
            self._refused.setdefault(key, {})[write.wanted.name] = (write.wanted.digest, refused, due)
            return
        if answer is not None:
            self._store.upsert(EXPERIMENTS, answer)
            self._host.wake((namespace_of(sweep), write.wanted.name))
        log.info("%s experiment %s", write.action.value.lower(), write.wanted.name, extra={"child": write.wanted.name})

    async def _create(self, sweep: JsonObject, wanted: Wanted) -> JsonObject | None:
        try:
            return await self._client.create(EXPERIMENTS, experiment_of(sweep, wanted))
        except KubeError as error:
            if not error.conflict:
                raise
            # It exists: created by a request whose reply was lost, or it has another owner.
            return await self._client.get(EXPERIMENTS, wanted.name, namespace_of(sweep))

    async def _read_again(self, sweep: JsonObject, name: str) -> None:
        """Read an experiment that has changed or vanished before the watch reports it."""
        namespace = namespace_of(sweep)
        try:
            self._store.upsert(EXPERIMENTS, await self._client.get(EXPERIMENTS, name, namespace))
        except KubeError as error:
            stored = self._store.get(EXPERIMENTS, namespace, name)
            if error.not_found and stored is not None:
                self._store.delete(EXPERIMENTS, stored)
            elif not error.not_found:
                raise

    async def _change(self, sweep: JsonObject, write: Write) -> JsonObject | None:
        """Patch an experiment as it is stored; one that has changed meanwhile raises a conflict."""
        name, namespace = write.wanted.name, namespace_of(sweep)
        stored = self._store.get(EXPERIMENTS, namespace, name)
        if stored is None:
            return None
        patch = patch_of(stored, write)
        patch["metadata"]["resourceVersion"] = meta(stored).get("resourceVersion")
        return await self._client.merge_patch(EXPERIMENTS, name, namespace, patch)

    async def _delete(self, sweep: JsonObject, member: Member) -> None:
        self._host.check()
        namespace = namespace_of(sweep)
        log.info("deleting experiment %s: no variant wants it", member.name, extra={"child": member.name})
        try:
            answer = await self._client.delete(EXPERIMENTS, member.name, namespace, uid=member.uid)
        except KubeError as error:
            if not (error.not_found or error.conflict):
                raise
            answer = {}
        if meta(answer).get("deletionTimestamp"):
            self._store.upsert(EXPERIMENTS, answer)
        else:
            gone = {"metadata": {"namespace": namespace, "name": member.name, "uid": member.uid}}
            self._store.delete(EXPERIMENTS, gone)
        self._host.wake((namespace, member.name))

    async def _write_status(self, sweep: JsonObject, snapshot: SweepSnapshot, todo: SweepPlan) -> bool:
        """Write the status if it changed; return False if the sweep has changed meanwhile."""
        if todo.status == snapshot.status:
            return True
        self._host.check()
        before: JsonObject = sweep.get("status") or {}
        patch: JsonObject = {
            "metadata": {"resourceVersion": meta(sweep).get("resourceVersion")},
            "status": merge_patch_of(before, todo.status.to_dict()),
        }
        name, namespace = name_of(sweep), namespace_of(sweep)
        try:
            answer = await self._client.merge_patch(SWEEPS, name, namespace, patch, subresource="status")
        except KubeError as error:
            if error.not_found:
                return True
            if not error.conflict:
                raise
            self._store.upsert(SWEEPS, await self._client.get(SWEEPS, name, namespace))
            return False
        self._store.upsert(SWEEPS, answer)
        return True


def experiment_of(sweep: JsonObject, wanted: Wanted) -> JsonObject:
    """Return the manifest of an experiment that a sweep owns."""
    labels = {
        names.LABEL_SWEEP: name_of(sweep),
        names.LABEL_SWEEP_UID: uid_of(sweep),
        names.LABEL_VARIANT: wanted.variant,
    }
    if wanted.seed is not None:
        labels[names.LABEL_SEED] = str(wanted.seed)
    owner = {
        "apiVersion": SWEEPS.api_version,
        "kind": SWEEPS.kind,
        "name": name_of(sweep),
        "uid": uid_of(sweep),
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": EXPERIMENTS.api_version,
        "kind": EXPERIMENTS.kind,
        "metadata": {
            "name": wanted.name,
            "namespace": namespace_of(sweep),
            "labels": labels,
            "annotations": {names.ANNOTATION_SWEEP_SPEC: wanted.digest},
            "ownerReferences": [owner],
        },
        "spec": wanted.spec,
    }


def patch_of(stored: JsonObject, write: Write) -> JsonObject:
    """Return the merge patch of a write. A suspension by a user is kept, that of the sweep ends with it."""
    mark: dict[str, Any] = {names.ANNOTATION_SWEEP_SUSPENDED: None}
    if write.action is Action.SUSPEND:
        return {
            "metadata": {"annotations": {names.ANNOTATION_SWEEP_SUSPENDED: "true"}},
            "spec": {"suspend": True},
        }
    if write.action is Action.RESUME:
        return {"metadata": {"annotations": mark}, "spec": {"suspend": False}}
    by_sweep = names.ANNOTATION_SWEEP_SUSPENDED in (meta(stored).get("annotations") or {})
    spec: JsonObject = stored.get("spec") or {}
    suspend = {} if by_sweep or "suspend" not in spec else {"suspend": spec["suspend"]}
    return {
        "metadata": {"annotations": {**mark, names.ANNOTATION_SWEEP_SPEC: write.wanted.digest}},
        "spec": merge_patch_of(spec, write.wanted.spec | suspend),
    }
