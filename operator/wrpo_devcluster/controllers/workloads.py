"""Controllers of Deployments and ReplicaSets: rollouts, `kubectl rollout status` and `helm --wait`."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from wrpo_devcluster.client import DEPLOYMENTS, PODS, REPLICA_SETS, ApiError, Client, JsonObject
from wrpo_devcluster.clock import Clock, timestamp
from wrpo_devcluster.controllers.base import Controller, Watched, controller_key, delete_if_exists, get_or_none, own_key
from wrpo_devcluster.controllers.events import EventRecorder
from wrpo_devcluster.objects import (
    controller_of,
    is_active,
    is_deleting,
    is_ready,
    labels_of,
    owner_reference,
    pod_phase,
    set_condition,
    split_key,
    stable_hash,
)

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"


def owned_by(items: list[JsonObject], owner: JsonObject) -> list[JsonObject]:
    """Return the items that an object controls."""
    uid = owner["metadata"]["uid"]
    return [item for item in items if (controller_of(item) or {}).get("uid") == uid]


def surplus_pods(pods: list[JsonObject], wanted: int) -> list[JsonObject]:
    """Return the pods to delete so that `wanted` remain: unscheduled first, then unready, then the youngest."""
    order = sorted(
        pods,
        key=lambda p: (
            bool(p["spec"].get("nodeName")),
            pod_phase(p) == "Running",
            is_ready(p),
            [-ord(c) for c in p["metadata"]["creationTimestamp"]],
        ),
    )
    return order[: max(0, len(pods) - wanted)]


class ReplicaSetController(Controller):
    """Controller of ReplicaSets: creates and deletes pods until their number is right."""

    name = "replicaset-controller"

    def __init__(self, client: Client, clock: Clock) -> None:
        super().__init__(client, clock)
        self._events = EventRecorder(client, clock, self.name)

    @override
    def watched(self) -> Sequence[Watched]:
        return (Watched(REPLICA_SETS, own_key), Watched(PODS, controller_key("ReplicaSet")))

    @override
    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        found = await get_or_none(self.client, REPLICA_SETS, name, namespace)
        if found is None or is_deleting(found):
            return None
        replica_set = {**found, "apiVersion": "apps/v1", "kind": "ReplicaSet"}
        pods = [p for p in owned_by(await self.client.list(PODS, namespace), replica_set) if is_active(p)]
        wanted = int(replica_set["spec"].get("replicas", 1))
        failed = False
        for pod in surplus_pods(pods, wanted):
            if await delete_if_exists(self.client, PODS, pod):
                message = f"Deleted pod: {pod['metadata']['name']}"
                await self._events.event(replica_set, "Normal", "SuccessfulDelete", message)
        for _ in range(wanted - len(pods)):
            failed = not await self._create(replica_set)
            if failed:
                break
        await self._write_status(found, pods)
        return 2.0 if failed else None

    async def _create(self, replica_set: JsonObject) -> bool:
        meta, template = replica_set["metadata"], copy.deepcopy(replica_set["spec"]["template"])
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **{k: v for k, v in (template.get("metadata") or {}).items() if k in {"labels", "annotations"}},
                "generateName": f"{meta['name']}-",
                "namespace": meta["namespace"],
                "ownerReferences": [owner_reference(replica_set)],
            },
            "spec": template["spec"],
        }
        try:
            created = await self.client.create(PODS, pod, meta["namespace"])
        except ApiError as error:
            await self._events.event(replica_set, "Warning", "FailedCreate", f"Error creating: {error}")
            return False
        message = f"Created pod: {created['metadata']['name']}"
        await self._events.event(replica_set, "Normal", "SuccessfulCreate", message)
        return True

    async def _write_status(self, replica_set: JsonObject, pods: list[JsonObject]) -> None:
        ready = sum(is_ready(pod) for pod in pods)
        labels = replica_set["spec"]["template"].get("metadata", {}).get("labels") or {}
        status: JsonObject = {
            "replicas": len(pods),
            "fullyLabeledReplicas": sum(labels.items() <= labels_of(p).items() for p in pods),
            "observedGeneration": replica_set["metadata"].get("generation", 1),
        }
        if ready:
            status |= {"readyReplicas": ready, "availableReplicas": ready}
        if status != (replica_set.get("status") or {}):
            await self.client.update(REPLICA_SETS, {**replica_set, "status": status}, subresource="status")


def template_hash(template: JsonObject) -> str:
    """Return the hash of a pod template that distinguishes a Deployment's ReplicaSets."""
    return stable_hash(json.dumps(template, sort_keys=True))


@dataclass(frozen=True, slots=True)
class Rollout:
    """Requested and ready pods, of the new ReplicaSet and of all old ones together."""

    wanted: int
    new: int
    new_ready: int
    old: int


def rollout_sizes(state: Rollout, *, max_surge: int, max_unavailable: int) -> tuple[int, int]:
    """Return (new replicas, old replicas) of the next step of a rolling update.

    Invariant: a step never deletes old pods that are needed for `wanted - max_unavailable` ready ones.
    """
    room = max(0, state.wanted + max_surge - state.new - state.old)
    new = min(state.wanted, state.new + room)
    removable = state.old + state.new_ready - (state.wanted - max_unavailable)
    return new, state.old - min(state.old, max(0, removable))


def absolute(value: int | str | None, total: int, *, round_up: bool, default: str = "25%") -> int:
    """Read an int-or-percent field."""
    chosen = default if value is None else value
    if isinstance(chosen, str) and chosen.endswith("%"):
        exact = total * int(chosen[:-1])
        return -(-exact // 100) if round_up else exact // 100
    return int(chosen)


class DeploymentController(Controller):
    """Controller of Deployments: one ReplicaSet for each pod template, of which the newest has the pods."""

    name = "deployment-controller"

    def __init__(self, client: Client, clock: Clock) -> None:
        super().__init__(client, clock)
        self._events = EventRecorder(client, clock, self.name)

    @override
    def watched(self) -> Sequence[Watched]:
        return (Watched(DEPLOYMENTS, own_key), Watched(REPLICA_SETS, controller_key("Deployment")))

    @override
    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        found = await get_or_none(self.client, DEPLOYMENTS, name, namespace)
        if found is None or is_deleting(found):
            return None
        deployment = {**found, "apiVersion": "apps/v1", "kind": "Deployment"}
        everything = await self.client.list(REPLICA_SETS, namespace)
        mine = [r for r in owned_by(everything, deployment) if not is_deleting(r)]
        digest = template_hash(deployment["spec"]["template"])
        current = next((r for r in mine if labels_of(r).get(HASH_LABEL) == digest), None)
        if current is None:
            current = await self._create_replica_set(deployment, digest, mine)
            mine.append(current)
        old = [r for r in mine if r["metadata"]["uid"] != current["metadata"]["uid"]]
        if not deployment["spec"].get("paused"):
            await self._scale(deployment, current, old)
        await self._write_status(found, current, mine)
        await self._prune(deployment, old)
        return None

    async def _create_replica_set(self, deployment: JsonObject, digest: str, existing: list[JsonObject]) -> JsonObject:
        meta, spec = deployment["metadata"], deployment["spec"]
        template = copy.deepcopy(spec["template"])
        template.setdefault("metadata", {}).setdefault("labels", {})[HASH_LABEL] = digest
        selector = copy.deepcopy(spec["selector"])
        selector.setdefault("matchLabels", {})[HASH_LABEL] = digest
        revision = 1 + max((_revision(r) for r in existing), default=0)
        body = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{meta['name']}-{digest}",
                "namespace": meta["namespace"],
                "labels": template["metadata"]["labels"],
                "annotations": {REVISION: str(revision)},
                "ownerReferences": [owner_reference(deployment)],
            },
            "spec": {"replicas": 0, "selector": selector, "template": template},
        }
        created = await self.client.create(REPLICA_SETS, body, meta["namespace"])
        if (meta.get("annotations") or {}).get(REVISION) != str(revision):
            patch = {"metadata": {"annotations": {REVISION: str(revision)}}}
            await self.client.patch(DEPLOYMENTS, meta["name"], meta["namespace"], patch)
        return created

    async def _scale(self, deployment: JsonObject, current: JsonObject, old: list[JsonObject]) -> None:
        wanted = int(deployment["spec"].get("replicas", 1))
        strategy = deployment["spec"].get("strategy") or {}
        rolling = strategy.get("rollingUpdate") or {}
        if strategy.get("type") == "Recreate":
            new_size, old_size = (0 if any(_number(r, "replicas") for r in old) else wanted), 0
        else:
            state = Rollout(
                wanted=wanted,
                new=int(current["spec"].get("replicas", 0)),
                new_ready=_number(current, "readyReplicas"),
                old=sum(int(r["spec"].get("replicas", 0)) for r in old),
            )
            new_size, old_size = rollout_sizes(
                state,
                max_surge=absolute(rolling.get("maxSurge"), wanted, round_up=True),
                max_unavailable=absolute(rolling.get("maxUnavailable"), wanted, round_up=False),
            )
        await self._resize(deployment, current, new_size)
        for replica_set in sorted(old, key=_revision, reverse=True):
            size = min(old_size, int(replica_set["spec"].get("replicas", 0)))
            old_size -= size
            await self._resize(deployment, replica_set, size)

    async def _resize(self, deployment: JsonObject, replica_set: JsonObject, size: int) -> None:
        before = int(replica_set["spec"].get("replicas", 0))
        if before == size:
            return
        meta = replica_set["metadata"]
        await self.client.patch(REPLICA_SETS, meta["name"], meta["namespace"], {"spec": {"replicas": size}})
        direction = "up" if size > before else "down"
        message = f"Scaled {direction} replica set {meta['name']} from {before} to {size}"
        await self._events.event(deployment, "Normal", "ScalingReplicaSet", message)

    async def _write_status(self, deployment: JsonObject, current: JsonObject, mine: list[JsonObject]) -> None:
        status = deployment_status(deployment, current, mine, timestamp(self.clock.now()))
        conditions = list((deployment.get("status") or {}).get("conditions") or [])
        for entry in status.pop("conditions"):
            before = conditions
            conditions = set_condition(conditions, entry, self.clock.now())
            if conditions != before:
                stamp = {"lastUpdateTime": timestamp(self.clock.now())}
                conditions = [{**c, **stamp} if c["type"] == entry["type"] else c for c in conditions]
        status["conditions"] = conditions
        if status != (deployment.get("status") or {}):
            await self.client.update(DEPLOYMENTS, {**deployment, "status": status}, subresource="status")

    async def _prune(self, deployment: JsonObject, old: list[JsonObject]) -> None:
        limit = int(deployment["spec"].get("revisionHistoryLimit", 10))
        idle = [r for r in old if not r["spec"].get("replicas") and not _number(r, "replicas")]
        for replica_set in sorted(idle, key=_revision)[: max(0, len(idle) - limit)]:
            await delete_if_exists(self.client, REPLICA_SETS, replica_set)


def deployment_status(deployment: JsonObject, current: JsonObject, mine: list[JsonObject], stamp: str) -> JsonObject:
    """Sum up the ReplicaSets. `conditions` are the desired ones, without times."""
    wanted = int(deployment["spec"].get("replicas", 1))
    replicas = sum(_number(r, "replicas") for r in mine)
    updated = _number(current, "replicas")
    ready = sum(_number(r, "readyReplicas") for r in mine)
    rolling = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    floor = wanted - absolute(rolling.get("maxUnavailable"), wanted, round_up=False)
    is_available = ready >= floor
    name = current["metadata"]["name"]
    is_rolled_out = updated == wanted == replicas == ready
    status: JsonObject = {"observedGeneration": deployment["metadata"].get("generation", 1)}
    numbers = {
        "replicas": replicas,
        "updatedReplicas": updated,
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(0, wanted - ready),
    }
    status |= {field: number for field, number in numbers.items() if number}
    available = (
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        if is_available
        else ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    )
    progressing = (
        ("NewReplicaSetAvailable", f'ReplicaSet "{name}" has successfully progressed.')
        if is_rolled_out
        else ("ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.')
    )
    status["conditions"] = [
        {
            "type": "Available",
            "status": available[0],
            "reason": available[1],
            "message": available[2],
            "lastUpdateTime": stamp,
        },
        {
            "type": "Progressing",
            "status": "True",
            "reason": progressing[0],
            "message": progressing[1],
            "lastUpdateTime": stamp,
        },
    ]
    return status


def _number(replica_set: JsonObject, field: str) -> int:
    return int((replica_set.get("status") or {}).get(field, 0))


def _revision(replica_set: JsonObject) -> int:
    return int((replica_set["metadata"].get("annotations") or {}).get(REVISION, 0))
