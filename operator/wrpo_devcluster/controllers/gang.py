"""Common base of the controllers of training resources: owned objects, status and events."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from wrpo_devcluster.client import SERVICES, Client, JsonObject, Resource
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.base import Controller, Watched, controller_key, get_or_none, own_key
from wrpo_devcluster.controllers.events import EventRecorder
from wrpo_devcluster.objects import is_deleting, split_key


class GangController(Controller):
    """Controller of one kind. A change of an owned object enqueues the owner."""

    resource: Resource
    kind: str
    owned: tuple[Resource, ...]

    def __init__(self, client: Client, clock: Clock) -> None:
        super().__init__(client, clock)
        self.events = EventRecorder(client, clock, self.name)

    @override
    def watched(self) -> Sequence[Watched]:
        to_owner = controller_key(self.kind)
        return (Watched(self.resource, own_key), *(Watched(resource, to_owner) for resource in self.owned))

    @override
    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        found = await get_or_none(self.client, self.resource, name, namespace)
        if found is None or is_deleting(found):
            return None
        api_version = f"{self.resource.group}/{self.resource.version}"
        return await self.advance({**found, "apiVersion": api_version, "kind": self.kind})

    async def advance(self, job: JsonObject) -> float | None:
        """Reconcile one object that exists and is not being deleted."""
        raise NotImplementedError

    async def write_status(self, job: JsonObject, status: JsonObject) -> None:
        """Write the status if it differs."""
        if status != (job.get("status") or {}):
            await self.client.update(self.resource, {**job, "status": status}, subresource="status")

    async def ensure_service(self, service: JsonObject) -> bool:
        """Create a Service unless one of its name exists; return whether it was created."""
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        if await get_or_none(self.client, SERVICES, name, namespace) is not None:
            return False
        await self.client.create(SERVICES, service, namespace)
        return True
