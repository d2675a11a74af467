"""Pure decision for a TrainJob, equal to that of Kubeflow Trainer and JobSet.

A real cluster has a JobSet between the two. Here the TrainJob owns the Job itself, and its terminal conditions have
the texts of JobSet.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import parse_time
from wrpo_devcluster.controllers.jobset_decide import JOB_STATES, states_of
from wrpo_devcluster.controllers.trainjob_render import CONTAINER, job_name
from wrpo_devcluster.objects import condition, created_at, is_deleting, is_true, set_condition

KIND = "TrainJob"
MANAGER = "trainer.kubeflow.org/trainjob-controller"
ENDINGS = ("Complete", "Failed")


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write for a TrainJob: its new status, and changes of its Job."""

    status: JsonObject
    create: bool = False
    """Whether to create the Job and its Service, as far as they are missing."""
    suspend: bool | None = None
    """New value of the Job's suspend field."""
    delete: bool = False
    """Whether to delete the Job with its pods."""
    requeue_after_s: float | None = None


def is_finished(trainjob: JsonObject) -> bool:
    """Return whether the job has completed or failed."""
    return any(is_true(trainjob, ending) for ending in ENDINGS)


def decide(trainjob: JsonObject, job: JsonObject | None, refusal: str, now: datetime) -> Decision:
    """Decide what follows. `refusal` is why the job cannot run. A second decision on the result changes nothing.

    Invariant: a finished TrainJob starts nothing.
    """
    status: JsonObject = dict(trainjob.get("status") or {})
    conditions: list[JsonObject] = list(status.get("conditions") or [])
    if is_finished(trainjob):
        is_late = (condition(trainjob, "Failed") or {}).get("reason") == "DeadlineExceeded"
        return Decision(status, delete=is_late and job is not None and not is_deleting(job))
    if refusal:
        entry = _condition("Failed", "TrainingRuntimeNotSupported", refusal)
        return Decision({**status, "conditions": set_condition(conditions, entry, now)})
    wanted = bool(trainjob["spec"].get("suspend"))
    conditions = _suspension(conditions, wanted, now)
    if job is not None:
        status["jobsStatus"] = [job_status(job)]
    verdict = _verdict(trainjob, job)
    if verdict is not None:
        return Decision({**status, "conditions": set_condition(conditions, verdict, now)})
    left = _seconds_left({**trainjob, "status": {"conditions": conditions}}, now)
    if left is not None and left <= 0:
        entry = _condition("Failed", "DeadlineExceeded", f"{KIND} was active longer than specified deadline")
        status["conditions"] = set_condition(conditions, entry, now)
        return Decision(status, delete=job is not None)
    if conditions:
        status["conditions"] = conditions
    if job is not None and is_deleting(job):
        return Decision(status, requeue_after_s=left)
    differs = job is not None and bool(job["spec"].get("suspend")) != wanted
    # Without a Job there is nothing to set: it is created with the right value.
    return Decision(status, create=True, suspend=wanted if differs else None, requeue_after_s=left)


def job_status(job: JsonObject) -> JsonObject:
    """Return the entry of jobsStatus: how many child Jobs (here one) are in which state."""
    states = states_of(job)
    return {"name": CONTAINER, **{state: int(state in states) for state in JOB_STATES}}


def _suspension(conditions: list[JsonObject], wanted: bool, now: datetime) -> list[JsonObject]:
    known = next((entry for entry in conditions if entry["type"] == "Suspended"), None)
    if wanted:
        return set_condition(conditions, _condition("Suspended", "Suspended", f"{KIND} is suspended"), now)
    if known is None:
        return conditions
    return set_condition(conditions, _condition("Suspended", "Resumed", f"{KIND} is resumed", value="False"), now)


def _verdict(trainjob: JsonObject, job: JsonObject | None) -> JsonObject | None:
    if job is None:
        return None
    if is_true(job, "Complete"):
        return _condition("Complete", "AllJobsCompleted", "jobset completed successfully")
    if is_true(job, "Failed"):
        name = job_name(trainjob)
        text = f"jobset failed due to one or more job failures (first failed job: {name})"
        return _condition("Failed", "FailedJobs", text)
    return None


def _seconds_left(trainjob: JsonObject, now: datetime) -> float | None:
    """Return the seconds to the deadline, which counts from the creation or the last resumption."""
    limit = trainjob["spec"].get("activeDeadlineSeconds")
    if limit is None or trainjob["spec"].get("suspend"):
        return None
    resumed = condition(trainjob, "Suspended")
    start = parse_time(resumed["lastTransitionTime"]) if resumed is not None else created_at(trainjob)
    return (start + timedelta(seconds=int(limit)) - now).total_seconds()


def _condition(kind: str, reason: str, message: str, *, value: str = "True") -> JsonObject:
    return {"type": kind, "status": value, "reason": reason, "message": message}
