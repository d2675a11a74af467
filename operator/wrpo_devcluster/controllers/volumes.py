"""Volume claim controller: binds each claim of a provisioned class at once to a separate directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from wrpo_devcluster.client import CLAIMS, Client, JsonObject, Resource
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.base import Controller, Watched, get_or_none, own_key
from wrpo_devcluster.controllers.events import EventRecorder
from wrpo_devcluster.objects import is_deleting, split_key

STORAGE_CLASSES = Resource("storage.k8s.io", "v1", "storageclasses")
STORAGE_CLASS = "standard"
PROVISIONER = "wrpo.ai/directory"


def claim_directory(state_dir: Path, namespace: str, claim: str) -> Path:
    """Return the directory that holds a claim's files."""
    return state_dir / "volumes" / namespace / claim


class ClaimController(Controller):
    """Controller of claims. The directory outlives the claim, so that a demo's artifacts survive a reinstall."""

    name = "persistentvolume-controller"

    def __init__(self, client: Client, clock: Clock, *, state_dir: Path) -> None:
        super().__init__(client, clock)
        self._state_dir = state_dir
        self._events = EventRecorder(client, clock, self.name)
        self._waiting: set[str] = set()
        """Keys of claims whose class is not provisioned here."""

    @override
    def watched(self) -> Sequence[Watched]:
        return (Watched(CLAIMS, own_key), Watched(STORAGE_CLASSES, lambda _: tuple(self._waiting)))

    @override
    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        claim = await get_or_none(self.client, CLAIMS, name, namespace)
        if claim is None or is_deleting(claim) or (claim.get("status") or {}).get("phase") == "Bound":
            self._waiting.discard(key)
            return None
        if await self._is_anothers(claim):
            self._waiting.add(key)
            return None
        self._waiting.discard(key)
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

    async def _is_anothers(self, claim: JsonObject) -> bool:
        """Return whether the claim's storage class is not provisioned here; if so, write an event that says so."""
        name = claim["spec"].get("storageClassName")
        if not name:
            return False
        found = await get_or_none(self.client, STORAGE_CLASSES, name)
        if found is not None and found["provisioner"] == PROVISIONER:
            return False
        typed = {**claim, "apiVersion": "v1", "kind": "PersistentVolumeClaim"}
        if found is None:
            text = f'storageclass.storage.k8s.io "{name}" not found'
            await self._events.event(typed, "Warning", "ProvisioningFailed", text)
        else:
            text = (
                "Waiting for a volume to be created either by the external provisioner "
                f"'{found['provisioner']}' or manually by the system administrator"
            )
            await self._events.event(typed, "Normal", "ExternalProvisioning", text)
        return True


def bound_status(claim: JsonObject) -> JsonObject:
    """Return the status of a bound claim, which gets all that it requests."""
    storage = ((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage", "1Gi")
    return {
        "phase": "Bound",
        "accessModes": claim["spec"].get("accessModes") or ["ReadWriteOnce"],
        "capacity": {"storage": storage},
    }
