"""Pure counting of a Job's pods, in steps so that no pod is counted twice."""

from __future__ import annotations

from dataclasses import dataclass, field

from wrpo_devcluster.controllers.job_policy import FailureAction
from wrpo_devcluster.controllers.job_view import JobPod, JobSpec, JobView


@dataclass(slots=True)
class Counts:
    """Sums over pods and status. The `pending` uids are noted, but not yet in the counters."""

    succeeded: int
    failed: int
    pending_succeeded: list[str] = field(default_factory=list)
    pending_failed: list[str] = field(default_factory=list)
    completed: set[int] = field(default_factory=set)
    failed_indexes: set[int] = field(default_factory=set)
    release: list[str] = field(default_factory=list)
    held_failures: int = 0

    @property
    def all_failed(self) -> int:
        """Failures in the counters, noted, and held back by a termination in progress."""
        return self.failed + len(self.pending_failed) + self.held_failures

    def all_succeeded(self, *, is_indexed: bool) -> int:
        """Return the successes, of which an Indexed Job counts one for each index."""
        return len(self.completed) if is_indexed else self.succeeded + len(self.pending_succeeded)


def count(seen: JobView) -> Counts:
    """Return the counts of a Job after the changes that its pods bring."""
    counts = Counts(
        succeeded=int(seen.status.get("succeeded", 0)),
        failed=int(seen.status.get("failed", 0)),
        completed=set(seen.completed),
        failed_indexes=set(seen.failed_indexes),
    )
    tracked = {p.uid for p in seen.pods if p.is_tracked}
    for pod in seen.pods:
        if pod.index is not None and _fails_index(seen.spec, pod):
            counts.failed_indexes.add(pod.index)
    # Noted pods without finalizer move to the counters.
    counts.pending_succeeded = sorted(seen.uncounted_succeeded & tracked)
    counts.pending_failed = sorted(seen.uncounted_failed & tracked)
    counts.succeeded += len(seen.uncounted_succeeded - tracked)
    counts.failed += len(seen.uncounted_failed - tracked)
    for pod in seen.pods:
        if pod.is_tracked and (pod.has_succeeded or pod.has_failed):
            _note(seen, counts, pod)
    counts.completed -= counts.failed_indexes
    if seen.spec.is_indexed:
        counts.succeeded = len(counts.completed) - len(counts.pending_succeeded)
    return counts


def _note(seen: JobView, counts: Counts, pod: JobPod) -> None:
    if pod.is_counted_here:
        counts.release.append(pod.name)
        return
    if pod.has_succeeded:
        if pod.index is not None:
            if pod.index in counts.completed:
                counts.release.append(pod.name)
                return
            counts.completed.add(pod.index)
        counts.pending_succeeded.append(pod.uid)
        counts.release.append(pod.name)
    elif pod.is_ignored:
        counts.release.append(pod.name)
    elif _is_held(seen, counts, pod):
        counts.held_failures += 1
    else:
        counts.pending_failed.append(pod.uid)
        counts.release.append(pod.name)


def _is_held(seen: JobView, counts: Counts, pod: JobPod) -> bool:
    """Return whether a failed pod keeps its finalizer: it carries its index's count until a successor exists."""
    if seen.spec.backoff_limit_per_index is None or seen.is_failing or pod.index in counts.failed_indexes:
        return False
    generation = pod.failure_count + pod.ignored_count
    return not any(
        other.index == pod.index and other.failure_count + other.ignored_count > generation for other in seen.pods
    )


def _fails_index(spec: JobSpec, pod: JobPod) -> bool:
    if spec.backoff_limit_per_index is None or not pod.has_failed or pod.is_ignored:
        return False
    return pod.match.action is FailureAction.FAIL_INDEX or pod.failure_count >= spec.backoff_limit_per_index
