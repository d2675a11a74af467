"""Typed view of a Job and its classified pods, as input of the decision."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import parse_time
from wrpo_devcluster.controllers.job_indexes import parse_indexes
from wrpo_devcluster.controllers.job_policy import FailureAction, PolicyMatch, match_failure
from wrpo_devcluster.objects import annotations_of, created_at, is_active, is_deleting, is_terminal, is_true, pod_phase

TRACKING_FINALIZER = "batch.kubernetes.io/job-tracking"
INDEX_KEY = "batch.kubernetes.io/job-completion-index"
FAILURE_COUNT_KEY = "batch.kubernetes.io/job-index-failure-count"
IGNORED_COUNT_KEY = "batch.kubernetes.io/job-index-ignored-failure-count"
MANAGED_BY = "kubernetes.io/job-controller"


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The fields of spec that the controller reads, with the API server's defaults filled in."""

    parallelism: int
    completions: int | None
    is_indexed: bool
    backoff_limit: int
    backoff_limit_per_index: int | None
    max_failed_indexes: int | None
    failure_policy: JsonObject | None
    active_deadline_s: int | None
    is_suspended: bool
    only_replace_failed: bool
    restart_on_failure: bool

    @classmethod
    def of(cls, job: JsonObject) -> JobSpec:
        """Return the fields of a Job."""
        spec = job["spec"]
        per_index = spec.get("backoffLimitPerIndex")
        return cls(
            parallelism=int(spec.get("parallelism", 1)),
            completions=spec.get("completions"),
            is_indexed=spec.get("completionMode") == "Indexed",
            backoff_limit=int(spec.get("backoffLimit", 6 if per_index is None else 2**31 - 1)),
            backoff_limit_per_index=per_index,
            max_failed_indexes=spec.get("maxFailedIndexes"),
            failure_policy=spec.get("podFailurePolicy"),
            active_deadline_s=spec.get("activeDeadlineSeconds"),
            is_suspended=bool(spec.get("suspend")),
            only_replace_failed=spec.get("podReplacementPolicy") == "Failed" or bool(spec.get("podFailurePolicy")),
            restart_on_failure=spec["template"]["spec"].get("restartPolicy") == "OnFailure",
        )


@dataclass(frozen=True, slots=True)
class JobPod:
    """One pod of the Job, classified."""

    raw: JsonObject
    name: str
    uid: str
    index: int | None
    is_active: bool
    is_terminating: bool
    has_succeeded: bool
    has_failed: bool
    is_tracked: bool
    is_counted_here: bool
    failure_count: int
    ignored_count: int
    match: PolicyMatch
    finished_at: datetime | None

    @property
    def is_ignored(self) -> bool:
        """True for a failure that the failure policy does not count."""
        return self.has_failed and self.match.action is FailureAction.IGNORE


@dataclass(frozen=True, slots=True)
class JobView:
    """A Job and its pods at one moment, with the indexes and uids that its status lists."""

    spec: JobSpec
    pods: tuple[JobPod, ...]
    status: JsonObject
    completed: frozenset[int]
    failed_indexes: frozenset[int]
    uncounted_succeeded: frozenset[str]
    uncounted_failed: frozenset[str]
    is_failing: bool
    active: tuple[JobPod, ...] = field(default=())

    @property
    def terminating(self) -> tuple[JobPod, ...]:
        """Pods that are being deleted and still run."""
        return tuple(p for p in self.pods if p.is_terminating)


def view(job: JsonObject, pods: list[JsonObject]) -> JobView:
    """Return the view of a Job and of the pods that it owns."""
    spec, status = JobSpec.of(job), job.get("status") or {}
    uncounted = status.get("uncountedTerminatedPods") or {}
    is_failing = is_true(job, "FailureTarget") or is_true(job, "Failed")
    known = {*(uncounted.get("succeeded") or []), *(uncounted.get("failed") or [])}
    seen = tuple(_classify(pod, spec, is_failing=is_failing, known=known) for pod in pods)
    return JobView(
        spec=spec,
        pods=seen,
        status=status,
        completed=frozenset(parse_indexes(status.get("completedIndexes"))),
        failed_indexes=frozenset(parse_indexes(status.get("failedIndexes"))),
        uncounted_succeeded=frozenset(uncounted.get("succeeded") or []),
        uncounted_failed=frozenset(uncounted.get("failed") or []),
        is_failing=is_failing,
        active=tuple(p for p in seen if p.is_active),
    )


def _classify(pod: JsonObject, spec: JobSpec, *, is_failing: bool, known: set[str]) -> JobPod:
    annotations, meta = annotations_of(pod), pod["metadata"]
    index = annotations.get(INDEX_KEY)
    gone = is_deleting(pod) and not is_terminal(pod)
    # A terminating pod is a failure at once, unless the Job replaces pods only after their end.
    is_tracked = TRACKING_FINALIZER in (meta.get("finalizers") or [])
    was_let_go = is_deleting(pod) and not is_tracked and meta["uid"] not in known
    is_lost = gone and (is_failing or not spec.only_replace_failed)
    has_failed = not was_let_go and (pod_phase(pod) == "Failed" or is_lost)
    match = (
        match_failure(spec.failure_policy, pod) if pod_phase(pod) == "Failed" else PolicyMatch(FailureAction.COUNT, "")
    )
    return JobPod(
        raw=pod,
        name=meta["name"],
        uid=meta["uid"],
        index=int(index) if index is not None else None,
        is_active=is_active(pod),
        is_terminating=gone,
        has_succeeded=pod_phase(pod) == "Succeeded",
        has_failed=has_failed,
        is_tracked=is_tracked,
        is_counted_here=meta["uid"] in known,
        failure_count=int(annotations.get(FAILURE_COUNT_KEY, 0)),
        ignored_count=int(annotations.get(IGNORED_COUNT_KEY, 0)),
        match=match,
        finished_at=finished_at(pod),
    )


def finished_at(pod: JsonObject) -> datetime | None:
    """Return when the last container ended; the creation time of a pod that ended without containers."""
    ends = [
        parse_time(state["finishedAt"])
        for container in (pod.get("status") or {}).get("containerStatuses") or []
        if (state := (container.get("state") or {}).get("terminated")) and state.get("finishedAt")
    ]
    if ends:
        return max(ends)
    return created_at(pod) if is_terminal(pod) or is_deleting(pod) else None


def backoff_until(failures: int, last_end: datetime | None, *, base_s: float, max_s: float = 600.0) -> datetime | None:
    """Return when the next pod may start after `failures` failures in a row, the last at `last_end`."""
    if failures <= 0 or last_end is None:
        return None
    return last_end + timedelta(seconds=min(base_s * 2 ** min(failures - 1, 20), max_s))
