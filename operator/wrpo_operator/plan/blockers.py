"""Why nothing is running: what the cluster says, in one sentence an object, with the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from wrpo_operator.api import conditions as words
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import MAX_BLOCKERS, Blocker, to_time
from wrpo_operator.plan.memory import StageView
from wrpo_operator.plan.model import ChildState, PodFact, Snapshot
from wrpo_operator.plan.starts import Held

_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A blocker without its time."""

    object: str
    reason: str
    message: str
    stage: str | None = None


def find_blockers(
    snapshot: Snapshot, spec: ExperimentSpec, views: Sequence[StageView], held: Sequence[Held], now: datetime
) -> tuple[Blocker, ...]:
    """Return what keeps the experiment from going on; `since` stays for what was there before."""
    known = {(blocker.object, blocker.reason): blocker.since for blocker in snapshot.experiment.status.blockers}
    found: dict[tuple[str, str], Blocker] = {}
    for obstacle in (*_of_held(held), *(item for view in views for item in _of_stage(spec, view))):
        key = (obstacle.object, obstacle.reason)
        found.setdefault(
            key,
            Blocker(
                object=obstacle.object[:320],
                reason=obstacle.reason[:128],
                message=obstacle.message[:4096],
                since=known.get(key, to_time(now)),
                stage=obstacle.stage,
            ),
        )
    return tuple(found.values())[:MAX_BLOCKERS]


def pod_words(view: StageView) -> str:
    """Return why a stage's pods do not run, for the message of a missed deadline; empty when nothing is known."""
    return next((obstacle.message for obstacle in _of_pods(view)), "")


def _of_held(held: Sequence[Held]) -> Iterator[Obstacle]:
    for item in held:
        if item.object:
            yield Obstacle(item.object, item.reason, item.message, str(item.view.id))


def _of_stage(spec: ExperimentSpec, view: StageView) -> Iterator[Obstacle]:
    queue = spec.scheduling.queue_name
    for child in view.runnable:
        if child.state is ChildState.SUSPENDED and queue and not spec.suspend:
            yield Obstacle(f"{child.kind}/{child.name}", Reason.QUEUED, words.queued(queue), str(view.id))
    yield from _of_pods(view)


def _of_pods(view: StageView) -> Iterator[Obstacle]:
    said: dict[tuple[str, str], list[PodFact]] = {}
    for child in view.runnable:
        for pod in child.pods:
            explained = _explain(pod)
            if explained is not None:
                said.setdefault(explained, []).append(pod)
    for (reason, message), pods in said.items():
        text = words.more_pods(message, len(pods) - 1)
        yield Obstacle(f"Pod/{pods[0].name}", reason, text, str(view.id))


def _explain(pod: PodFact) -> tuple[str, str] | None:
    if pod.phase in {"Succeeded", "Failed"}:
        return None
    if pod.unschedulable_message:
        return Reason.UNSCHEDULABLE, words.unschedulable(_sentence(pod.unschedulable_message))
    if pod.waiting_reason in _IMAGE_REASONS:
        return Reason.IMAGE_PULL, words.image_pull(_sentence(pod.waiting_message or pod.waiting_reason))
    if pod.waiting_reason in _CONFIG_REASONS:
        return Reason.CONTAINER_CONFIG, words.container_config(_sentence(pod.waiting_message or pod.waiting_reason))
    return None


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
