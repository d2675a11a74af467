"""PyTorchJob controller: carries out the decisions of `pytorchjob_decide`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

from typing_extensions import override

from wrpo_devcluster.client import PODS, PYTORCH_JOBS, SERVICES, ApiError, Client, JsonObject
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.base import delete_if_exists
from wrpo_devcluster.controllers.gang import GangController
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
from wrpo_devcluster.objects import controller_of


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


class PyTorchJobController(GangController):
    """Controller of PyTorchJobs: carries out what `pytorchjob_decide` decides."""

    name = "pytorchjob-controller"
    resource, kind, owned = PYTORCH_JOBS, KIND, (PODS, SERVICES)

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

    @override
    async def advance(self, job: JsonObject) -> float | None:
        why = invalid(job)
        if why:
            await self.events.event(job, "Warning", "PyTorchJobFailedValidation", why)
            return None
        pods = await self._owned(job)
        decision = decide(job, pods, self.clock.now())
        await self.write_status(job, decision.status)
        for notice in decision.events:
            kind = cast(Literal["Normal", "Warning"], notice.kind)
            await self.events.event(job, kind, notice.reason, notice.message)
        return await self._carry_out(job, pods, decision)

    async def _carry_out(self, job: JsonObject, pods: list[JsonObject], decision: Decision) -> float | None:
        if decision.expired:
            await delete_if_exists(self.client, PYTORCH_JOBS, job)
            return None
        by_name = {pod["metadata"]["name"]: pod for pod in pods}
        for name in decision.delete:
            if await delete_if_exists(self.client, PODS, by_name[name]):
                await self.events.event(job, "Normal", "SuccessfulDeletePod", f"Deleted pod: {name}")
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
            if await self.ensure_service(render_service(job, new.role, new.index, port=master_port(job, port))):
                await self.events.event(job, "Normal", "SuccessfulCreateService", f"Created service: {name}")
        except ApiError as error:
            await self.events.event(job, "Warning", "FailedCreateService", f"Error creating: {error}")
            return False
        try:
            pod = render_pod(job, new.role, new.index, default_port=port, wait_for_master=self._wait_for_master)
            await self.client.create(PODS, pod, namespace)
        except ApiError as error:
            await self.events.event(job, "Warning", "FailedCreatePod", f"Error creating: {error}")
            return False
        await self.events.event(job, "Normal", "SuccessfulCreatePod", f"Created pod: {name}")
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
