"""JobSet controller: carries out the decisions of `jobset_decide`."""

from __future__ import annotations

from typing_extensions import override

from wrpo_devcluster.client import JOB_SETS, JOBS, SERVICES, ApiError, JsonObject
from wrpo_devcluster.controllers.base import delete_if_exists
from wrpo_devcluster.controllers.gang import GangController
from wrpo_devcluster.controllers.jobset_decide import KIND, MANAGER, Decision, decide
from wrpo_devcluster.controllers.jobset_render import JOBSET_NAME, render_service, subdomain_of
from wrpo_devcluster.objects import controller_of

_RETRY_S = 1.0


class JobSetController(GangController):
    """Controller of JobSets: carries out what `jobset_decide` decides."""

    name = "jobset-controller"
    resource, kind, owned = JOB_SETS, KIND, (JOBS, SERVICES)

    @override
    async def advance(self, job: JsonObject) -> float | None:
        if job["spec"].get("managedBy", MANAGER) != MANAGER:
            return None
        decision = decide(job, await self._jobs(job), self.clock.now())
        await self.write_status(job, decision.status)
        for notice in decision.events:
            await self.events.event(job, notice.kind, notice.reason, notice.message)
        return await self._carry_out(job, decision)

    async def _jobs(self, jobset: JsonObject) -> list[JsonObject]:
        """Return the JobSet's own Jobs."""
        meta = jobset["metadata"]
        found = await self.client.list(JOBS, meta["namespace"], label_selector=f"{JOBSET_NAME}={meta['name']}")
        return [job for job in found if (controller_of(job) or {}).get("uid") == meta["uid"]]

    async def _carry_out(self, jobset: JsonObject, decision: Decision) -> float | None:
        if decision.expired:
            await delete_if_exists(self.client, JOB_SETS, jobset, propagation="Foreground")
            return None
        for job in decision.delete:
            await delete_if_exists(self.client, JOBS, job, propagation="Foreground")
        if decision.create and not await self._create(jobset, decision.create):
            return _RETRY_S
        for job, suspend in decision.suspend:
            patch = {"metadata": {"uid": job["metadata"]["uid"]}, "spec": {"suspend": suspend}}
            await self.client.patch(JOBS, job["metadata"]["name"], job["metadata"]["namespace"], patch)
        return decision.requeue_after_s

    async def _create(self, jobset: JsonObject, jobs: tuple[JsonObject, ...]) -> bool:
        """Create the Service, if it is missing, and the Jobs; return False if one was refused."""
        reason = "HeadlessServiceCreationFailed"
        try:
            if subdomain_of(jobset):
                network = jobset["spec"].get("network") or {}
                is_early = bool(network.get("publishNotReadyAddresses", True))
                await self.ensure_service(render_service(jobset, subdomain_of(jobset), publish_not_ready=is_early))
            reason = "JobCreationFailed"
            for job in jobs:
                await self.client.create(JOBS, job, jobset["metadata"]["namespace"])
        except ApiError as error:
            await self.events.event(jobset, "Warning", reason, str(error))
            return False
        return True
