"""Job controller: reads a Job and its pods, decides, and carries the decision out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, cast

from typing_extensions import override

from wrpo_devcluster.client import JOBS, PODS, ApiError, Client, JsonObject
from wrpo_devcluster.clock import Clock, parse_time
from wrpo_devcluster.controllers.base import (
    Controller,
    Watched,
    controller_key,
    delete_if_exists,
    get_or_none,
    own_key,
)
from wrpo_devcluster.controllers.events import EventRecorder
from wrpo_devcluster.controllers.job_decide import JobDecision, NewPod, decide
from wrpo_devcluster.controllers.job_view import (
    FAILURE_COUNT_KEY,
    IGNORED_COUNT_KEY,
    INDEX_KEY,
    MANAGED_BY,
    TRACKING_FINALIZER,
)
from wrpo_devcluster.delays import NONE, Delays, Holds, pod_identity
from wrpo_devcluster.objects import controller_of, is_deleting, is_terminal, is_true, owner_reference, split_key

_CREATE_BACKOFF_S = 1.0
_BATCH_S = 0.1
"""Seconds added to a backoff, so that one reconciliation sees all changes in between."""


def render_pod(job: JsonObject, new: NewPod) -> JsonObject:
    """Return the pod of a Job as the real controller makes it: with tracking finalizer, owner and index."""
    template, meta = copy.deepcopy(job["spec"]["template"]), job["metadata"]
    labels = dict((template.get("metadata") or {}).get("labels") or {})
    annotations = dict((template.get("metadata") or {}).get("annotations") or {})
    spec = template["spec"]
    prefix = f"{meta['name']}-"
    if new.index is not None:
        prefix = f"{meta['name']}-{new.index}-"
        labels[INDEX_KEY] = str(new.index)
        annotations[INDEX_KEY] = str(new.index)
        spec["hostname"] = f"{meta['name']}-{new.index}"
        if job["spec"].get("backoffLimitPerIndex") is not None:
            annotations[FAILURE_COUNT_KEY] = str(new.failure_count)
            if new.ignored_count:
                annotations[IGNORED_COUNT_KEY] = str(new.ignored_count)
        for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
            _add_index_env(container)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": prefix,
            "namespace": meta["namespace"],
            "labels": labels,
            **({"annotations": annotations} if annotations else {}),
            "ownerReferences": [owner_reference({**job, "apiVersion": "batch/v1", "kind": "Job"})],
            "finalizers": [TRACKING_FINALIZER],
        },
        "spec": spec,
    }


def _add_index_env(container: JsonObject) -> None:
    env = container.setdefault("env", [])
    if not any(entry["name"] == "JOB_COMPLETION_INDEX" for entry in env):
        path = f"metadata.labels['{INDEX_KEY}']"
        env.append({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}})


class JobController(Controller):
    """Controller of Jobs: carries out what `job_decide` decides."""

    name = "job-controller"

    def __init__(self, client: Client, clock: Clock, *, backoff_s: float = 10.0, delays: Delays = NONE) -> None:
        super().__init__(client, clock)
        self._backoff_s = backoff_s
        self._holds = Holds(delays, clock)
        self._events = EventRecorder(client, clock, self.name)
        self._refusals: dict[str, tuple[int, float]] = {}

    @override
    def watched(self) -> Sequence[Watched]:
        return (Watched(JOBS, own_key), Watched(PODS, controller_key("Job")))

    @override
    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        job = await get_or_none(self.client, JOBS, name, namespace)
        pods = await self._pods(namespace, name, job)
        if job is None or is_deleting(job):
            await self._release(namespace, [p for p in pods if TRACKING_FINALIZER in _finalizers(p)])
            self._refusals.pop(key, None)
            self._holds.forget(key)
            return None
        lag_s = self._lag_s(key, job, pods)
        if lag_s > 0:
            return lag_s
        if job["spec"].get("managedBy") not in {None, MANAGED_BY}:
            return None
        decision = decide(job, pods, self.clock.now(), backoff_s=self._backoff_s)
        if decision.status != (job.get("status") or {}):
            await self.client.update(JOBS, {**job, "status": decision.status}, subresource="status")
        for event in decision.events:
            kind = cast(Literal["Normal", "Warning"], event.kind)
            await self._events.event(_typed(job), kind, event.reason, event.message)
        return await self._carry_out(key, job, pods, decision)

    def _lag_s(self, key: str, job: JsonObject, pods: Sequence[JsonObject]) -> float:
        """Return the seconds until this controller may take the next step."""
        if is_true(job, "Complete") or is_true(job, "Failed"):
            self._holds.forget(key)
            return 0.0
        delays, name = self._holds.delays, job["metadata"]["name"]
        ended = [pod for pod in pods if is_terminal(pod) and TRACKING_FINALIZER in _finalizers(pod)]
        # Pods that end while the first one waits are noted together with it.
        lags = (
            self._holds.left_s(key, f"notice {pod['metadata']['name']}", delays.notice_s, pod_identity(pod))
            for pod in ended
        )
        lag_s = min(lags, default=0.0)
        is_decided = is_true(job, "SuccessCriteriaMet") or is_true(job, "FailureTarget")
        if lag_s <= 0 and is_decided and not ended:
            return self._holds.left_s(key, "settle", delays.settle_s, name)
        return lag_s

    async def _carry_out(
        self, key: str, job: JsonObject, pods: list[JsonObject], decision: JobDecision
    ) -> float | None:
        by_name = {pod["metadata"]["name"]: pod for pod in pods}
        await self._release(job["metadata"]["namespace"], [by_name[name] for name in decision.release])
        for name in decision.delete:
            if await delete_if_exists(self.client, PODS, by_name[name]):
                await self._events.event(_typed(job), "Normal", "SuccessfulDelete", f"Deleted pod: {name}")
        if decision.create:
            return await self._create_all(key, job, decision)
        return decision.requeue_after_s

    async def _create_all(self, key: str, job: JsonObject, decision: JobDecision) -> float | None:
        """Create the pods. After a refusal create none before its backoff ends, regardless of other changes."""
        now_s = self.clock.now().timestamp()
        failures, not_before_s = self._refusals.get(key, (0, 0.0))
        if now_s < not_before_s:
            return not_before_s - now_s
        for new in decision.create:
            if not await self._create(job, new):
                pause_s = _BATCH_S + min(_CREATE_BACKOFF_S * 2.0 ** min(failures, 6), 60.0)
                self._refusals[key] = (failures + 1, now_s + pause_s)
                return pause_s
        self._refusals.pop(key, None)
        return decision.requeue_after_s

    async def _create(self, job: JsonObject, new: NewPod) -> bool:
        try:
            pod = await self.client.create(PODS, render_pod(job, new), job["metadata"]["namespace"])
        except ApiError as error:
            await self._events.event(_typed(job), "Warning", "FailedCreate", f"Error creating: {error}")
            return False
        message = f"Created pod: {pod['metadata']['name']}"
        await self._events.event(_typed(job), "Normal", "SuccessfulCreate", message)
        return True

    async def _pods(self, namespace: str, name: str, job: JsonObject | None) -> list[JsonObject]:
        labelled = await self.client.list(PODS, namespace, label_selector=f"batch.kubernetes.io/job-name={name}")
        owned = []
        for pod in labelled:
            owner = controller_of(pod)
            is_ours = owner is not None and owner["kind"] == "Job" and owner["name"] == name
            if is_ours and owner is not None and (job is None or owner["uid"] == job["metadata"]["uid"]):
                owned.append(pod)
            elif owner is None and job is None:
                # Orphaned by a delete without propagation: only the tracking finalizer is still this controller's.
                owned.append(pod)
        return owned

    async def _release(self, namespace: str, pods: list[JsonObject]) -> None:
        for pod in pods:
            rest = [f for f in _finalizers(pod) if f != TRACKING_FINALIZER]
            patch: Any = {"metadata": {"uid": pod["metadata"]["uid"], "finalizers": rest or None}}
            try:
                await self.client.patch(PODS, pod["metadata"]["name"], namespace, patch, kind="merge")
            except ApiError as error:
                if error.code != 404:
                    raise


class JobTtlController(Controller):
    """Controller that deletes finished Jobs after their ttlSecondsAfterFinished."""

    name = "ttl-after-finished-controller"

    @override
    def watched(self) -> Sequence[Watched]:
        return (Watched(JOBS, own_key),)

    @override
    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        job = await get_or_none(self.client, JOBS, name, namespace)
        if job is None or is_deleting(job) or job["spec"].get("ttlSecondsAfterFinished") is None:
            return None
        left = seconds_to_live(job, self.clock.now().timestamp())
        if left is None or left > 0:
            return left
        await self.client.delete(JOBS, name, namespace, propagation="Foreground", uid=job["metadata"]["uid"])
        return None


def seconds_to_live(job: JsonObject, now_s: float) -> float | None:
    """Return the seconds until a finished Job is deleted; None for an unfinished one."""
    for entry in (job.get("status") or {}).get("conditions") or []:
        if entry["type"] in {"Complete", "Failed"} and is_true(job, entry["type"]):
            end = parse_time(entry["lastTransitionTime"]).timestamp()
            return end + float(job["spec"]["ttlSecondsAfterFinished"]) - now_s
    return None


def _finalizers(pod: JsonObject) -> list[str]:
    return pod["metadata"].get("finalizers") or []


def _typed(job: JsonObject) -> JsonObject:
    return {**job, "apiVersion": "batch/v1", "kind": "Job"}
