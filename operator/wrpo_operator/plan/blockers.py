"""Blockers: why stages do not run, as one message per object with the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from wrpo_operator.api import messages
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import MAX_BLOCKERS, AttemptState, Blocker, to_time
from wrpo_operator.plan.model import ChildState, PodFact, Snapshot
from wrpo_operator.plan.placing import has_accelerators, offered
from wrpo_operator.plan.stage_views import StageView
from wrpo_operator.plan.starts import HeldBack

_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
INIT_GRACE = timedelta(minutes=5)
"""Time after which an init container that waits for a name or a volume is reported."""
LOST_GRACE = timedelta(seconds=30)
"""Time after the end of its grace period at which a pod is reported as lost with its kubelet."""
SCHEDULER_GRACE = timedelta(seconds=30)
"""Time after which a pod without a verdict of its scheduler is reported; a running one takes seconds."""
DONE = 100.0
_JUDGE_REASONS = frozenset({Reason.JUDGE_UNREACHABLE, Reason.JUDGE_QUOTA_EXCEEDED})
"""Error codes of the engine that are about a service outside, and not about the stage."""
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A blocker without its time."""

    object: str
    reason: str
    message: str
    stage: str | None = None


def find_blockers(
    snapshot: Snapshot, spec: ExperimentSpec, views: Sequence[StageView], held: Sequence[HeldBack], now: datetime
) -> tuple[Blocker, ...]:
    """Return the blockers of the experiment; a blocker that is already recorded keeps its `since`."""
    known = {(blocker.object, blocker.reason): blocker.since for blocker in snapshot.experiment.status.blockers}
    found: dict[tuple[str, str], Blocker] = {}
    of_stages = (item for view in views for item in _of_stage(snapshot, spec, view, now))
    for obstacle in (*_of_experiment(snapshot), *_of_held(held), *of_stages):
        key = (obstacle.object, obstacle.reason)
        found.setdefault(
            key,
            Blocker(
                object=obstacle.object,
                reason=obstacle.reason,
                message=obstacle.message,
                since=known.get(key, to_time(now)),
                stage=obstacle.stage,
            ),
        )
    return tuple(found.values())[:MAX_BLOCKERS]


def waiting_message(snapshot: Snapshot, view: StageView, now: datetime) -> str:
    """Return why a stage's pods do not run, for the message of a missed deadline; empty if unknown."""
    return next((obstacle.message for obstacle in (*_of_notes(snapshot, view), *_of_pods(view, now))), "")


def _of_experiment(snapshot: Snapshot) -> Iterator[Obstacle]:
    """Yield the refusal of a request that belongs to no stage, e.g. the deletion of a child."""
    refused = snapshot.refused.get("")
    if refused is not None and refused.object:
        yield Obstacle(refused.object, refused.reason, refused.message)


def _of_held(held: Sequence[HeldBack]) -> Iterator[Obstacle]:
    for item in held:
        if item.object:
            yield Obstacle(item.object, item.reason, item.message, str(item.view.id))
        yield from _of_judge(item.view)


def _of_stage(snapshot: Snapshot, spec: ExperimentSpec, view: StageView, now: datetime) -> Iterator[Obstacle]:
    stage, queue = str(view.id), spec.scheduling.queue_name
    notes = tuple(_of_notes(snapshot, view))
    for child in view.runnable:
        if child.state is ChildState.SUSPENDED and queue and not spec.suspend and not notes:
            yield Obstacle(f"{child.kind}/{child.name}", Reason.QUEUED, messages.queued(queue), stage)
    yield from notes
    if any(child.state is ChildState.PENDING for child in view.runnable):
        for name, storage_class in snapshot.pending_claims:
            text = messages.claim_pending(name, storage_class)
            yield Obstacle(f"PersistentVolumeClaim/{name}", Reason.CLAIM_PENDING, text, stage)
    gone = _gone(snapshot, spec, view)
    for obstacle in _of_pods(view, now):
        is_gone = gone and obstacle.reason == Reason.UNSCHEDULABLE
        yield replace(obstacle, message=f"{gone} {obstacle.message}") if is_gone else obstacle
    yield from _of_progress(snapshot, spec, view, now)


def _gone(snapshot: Snapshot, spec: ExperimentSpec, view: StageView) -> str:
    """Return what to do about an attempt whose accelerators have left the cluster; empty if they have not."""
    inventory, placement = offered(snapshot, spec), view.record.placement
    children = [child for child in view.runnable if child.state is ChildState.PENDING]
    if inventory is None or placement is None or not placement.accelerator or not children:
        return ""
    if has_accelerators(inventory, placement):
        return ""
    return messages.accelerators_gone(placement.accelerator, f"{children[0].kind}/{children[0].name}")


def _of_judge(view: StageView) -> Iterator[Obstacle]:
    """Yield why the last attempt could not ask its judge, until the next one has started."""
    last = view.record.attempts[-1] if view.record.attempts else None
    if last is not None and last.state is AttemptState.FAILED and last.reason in _JUDGE_REASONS:
        yield Obstacle(f"Stage/{view.id}", last.reason, last.message or last.reason, str(view.id))


def _of_notes(snapshot: Snapshot, view: StageView) -> Iterator[Obstacle]:
    for child in view.runnable:
        for note in snapshot.notes.get(child.uid, ()):
            yield Obstacle(note.object, note.reason, messages.noted(note.reason, note.message), str(view.id))


def _of_progress(snapshot: Snapshot, spec: ExperimentSpec, view: StageView, now: datetime) -> Iterator[Obstacle]:
    """Yield the stages that run without progress. A hint like progress posts: it terminates nothing."""
    limit = timedelta(seconds=spec.deadlines.stalled_seconds)
    for child in view.runnable:
        if child.state is not ChildState.RUNNING:
            continue
        posts = snapshot.progress.get((child.stage, child.attempt), ())
        late = [post for post in posts if post.percent < DONE and now - (post.advanced_at or post.received_at) >= limit]
        if late and len(late) == len(posts):
            newest = max(late, key=lambda post: post.advanced_at or post.received_at)
            # Whole multiples of the limit, so that the sentence (and with it the status) changes rarely.
            passed = (now - (newest.advanced_at or newest.received_at)) // limit * limit
            minutes = int(passed.total_seconds() // 60)
            text = messages.progress_stalled(str(view.id), newest.percent, minutes)
            yield Obstacle(f"{child.kind}/{child.name}", Reason.PROGRESS_STALLED, text, str(view.id))


def _of_pods(view: StageView, now: datetime) -> Iterator[Obstacle]:
    said: dict[tuple[str, str], list[PodFact]] = {}
    for child in view.runnable:
        for pod in child.pods:
            explained = _explain(pod, now)
            if explained is not None:
                said.setdefault(explained, []).append(pod)
    for (reason, message), pods in said.items():
        text = messages.more_pods(message, len(pods) - 1)
        yield Obstacle(f"Pod/{pods[0].name}", reason, text, str(view.id))


def _explain(pod: PodFact, now: datetime) -> tuple[str, str] | None:
    if pod.has_ended:
        return None
    if pod.terminating_since is not None and pod.node is not None and now - pod.terminating_since >= LOST_GRACE:
        return Reason.POD_LOST, messages.pod_lost(pod.name, pod.node)
    unplaced = _explain_unplaced(pod, now)
    if unplaced is not None:
        return unplaced
    if pod.waiting_reason in _IMAGE_REASONS:
        return Reason.IMAGE_PULL, messages.image_pull(_sentence(pod.waiting_message or pod.waiting_reason))
    if pod.waiting_reason in _CONFIG_REASONS:
        return Reason.CONTAINER_CONFIG, messages.container_config(_sentence(pod.waiting_message or pod.waiting_reason))
    if pod.waiting_reason == "CrashLoopBackOff":
        return Reason.CRASH_LOOP, messages.crash_loop(_sentence(pod.waiting_message or pod.waiting_reason))
    if pod.phase == "Pending" and pod.init_since is not None and now - pod.init_since >= INIT_GRACE:
        # Whole steps, so that the sentence (and with it the status) changes rarely.
        steps = (now - pod.init_since) // INIT_GRACE
        return Reason.INIT_WAITING, messages.init_waiting(int(steps * INIT_GRACE.total_seconds() // 60))
    return None


def _explain_unplaced(pod: PodFact, now: datetime) -> tuple[str, str] | None:
    if pod.unschedulable_message:
        return Reason.UNSCHEDULABLE, messages.unschedulable(_sentence(pod.unschedulable_message))
    if pod.gates:
        return Reason.SCHEDULING_GATED, messages.scheduling_gated(pod.gates)
    if pod.scheduler and pod.created_at is not None and now - pod.created_at >= SCHEDULER_GRACE:
        seconds = int(SCHEDULER_GRACE.total_seconds())
        return Reason.NO_SCHEDULER, messages.no_scheduler(pod.scheduler, pod.claims, seconds)
    return None


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
