"""The PyTorchJob controller: carries out what `pytorchjob_decide` decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

from wrpo_devcluster.client import PODS, PYTORCH_JOBS, SERVICES, ApiError, Client, JsonObject
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.base import (
    Controller,
    Watched,
    controller_key,
    delete_if_exists,
    get_or_none,
    own_key,
)
from wrpo_devcluster.controllers.events import EventRecorder
from wrpo_devcluster.controllers.pytorchjob_decide import KIND, Decision, NewReplica, decide
from wrpo_devcluster.controllers.pytorchjob_render import (
    CONTAINER,
    DEFAULT_PORT,
    JOB_NAME,
    master_port,
    render_pod,
    render_service,
    replica_name,
)
from wrpo_devcluster.objects import controller_of, is_deleting, split_key


def invalid(job: JsonObject) -> str:
    """Return why the training operator would refuse the job; empty if it would not."""
    specs = job["spec"].get("pytorchReplicaSpecs") or {}
    if not specs:
        return "PyTorchJobSpec is not valid: pytorchReplicaSpecs is empty; set Master"
    if "Master" in specs and int(specs["Master"].get("replicas", 1)) != 1:
        return f"PyTorchJobSpec is not valid: Master replicas is {specs['Master']['replicas']} but must be 1"
    for role, spec in specs.items():
        names = [c["name"] for c in ((spec.get("template") or {}).get("spec") or {}).get("containers") or []]
        if CONTAINER not in names:
            return f"PyTorchJobSpec is not valid: There is no container named {CONTAINER} in {role}; it has {names}"
    return ""


class PyTorchJobController(Controller):
    name = "pytorchjob-controller"

    def __init__(
        self,
        client: Client,
        clock: Clock,
        *,
        default_port: Callable[[JsonObject], int] = lambda _: DEFAULT_PORT,
        wait_for_master: bool = True,
    ) -> None:
        super().__init__(client, clock)
        self._default_port = default_port
        self._wait_for_master = wait_for_master
        self._events = EventRecorder(client, clock, self.name)

    def watched(self) -> Sequence[Watched]:
        to_job = controller_key(KIND)
        return (Watched(PYTORCH_JOBS, own_key), Watched(PODS, to_job), Watched(SERVICES, to_job))

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        found = await get_or_none(self.client, PYTORCH_JOBS, name, namespace)
        if found is None or is_deleting(found):
            return None
        job = {**found, "apiVersion": "kubeflow.org/v1", "kind": KIND}
        why = invalid(job)
        if why:
            await self._events.event(job, "Warning", "PyTorchJobFailedValidation", why)
            return None
        pods = await self._owned(job)
        decision = decide(job, pods, self.clock.now())
        if decision.status != (found.get("status") or {}):
            await self._write_status(found, decision.status)
        for notice in decision.events:
            kind = cast(Literal["Normal", "Warning"], notice.kind)
            await self._events.event(job, kind, notice.reason, notice.message)
        return await self._carry_out(job, pods, decision)

    async def _write_status(self, job: JsonObject, status: JsonObject) -> None:
        await self.client.update(PYTORCH_JOBS, {**job, "status": status}, subresource="status")

    async def _carry_out(self, job: JsonObject, pods: list[JsonObject], decision: Decision) -> float | None:
        if decision.expired:
            await delete_if_exists(self.client, PYTORCH_JOBS, job)
            return None
        by_name = {pod["metadata"]["name"]: pod for pod in pods}
        for name in decision.delete:
            if await delete_if_exists(self.client, PODS, by_name[name]):
                await self._events.event(job, "Normal", "SuccessfulDeletePod", f"Deleted pod: {name}")
        if decision.drop_services:
            await self._drop_services(job)
        for new in decision.create:
            if not await self._create(job, new):
                return 2.0
        return decision.requeue_after_s

    async def _create(self, job: JsonObject, new: NewReplica) -> bool:
        namespace = job["metadata"]["namespace"]
        port = self._default_port(job)
        name = replica_name(job, new.role, new.index)
        try:
            if await get_or_none(self.client, SERVICES, name, namespace) is None:
                service = render_service(job, new.role, new.index, port=master_port(job, port))
                await self.client.create(SERVICES, service, namespace)
                await self._events.event(job, "Normal", "SuccessfulCreateService", f"Created service: {name}")
        except ApiError as error:
            await self._events.event(job, "Warning", "FailedCreateService", f"Error creating: {error}")
            return False
        try:
            pod = render_pod(job, new.role, new.index, default_port=port, wait_for_master=self._wait_for_master)
            await self.client.create(PODS, pod, namespace)
        except ApiError as error:
            await self._events.event(job, "Warning", "FailedCreatePod", f"Error creating: {error}")
            return False
        await self._events.event(job, "Normal", "SuccessfulCreatePod", f"Created pod: {name}")
        return True

    async def _drop_services(self, job: JsonObject) -> None:
        meta = job["metadata"]
        services = await self.client.list(SERVICES, meta["namespace"], label_selector=f"{JOB_NAME}={meta['name']}")
        for service in services:
            if (controller_of(service) or {}).get("uid") == meta["uid"]:
                await delete_if_exists(self.client, SERVICES, service)

    async def _owned(self, job: JsonObject) -> list[JsonObject]:
        meta = job["metadata"]
        pods = await self.client.list(PODS, meta["namespace"], label_selector=f"{JOB_NAME}={meta['name']}")
        return [pod for pod in pods if (controller_of(pod) or {}).get("uid") == meta["uid"]]
