"""TrainJob controller: carries out the decisions of `trainjob_decide`."""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from wrpo_devcluster.client import (
    CLUSTER_TRAINING_RUNTIMES,
    JOBS,
    SERVICES,
    TRAIN_JOBS,
    TRAINING_RUNTIMES,
    ApiError,
    Client,
    JsonObject,
)
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.base import delete_if_exists, get_or_none
from wrpo_devcluster.controllers.gang import GangController
from wrpo_devcluster.controllers.jobset_render import render_service
from wrpo_devcluster.controllers.trainjob_decide import KIND, MANAGER, Decision, decide, is_finished
from wrpo_devcluster.controllers.trainjob_render import (
    DEFAULT_PORT,
    job_name,
    render_job,
    unsupported,
)
from wrpo_devcluster.objects import controller_of

_RUNTIMES = {"TrainingRuntime": TRAINING_RUNTIMES, "ClusterTrainingRuntime": CLUSTER_TRAINING_RUNTIMES}
_RETRY_S = 1.0


class TrainJobController(GangController):
    """Controller whose TrainJobs own a Job directly. Kubeflow Trainer's JobSet would need a further CRD."""

    name = "trainjob-controller"
    resource, kind, owned = TRAIN_JOBS, KIND, (JOBS, SERVICES)

    def __init__(
        self, client: Client, clock: Clock, *, default_port: Callable[[JsonObject], int] = lambda _: DEFAULT_PORT
    ) -> None:
        super().__init__(client, clock)
        self._default_port = default_port

    @override
    async def advance(self, job: JsonObject) -> float | None:
        if job["spec"].get("managedBy", MANAGER) != MANAGER:
            return None
        trainjob, child = job, await self._job(job)
        runtime: JsonObject | None = None
        if not is_finished(trainjob):
            runtime = await self._runtime(trainjob)
            if runtime is None:
                return _RETRY_S
        refusal = unsupported(trainjob, runtime) if runtime is not None else ""
        decision = decide(trainjob, child, refusal, self.clock.now())
        await self.write_status(trainjob, decision.status)
        return await self._carry_out(trainjob, runtime, child, decision)

    async def _job(self, trainjob: JsonObject) -> JsonObject | None:
        """Return the TrainJob's own Job."""
        found = await get_or_none(self.client, JOBS, job_name(trainjob), trainjob["metadata"]["namespace"])
        is_own = found is not None and (controller_of(found) or {}).get("uid") == trainjob["metadata"]["uid"]
        return found if is_own else None

    async def _runtime(self, trainjob: JsonObject) -> JsonObject | None:
        """Return the runtime. Trainer's webhook refuses a job without one; here the job waits for it."""
        reference = trainjob["spec"]["runtimeRef"]
        resource = _RUNTIMES.get(reference.get("kind", "ClusterTrainingRuntime"))
        found: JsonObject | None = None
        if resource is not None:
            namespace = trainjob["metadata"]["namespace"] if resource is TRAINING_RUNTIMES else None
            found = await get_or_none(self.client, resource, reference["name"], namespace)
        if found is None:
            text = f"there is no {reference.get('kind')} named {reference['name']}; create it"
            await self._tell_failure(trainjob, text)
        return found

    async def _carry_out(
        self, trainjob: JsonObject, runtime: JsonObject | None, job: JsonObject | None, decision: Decision
    ) -> float | None:
        if decision.delete and job is not None:
            await delete_if_exists(self.client, JOBS, job)
        if decision.create and runtime is not None and not await self._create(trainjob, runtime, job):
            return _RETRY_S
        if decision.suspend is not None and job is not None:
            patch = {"metadata": {"uid": job["metadata"]["uid"]}, "spec": {"suspend": decision.suspend}}
            await self.client.patch(JOBS, job["metadata"]["name"], job["metadata"]["namespace"], patch)
        return decision.requeue_after_s

    async def _create(self, trainjob: JsonObject, runtime: JsonObject, job: JsonObject | None) -> bool:
        """Create the Service and the Job if they are missing; return False if one was refused."""
        namespace = trainjob["metadata"]["namespace"]
        try:
            await self.ensure_service(render_service(trainjob, trainjob["metadata"]["name"]))
            if job is None:
                made = render_job(trainjob, runtime, port=self._default_port(trainjob))
                await self.client.create(JOBS, made, namespace)
        except ApiError as error:
            await self._tell_failure(trainjob, str(error))
            return False
        return True

    async def _tell_failure(self, trainjob: JsonObject, why: str) -> None:
        text = f"TrainJob resources reconciliation failed: {why}"
        await self.events.event(trainjob, "Warning", "TrainJobResourcesCreationFailed", text)
