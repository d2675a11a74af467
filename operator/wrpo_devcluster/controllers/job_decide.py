"""Pure decision of the Job controller: from a Job, its pods and the time to the next writes.

Counting survives a crash at any point: a finished pod is first noted in `uncountedTerminatedPods`, then it loses its
tracking finalizer, and only then does it move to the counters. The decision for each of these steps is this function.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import parse_time, timestamp
from wrpo_devcluster.controllers.job_count import Counts, count
from wrpo_devcluster.controllers.job_indexes import format_indexes
from wrpo_devcluster.controllers.job_policy import FailureAction
from wrpo_devcluster.controllers.job_view import JobPod, JobSpec, JobView, backoff_until, view
from wrpo_devcluster.objects import condition, is_ready, is_true, set_condition

COMPLETIONS_REACHED = ("CompletionsReached", "Reached expected number of succeeded pods")
BACKOFF_EXCEEDED = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
DEADLINE_EXCEEDED = ("DeadlineExceeded", "Job was active longer than specified deadline")
TOO_MANY_FAILED = ("MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes")
FAILED_INDEXES = ("FailedIndexes", "Job has failed indexes")
POLICY = "PodFailurePolicy"
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class NewPod:
    """A pod to create: its completion index (None for NonIndexed) and the previous failures of that index."""

    index: int | None = None
    failure_count: int = 0
    ignored_count: int = 0


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event to record: its type, and what it says."""

    kind: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class JobDecision:
    """What to write for a Job: the new status, and names of pods to delete or to release from their finalizer."""

    status: JsonObject
    create: tuple[NewPod, ...] = ()
    delete: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    events: tuple[JobEvent, ...] = ()
    requeue_after_s: float | None = None


def decide(job: JsonObject, pods: list[JsonObject], now: datetime, *, backoff_s: float = 10.0) -> JobDecision:
    """Decide what follows for a Job. Deciding again on the result of a decision changes nothing.

    Invariant: a finished Job (Complete or Failed) only ever loses finalizers of its pods.
    """
    seen = view(job, pods)
    if is_true(job, "Complete") or is_true(job, "Failed"):
        return JobDecision(status=seen.status, release=tuple(p.name for p in seen.pods if p.is_tracked))
    counts = count(seen)
    conditions = list(seen.status.get("conditions") or [])
    events: list[JobEvent] = []
    verdict = _failure(job, seen, counts, now)
    if verdict is None and _is_complete(seen, counts):
        verdict = ("SuccessCriteriaMet", *COMPLETIONS_REACHED)
    if verdict is not None:
        return _finish(seen, counts, conditions, verdict, now)
    start = _started_at(seen, now)
    conditions = _suspension(seen.spec, conditions, events, now)
    create, delete, wait_s = _manage(seen, counts, now, backoff_s)
    if seen.spec.active_deadline_s is not None and start is not None:
        left = (start + timedelta(seconds=seen.spec.active_deadline_s) - now).total_seconds()
        wait_s = left if wait_s is None else min(wait_s, left)
    return JobDecision(
        status=_status(seen, counts, conditions, deleted=len(delete), start=start),
        create=create,
        delete=delete,
        # A pod that the Job itself stops loses its finalizer first, so that its end counts as no failure.
        release=(*counts.release, *(p.name for p in seen.active if p.name in delete and p.is_tracked)),
        events=tuple(events),
        requeue_after_s=wait_s,
    )


def _failure(job: JsonObject, seen: JobView, counts: Counts, now: datetime) -> tuple[str, str, str] | None:
    """Return (condition type, reason, message) if the Job has failed or is failing."""
    spec = seen.spec
    target = condition(job, "FailureTarget")
    if target is not None and target["status"] == "True":
        return ("FailureTarget", target["reason"], target.get("message", ""))
    for pod in seen.pods:
        if pod.has_failed and pod.is_tracked and pod.match.action is FailureAction.FAIL_JOB:
            return ("FailureTarget", POLICY, pod.match.message)
    if counts.all_failed > spec.backoff_limit or _restarts_exceed(seen):
        return ("FailureTarget", *BACKOFF_EXCEEDED)
    if _is_past_deadline(seen, now):
        return ("FailureTarget", *DEADLINE_EXCEEDED)
    if spec.backoff_limit_per_index is not None:
        failed = len(counts.failed_indexes)
        if spec.max_failed_indexes is not None and failed > spec.max_failed_indexes:
            return ("FailureTarget", *TOO_MANY_FAILED)
        if failed and failed + len(counts.completed) >= (spec.completions or 0):
            return ("FailureTarget", *FAILED_INDEXES)
    return None


def _restarts_exceed(seen: JobView) -> bool:
    """Return whether the restarts of running pods (restartPolicy OnFailure) exceed the backoff limit."""
    if not seen.spec.restart_on_failure:
        return False
    restarts = sum(
        int(container.get("restartCount", 0))
        for pod in seen.active
        for group in ("initContainerStatuses", "containerStatuses")
        for container in (pod.raw.get("status") or {}).get(group) or []
    )
    return restarts > 0 if seen.spec.backoff_limit == 0 else restarts >= seen.spec.backoff_limit


def _is_past_deadline(seen: JobView, now: datetime) -> bool:
    start = seen.status.get("startTime")
    if seen.spec.active_deadline_s is None or not start or seen.spec.is_suspended:
        return False
    return (now - parse_time(start)).total_seconds() >= seen.spec.active_deadline_s


def _is_complete(seen: JobView, counts: Counts) -> bool:
    if seen.active:
        return False
    succeeded = counts.all_succeeded(is_indexed=seen.spec.is_indexed)
    if seen.spec.completions is None:
        return succeeded > 0
    return succeeded >= seen.spec.completions


def _finish(
    seen: JobView, counts: Counts, conditions: list[JsonObject], verdict: tuple[str, str, str], now: datetime
) -> JobDecision:
    """Set the interim condition at once, and the terminal one when no pod remains to stop or to count."""
    kind, reason, message = verdict
    has_failed = kind == "FailureTarget"
    is_news = not any(c["type"] == kind and c["status"] == "True" for c in conditions)
    conditions = set_condition(conditions, _entry(kind, reason, message, now), now)
    is_settled = not (seen.active or seen.terminating or counts.pending_succeeded or counts.pending_failed)
    is_settled = is_settled and not counts.release and not counts.held_failures
    events: list[JobEvent] = []
    if has_failed and is_news:
        events.append(JobEvent("Warning", reason, message))
    if is_settled:
        final = "Failed" if has_failed else "Complete"
        conditions = set_condition(conditions, _entry(final, reason, message, now), now)
        if not has_failed:
            events.append(JobEvent("Normal", "Completed", "Job completed"))
    return JobDecision(
        status=_status(seen, counts, conditions, deleted=len(seen.active), start=_started_at(seen, now)),
        delete=tuple(p.name for p in seen.active),
        release=tuple(counts.release),
        events=tuple(events),
        requeue_after_s=None if is_settled else 1.0,
    )


def _started_at(seen: JobView, now: datetime) -> datetime | None:
    """Return the start time. A suspended Job has none, and gets a new one when it is resumed."""
    if seen.spec.is_suspended and not seen.is_failing:
        return None
    start = seen.status.get("startTime")
    return parse_time(start) if start else now


def _suspension(spec: JobSpec, conditions: list[JsonObject], events: list[JobEvent], now: datetime) -> list[JsonObject]:
    current = next((c for c in conditions if c["type"] == "Suspended"), None)
    was_suspended = current is not None and current["status"] == "True"
    if spec.is_suspended and not was_suspended:
        events.append(JobEvent("Normal", "Suspended", "Job suspended"))
        return set_condition(conditions, _entry("Suspended", "JobSuspended", "Job suspended", now), now)
    if not spec.is_suspended and was_suspended:
        events.append(JobEvent("Normal", "Resumed", "Job resumed"))
        entry = {**_entry("Suspended", "JobResumed", "Job resumed", now), "status": "False"}
        return set_condition(conditions, entry, now)
    return conditions


def _manage(
    seen: JobView, counts: Counts, now: datetime, backoff_s: float
) -> tuple[tuple[NewPod, ...], tuple[str, ...], float | None]:
    """Return (pods to create, names of pods to delete, seconds until a backoff ends)."""
    spec, active = seen.spec, seen.active
    if spec.is_suspended:
        return (), tuple(p.name for p in active), None
    wanted = _wanted_active(spec, counts, len(active))
    surplus = _surplus(active, wanted)
    if surplus:
        return (), surplus, None
    missing = wanted - len(active)
    if spec.only_replace_failed:
        missing -= len(seen.terminating)
    if missing <= 0:
        return (), (), None
    if spec.is_indexed:
        return _indexed_pods(seen, counts, missing, now, backoff_s)
    failures = _recent_failures(seen)
    pause = _pause(len(failures), failures[-1].finished_at if failures else None, now, backoff_s)
    if pause is not None:
        return (), (), pause
    return tuple(NewPod() for _ in range(missing)), (), None


def _recent_failures(seen: JobView) -> list[JobPod]:
    """Return the failures since the last success, oldest first; only these lengthen the backoff."""
    successes = [p.finished_at for p in seen.pods if p.has_succeeded and p.finished_at]
    since = max(successes, default=_NEVER)
    failures = [p for p in seen.pods if p.has_failed and not p.is_ignored and (p.finished_at or _NEVER) > since]
    return sorted(failures, key=lambda p: p.finished_at or _NEVER)


def _wanted_active(spec: JobSpec, counts: Counts, active: int) -> int:
    succeeded = counts.all_succeeded(is_indexed=spec.is_indexed)
    if spec.completions is None:
        return active if succeeded > 0 else spec.parallelism
    remaining = spec.completions - succeeded - len(counts.failed_indexes)
    return max(0, min(spec.parallelism, remaining))


def _surplus(active: tuple[JobPod, ...], wanted: int) -> tuple[str, ...]:
    """Return the names of surplus pods: duplicates of an index, then the least advanced ones."""
    keep: list[JobPod] = []
    extra: list[JobPod] = []
    taken: set[int] = set()
    for pod in sorted(active, key=lambda p: (not is_ready(p.raw), p.raw["metadata"]["creationTimestamp"], p.name)):
        is_double = pod.index is not None and pod.index in taken
        if is_double or len(keep) >= wanted:
            extra.append(pod)
        else:
            keep.append(pod)
            if pod.index is not None:
                taken.add(pod.index)
    return tuple(p.name for p in extra)


def _indexed_pods(
    seen: JobView, counts: Counts, missing: int, now: datetime, backoff_s: float
) -> tuple[tuple[NewPod, ...], tuple[str, ...], float | None]:
    busy = {p.index for p in seen.active}
    if seen.spec.only_replace_failed:
        busy |= {p.index for p in seen.terminating}
    free = [
        index
        for index in range(seen.spec.completions or 0)
        if index not in counts.completed and index not in counts.failed_indexes and index not in busy
    ]
    new: list[NewPod] = []
    waits: list[float] = []
    per_index = seen.spec.backoff_limit_per_index is not None
    everywhere = _recent_failures(seen)
    for index in free:
        if len(new) >= missing:
            break
        mine = [p for p in everywhere if p.index == index] if per_index else everywhere
        pause = _pause(len(mine), mine[-1].finished_at if mine else None, now, backoff_s)
        if pause is not None:
            waits.append(pause)
        else:
            new.append(_successor(seen, index) if per_index else NewPod(index=index))
    return tuple(new), (), min(waits) if waits else None


def _successor(seen: JobView, index: int) -> NewPod:
    before = [p for p in seen.pods if p.index == index and p.has_failed]
    if not before:
        return NewPod(index=index)
    last = max(before, key=lambda p: p.failure_count + p.ignored_count)
    if last.is_ignored:
        return NewPod(index=index, failure_count=last.failure_count, ignored_count=last.ignored_count + 1)
    return NewPod(index=index, failure_count=last.failure_count + 1, ignored_count=last.ignored_count)


def _pause(failures: int, last_end: datetime | None, now: datetime, backoff_s: float) -> float | None:
    until = backoff_until(failures, last_end, base_s=backoff_s)
    if until is None or until <= now:
        return None
    return (until - now).total_seconds()


def _entry(kind: str, reason: str, message: str, now: datetime) -> JsonObject:
    return {
        "type": kind,
        "status": "True",
        "lastProbeTime": timestamp(now),
        "lastTransitionTime": timestamp(now),
        "reason": reason,
        "message": message,
    }


def _status(
    seen: JobView, counts: Counts, conditions: list[JsonObject], *, deleted: int, start: datetime | None
) -> JsonObject:
    """Return the status in the real controller's form: without zero counters, except `ready` and `terminating`.

    `deleted` active pods are terminated by this decision.
    """
    active = len(seen.active) - deleted
    complete = next((c for c in conditions if c["type"] == "Complete" and c["status"] == "True"), None)
    uncounted: JsonObject = {}
    if counts.pending_succeeded:
        uncounted["succeeded"] = counts.pending_succeeded
    if counts.pending_failed:
        uncounted["failed"] = counts.pending_failed
    spec = seen.spec
    optional = {
        "conditions": conditions,
        "startTime": timestamp(start) if start else None,
        "completionTime": complete["lastTransitionTime"] if complete else None,
        "active": active,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "completedIndexes": format_indexes(counts.completed) if spec.is_indexed else None,
    }
    status: JsonObject = {name: value for name, value in optional.items() if value}
    if spec.is_indexed and spec.backoff_limit_per_index is not None:
        status["failedIndexes"] = format_indexes(counts.failed_indexes)
    status["terminating"] = len(seen.terminating) + deleted
    status["uncountedTerminatedPods"] = uncounted
    status["ready"] = 0 if active <= 0 else sum(is_ready(p.raw) for p in seen.active)
    return status
