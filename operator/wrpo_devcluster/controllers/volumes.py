"""Persistent volume claims: each binds at once to a directory of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wrpo_devcluster.client import CLAIMS, Client, JsonObject, Resource
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.base import Controller, Watched, get_or_none, own_key
from wrpo_devcluster.controllers.events import EventRecorder
from wrpo_devcluster.objects import is_deleting, split_key

STORAGE_CLASSES = Resource("storage.k8s.io", "v1", "storageclasses")
STORAGE_CLASS = "standard"


def claim_directory(state_dir: Path, namespace: str, claim: str) -> Path:
    return state_dir / "volumes" / namespace / claim


class ClaimController(Controller):
    """The directory outlives the claim, so that a demo's artifacts survive a reinstall; `reset` removes it."""

    name = "persistentvolume-controller"

    def __init__(self, client: Client, clock: Clock, *, state_dir: Path) -> None:
        super().__init__(client, clock)
        self._state_dir = state_dir
        self._events = EventRecorder(client, clock, self.name)

    def watched(self) -> Sequence[Watched]:
        return (Watched(CLAIMS, own_key),)

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        claim = await get_or_none(self.client, CLAIMS, name, namespace)
        if claim is None or is_deleting(claim) or (claim.get("status") or {}).get("phase") == "Bound":
            return None
        claim_directory(self._state_dir, namespace, name).mkdir(parents=True, exist_ok=True)
        if not claim["spec"].get("volumeName") or not claim["spec"].get("storageClassName"):
            spec = {
                "volumeName": claim["spec"].get("volumeName") or f"pvc-{claim['metadata']['uid']}",
                "storageClassName": claim["spec"].get("storageClassName") or STORAGE_CLASS,
            }
            claim = await self.client.patch(CLAIMS, name, namespace, {"spec": spec})
        await self.client.update(CLAIMS, {**claim, "status": bound_status(claim)}, subresource="status")
        message = f"Successfully provisioned volume pvc-{claim['metadata']['uid']}"
        typed = {**claim, "apiVersion": "v1", "kind": "PersistentVolumeClaim"}
        await self._events.event(typed, "Normal", "ProvisioningSucceeded", message)
        return None


def bound_status(claim: JsonObject) -> JsonObject:
    storage = ((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage", "1Gi")
    return {
        "phase": "Bound",
        "accessModes": claim["spec"].get("accessModes") or ["ReadWriteOnce"],
        "capacity": {"storage": storage},
    }
