"""Timeline of a finished experiment, from its objects in the cluster and the logs of its pods. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from wrpo_engine.process.moments import ENGINE_STARTED, LOADED

PARTS = ("pod", "start", "engine", "work", "next")
"""Parts of a stage's time in their order; `StageTime` describes them."""


@dataclass(frozen=True)
class StageTime:
    """A stage's way from the creation of its child to that of the next one, in seconds.

    Kubernetes rounds times of objects to whole seconds, so a single part may be wrong by a second; sums are not.
    """

    stage: str
    pods: int
    created: float
    """Unix time, as all moments."""
    ended: float
    pod: float
    """From the creation of the child to the start of its first container."""
    start: float
    """From there until the process has imported the stage's code."""
    engine: float
    """From there until the sampling engine has started, where the stage has one."""
    work: float
    """From there to the end of the last pod: the stage's own work, its commit included."""
    next: float
    """From there to the creation of the next child; 0 if another stage runs meanwhile, or if none follows."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pod:
    """What is read of one pod."""

    stage: str
    started: float
    ended: float
    loaded: float | None
    engine: float | None


def moment(text: str) -> float:
    """Return the Unix time of an RFC 3339 time, also of one with nanoseconds."""
    head, dot, rest = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{head}{dot}{rest[:6]}+00:00").timestamp()


def marks(log: str) -> dict[str, float]:
    """Return the Unix time of each mark that a log with timestamps holds."""
    found: dict[str, float] = {}
    for line in log.splitlines():
        time, _, text = line.partition(" ")
        if text in {LOADED, ENGINE_STARTED}:
            found.setdefault(text, moment(time))
    return found


def ended_well(obj: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return how the containers of a pod ended; empty unless all have ended without an error."""
    states = [status.get("state", {}) for status in obj.get("status", {}).get("containerStatuses", [])]
    ended = [state["terminated"] for state in states if "terminated" in state]
    return ended if len(ended) == len(states) and not any(each["exitCode"] for each in ended) else []


def pod_of(stage: str, ended: Sequence[Mapping[str, Any]], log: str) -> Pod:
    """Return a pod's times, of the ends of its containers and of its log."""
    found = marks(log)
    return Pod(
        stage=stage,
        started=min(moment(each["startedAt"]) for each in ended),
        ended=max(moment(each["finishedAt"]) for each in ended),
        loaded=found.get(LOADED),
        engine=found.get(ENGINE_STARTED),
    )


def timeline(created: Mapping[str, float], pods: Iterable[Pod]) -> list[StageTime]:
    """Return the stages in the order of their creation. `created` has the moment of each stage's child.

    Of a stage with several pods, the parts are those of the pod that ended last: the others did not delay it.
    """
    by_stage: dict[str, list[Pod]] = {}
    for pod in pods:
        by_stage.setdefault(pod.stage, []).append(pod)
    ends = {stage: max(pod.ended for pod in found) for stage, found in by_stage.items()}
    return [
        _stage_time(stage, created, by_stage[stage], ends)
        for stage in sorted(by_stage, key=lambda name: (created[name], name))
    ]


def _stage_time(stage: str, created: Mapping[str, float], pods: Sequence[Pod], ends: Mapping[str, float]) -> StageTime:
    last = max(pods, key=lambda pod: pod.ended)
    started = min(pod.started for pod in pods)
    loaded = max(last.loaded or last.started, started)
    engine = max(last.engine or loaded, loaded)
    following = [moment for name, moment in created.items() if moment >= last.ended and name != stage]
    goes_on = any(created[name] < last.ended < end for name, end in ends.items())
    return StageTime(
        stage=stage,
        pods=len(pods),
        created=created[stage],
        ended=last.ended,
        pod=max(0.0, started - created[stage]),
        start=loaded - started,
        engine=engine - loaded,
        work=max(0.0, last.ended - engine),
        next=0.0 if goes_on or not following else min(following) - last.ended,
    )


def idle_seconds(stages: Sequence[StageTime]) -> float:
    """Return the seconds between the first creation and the last end in which no container of a stage ran."""
    spans = sorted((stage.created + stage.pod, stage.ended) for stage in stages)
    idle, until = 0.0, min(stage.created for stage in stages)
    for begun, ended in spans:
        idle += max(0.0, begun - until)
        until = max(until, ended)
    return idle
