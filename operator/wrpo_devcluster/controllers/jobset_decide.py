"""Pure decision for a JobSet, equal to that of its controller (0.8 to 0.11)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import parse_time
from wrpo_devcluster.controllers.jobset_render import (
    REPLICATED_JOB,
    RESTART_ATTEMPT,
    Place,
    job_name,
    refusal,
    render_job,
    replicas_of,
    replicated_jobs,
    subdomain_of,
)
from wrpo_devcluster.objects import condition, is_deleting, is_true, labels_of, set_condition

KIND = "JobSet"
MANAGER = "jobset.sigs.k8s.io/jobset-controller"
ENDINGS = ("Completed", "Failed")
JOB_ENDINGS = ("Complete", "Failed")
JOB_STATES = ("ready", "succeeded", "failed", "active", "suspended")


@dataclass(frozen=True, slots=True)
class Notice:
    """An event to record."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write for a JobSet: its new status, and changes of its Jobs."""

    status: JsonObject
    create: tuple[JsonObject, ...] = ()
    """Jobs to create, after the Service that gives their pods host names."""
    suspend: tuple[tuple[JsonObject, bool], ...] = ()
    """Jobs and the new values of their suspend fields."""
    delete: tuple[JsonObject, ...] = ()
    """Jobs to delete with their pods."""
    events: tuple[Notice, ...] = ()
    requeue_after_s: float | None = None
    expired: bool = False
    """Whether to delete the JobSet, because its ttlSecondsAfterFinished is over."""


def is_finished(jobset: JsonObject) -> bool:
    """Return whether the JobSet has completed or failed."""
    return any(is_true(jobset, ending) for ending in ENDINGS)


def decide(jobset: JsonObject, jobs: list[JsonObject], now: datetime) -> Decision:
    """Decide what follows. `jobs` are those that the JobSet owns. A second decision on the result changes nothing.

    Invariant: a finished JobSet starts nothing.
    """
    before: JsonObject = jobset.get("status") or {}
    restarts = int(before.get("restarts") or 0)
    previous = [job for job in jobs if int(labels_of(job).get(RESTART_ATTEMPT, 0)) < restarts]
    current = [job for job in jobs if job not in previous]
    counts = [replicated_job_status(entry, current) for entry in replicated_jobs(jobset)]
    status = {**before, "restarts": restarts, "replicatedJobsStatus": counts}
    if is_finished(jobset):
        return _clean_up(jobset, status, [job for job in current if _ending(job) is None], now)
    verdict = _verdict(jobset, current, restarts, int(before.get("restartsCountTowardsMax") or 0))
    doomed = tuple(job for job in previous if not is_deleting(job))
    if isinstance(verdict, _Restart):
        status["restarts"] = restarts + 1
        status["restartsCountTowardsMax"] = int(before.get("restartsCountTowardsMax") or 0) + verdict.counts
        return Decision(status, delete=doomed, events=(verdict.notice,))
    if verdict is not None:
        ended = {**status, "conditions": set_condition(_conditions(status), verdict, now)}
        ended["terminalState"] = verdict["type"]
        return Decision(ended, delete=doomed, events=_news(before, ended))
    wanted = bool(jobset["spec"].get("suspend"))
    conditions = _suspension(_conditions(status), now, is_wanted=wanted)
    if conditions:
        status["conditions"] = conditions
    return Decision(
        status,
        create=tuple(_missing(jobset, jobs, counts, restarts, is_blocked=bool(previous))),
        suspend=tuple(
            (job, wanted)
            for job in current
            if _ending(job) is None and not is_deleting(job) and bool(job["spec"].get("suspend")) != wanted
        ),
        delete=doomed,
        events=_news(before, status),
    )


def replicated_job_status(entry: JsonObject, jobs: list[JsonObject]) -> JsonObject:
    """Return how many Jobs of a replicated job are in which state."""
    counts = dict.fromkeys(JOB_STATES, 0)
    for job in jobs:
        if labels_of(job).get(REPLICATED_JOB) == entry["name"]:
            for state in states_of(job):
                counts[state] += 1
    return {"name": entry["name"], **counts}


def states_of(job: JsonObject) -> set[str]:
    """Return the states in which a Job is counted."""
    spec, status, ending = job["spec"], job.get("status") or {}, _ending(job)
    if ending is not None:
        return {"succeeded" if ending == "Complete" else "failed"}
    settled = int(status.get("ready") or 0) + int(status.get("succeeded") or 0)
    parallelism = int(spec.get("parallelism", 1))
    pods = min(parallelism, int(spec.get("completions") or parallelism))
    has = {
        "ready": settled >= pods,
        "active": int(status.get("active") or 0) > 0,
        "suspended": bool(spec.get("suspend")),
    }
    return {state for state, is_so in has.items() if is_so}


@dataclass(frozen=True, slots=True)
class _Restart:
    notice: Notice
    counts: bool
    """Whether it counts towards maxRestarts."""


def _verdict(jobset: JsonObject, jobs: list[JsonObject], restarts: int, counted: int) -> JsonObject | _Restart | None:
    """Return the condition with which the JobSet ends, or its restart."""
    why = refusal(jobset) if not jobs and not restarts else ""
    if why:
        return _condition("Failed", "JobSetRefused", why)
    failed = sorted((job for job in jobs if _ending(job) == "Failed"), key=_failed_at)
    if failed:
        return _failure(jobset["spec"].get("failurePolicy"), failed, counted)
    policy = jobset["spec"].get("successPolicy") or {}
    targets = set(policy.get("targetReplicatedJobs") or [entry["name"] for entry in replicated_jobs(jobset)])
    done = sum(_ending(job) == "Complete" and labels_of(job).get(REPLICATED_JOB) in targets for job in jobs)
    expected = sum(replicas_of(entry) for entry in replicated_jobs(jobset) if entry["name"] in targets)
    if done and done >= (1 if policy.get("operator") == "Any" else expected):
        return _condition("Completed", "AllJobsCompleted", "jobset completed successfully")
    return None


def _failure(policy: JsonObject | None, failed: list[JsonObject], counted: int) -> JsonObject | _Restart:
    """Return the result of the failure policy for failed Jobs, which are in the order of their failures."""
    if policy is None:
        text = _with_first("jobset failed due to one or more job failures", failed[0])
        return _condition("Failed", "FailedJobs", text)
    matches = ((rule["action"], job) for rule in policy.get("rules") or [] for job in failed if _matches(rule, job))
    action, job = next(matches, ("RestartJobSet", failed[0]))
    if action == "FailJobSet":
        text = _with_first("applying FailJobSet failure policy action", job)
        return _condition("Failed", "FailJobSetFailurePolicyAction", text)
    counts = action == "RestartJobSet"
    if counts and counted >= int(policy.get("maxRestarts") or 0):
        text = _with_first("jobset failed due to reaching max number of restarts", job)
        return _condition("Failed", "ReachedMaxRestarts", text)
    text = _with_first(f"applying {action} failure policy action", job)
    return _Restart(Notice("Warning", f"{action}FailurePolicyAction", text), counts)


def _matches(rule: JsonObject, job: JsonObject) -> bool:
    failure = condition(job, "Failed") or {}
    reasons, patterns = rule.get("onJobFailureReasons"), rule.get("onJobFailureMessagePatterns")
    targets = rule.get("targetReplicatedJobs")
    return (
        (not reasons or failure.get("reason") in reasons)
        and (not patterns or any(re.search(pattern, failure.get("message") or "") for pattern in patterns))
        and (not targets or labels_of(job).get(REPLICATED_JOB) in targets)
    )


def _missing(
    jobset: JsonObject, jobs: list[JsonObject], counts: list[JsonObject], restarts: int, *, is_blocked: bool
) -> list[JsonObject]:
    """Return the Jobs to create: those whose name is free and whose dependencies are met."""
    policy = jobset["spec"].get("failurePolicy") or {}
    if is_blocked and policy.get("restartStrategy") == "BlockingRecreate":
        return []
    taken = {job["metadata"]["name"] for job in jobs}
    entries, name = replicated_jobs(jobset), jobset["metadata"]["name"]
    return [
        render_job(
            jobset,
            Place(entries=entries, entry=entry, index=index, restarts=restarts),
            subdomain=subdomain_of(jobset),
        )
        for entry in entries
        if all(_is_met(dependency, entries, counts) for dependency in entry.get("dependsOn") or [])
        for index in range(replicas_of(entry))
        if job_name(name, entry["name"], index) not in taken
    ]


def _is_met(dependency: JsonObject, entries: list[JsonObject], counts: list[JsonObject]) -> bool:
    for entry, count in zip(entries, counts, strict=True):
        if entry["name"] == dependency["name"]:
            settled = int(count["succeeded"])
            if dependency["status"] == "Ready":
                settled += int(count["ready"]) + int(count["failed"])
            return settled == replicas_of(entry)
    return False


def _clean_up(jobset: JsonObject, status: JsonObject, active: list[JsonObject], now: datetime) -> Decision:
    """Delete the active Jobs of a finished JobSet, and the JobSet itself when its TTL is over."""
    ttl, left = jobset["spec"].get("ttlSecondsAfterFinished"), None
    ended = next(entry for kind in ENDINGS if (entry := condition(jobset, kind)) and entry["status"] == "True")
    if ttl is not None:
        left = (parse_time(ended["lastTransitionTime"]) + timedelta(seconds=int(ttl)) - now).total_seconds()
    return Decision(
        status,
        delete=tuple(job for job in active if not is_deleting(job)),
        requeue_after_s=left,
        expired=left is not None and left <= 0,
    )


def _suspension(conditions: list[JsonObject], now: datetime, *, is_wanted: bool) -> list[JsonObject]:
    if is_wanted:
        return set_condition(conditions, _condition("Suspended", "SuspendedJobs", "jobset is suspended"), now)
    if any(entry["type"] == "Suspended" for entry in conditions):
        resumed = _condition("Suspended", "ResumeJobs", "jobset is resumed", value="False")
        return set_condition(conditions, resumed, now)
    return conditions


def _news(before: JsonObject, after: JsonObject) -> tuple[Notice, ...]:
    """Return an event for each condition that has changed."""
    old = {entry["type"]: entry["status"] for entry in _conditions(before)}
    return tuple(
        Notice("Warning" if entry["type"] == "Failed" else "Normal", entry["reason"], entry["message"])
        for entry in _conditions(after)
        if old.get(entry["type"]) != entry["status"]
    )


def _conditions(status: JsonObject) -> list[JsonObject]:
    return list(status.get("conditions") or [])


def _ending(job: JsonObject) -> str | None:
    return next((ending for ending in JOB_ENDINGS if is_true(job, ending)), None)


def _failed_at(job: JsonObject) -> tuple[str, str]:
    return (condition(job, "Failed") or {}).get("lastTransitionTime") or "", job["metadata"]["name"]


def _with_first(text: str, job: JsonObject) -> str:
    return f"{text} (first failed job: {job['metadata']['name']})"


def _condition(kind: str, reason: str, message: str, *, value: str = "True") -> JsonObject:
    return {"type": kind, "status": value, "reason": reason, "message": message}
