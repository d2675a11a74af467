"""Pure composition of a pod's status from the states of its containers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.objects import set_condition


@dataclass(slots=True)
class ContainerState:
    """The kubelet's state of one container; `is_final` once it will not be restarted."""

    name: str
    image: str
    state: JsonObject = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last_state: JsonObject = field(default_factory=dict)
    restart_count: int = 0
    is_ready: bool = False
    has_started: bool = False
    is_final: bool = False
    container_id: str = ""

    @property
    def exit_code(self) -> int | None:
        """Exit code of the last run; None while it runs or waits."""
        terminated = self.state.get("terminated")
        return int(terminated["exitCode"]) if terminated else None

    def as_status(self) -> JsonObject:
        """Return the entry of `status.containerStatuses`."""
        return {
            "name": self.name,
            "state": self.state,
            "lastState": self.last_state,
            "ready": self.is_ready,
            "restartCount": self.restart_count,
            "image": self.image,
            "imageID": f"process://{self.image}" if self.container_id else "",
            **({"containerID": self.container_id} if self.container_id else {}),
            "started": self.has_started,
        }


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the pod as a whole was terminated, if not by its containers."""

    reason: str
    message: str
    is_disruption: bool = False


def phase(init: list[ContainerState], apps: list[ContainerState], ending: Ending | None) -> str:
    """Return the phase of a pod by the states of its containers."""
    if ending is not None:
        return "Failed"
    if any(c.is_final and c.exit_code not in {None, 0} for c in init):
        return "Failed"
    if apps and all(c.is_final and c.exit_code is not None for c in apps):
        return "Succeeded" if all(c.exit_code == 0 for c in apps) else "Failed"
    if any("running" in c.state or c.container_id for c in apps):
        return "Running"
    return "Pending"


@dataclass(frozen=True, slots=True)
class PodState:
    """The kubelet's state of a pod: its containers, address, start and, once it is terminated, why."""

    init: list[ContainerState]
    apps: list[ContainerState]
    address: str
    started_at: str
    ending: Ending | None = None

    @property
    def phase(self) -> str:
        """Phase of the pod."""
        return phase(self.init, self.apps, self.ending)


def compose(pod: JsonObject, state: PodState, now: datetime) -> JsonObject:
    """Return the status to write. Transition times of unchanged conditions stay."""
    conditions = list((pod.get("status") or {}).get("conditions") or [])
    for entry in _conditions(state):
        conditions = _replace_condition(conditions, entry, now)
    kept = {"PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready", "DisruptionTarget"}
    status: JsonObject = {
        "phase": state.phase,
        "conditions": [c for c in conditions if c["type"] in kept],
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "podIP": state.address,
        "podIPs": [{"ip": state.address}],
        "startTime": state.started_at,
        "containerStatuses": [c.as_status() for c in state.apps],
    }
    if state.init:
        status["initContainerStatuses"] = [c.as_status() for c in state.init]
    if state.ending is not None:
        status |= {"reason": state.ending.reason, "message": state.ending.message}
    return status


def _conditions(state: PodState) -> list[JsonObject]:
    current, ending = state.phase, state.ending
    is_over = current in {"Succeeded", "Failed"}
    incomplete = [c.name for c in state.init if c.exit_code != 0]
    unready = [c.name for c in state.apps if not c.is_ready]
    entries = [_condition("PodReadyToStartContainers", not is_over)]
    if incomplete:
        text = f"containers with incomplete status: [{' '.join(incomplete)}]"
        entries.append(_condition("Initialized", False, "ContainersNotInitialized", text))
    else:
        entries.append(_condition("Initialized", True, "PodCompleted" if current == "Succeeded" else ""))
    if is_over:
        why = ("PodCompleted" if current == "Succeeded" else "PodFailed", "")
    else:
        why = ("ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    for kind in ("ContainersReady", "Ready"):
        is_ready = not unready and not is_over and not incomplete
        entries.append(_condition(kind, True) if is_ready else _condition(kind, False, *why))
    if ending is not None and ending.is_disruption:
        entries.append(_condition("DisruptionTarget", True, "TerminationByKubelet", ending.message))
    return entries


def _replace_condition(conditions: list[JsonObject], entry: JsonObject, now: datetime) -> list[JsonObject]:
    """Set a condition like `set_condition`, but remove a reason that no longer applies."""
    updated = set_condition(conditions, entry, now)
    keep = {*entry, "lastTransitionTime"}
    return [{k: v for k, v in c.items() if k in keep} if c["type"] == entry["type"] else c for c in updated]


def _condition(kind: str, value: bool, reason: str = "", message: str = "") -> JsonObject:
    return {
        "type": kind,
        "status": "True" if value else "False",
        "lastProbeTime": None,
        **({"reason": reason} if reason else {}),
        **({"message": message} if message else {}),
    }


def waiting(reason: str, message: str = "") -> JsonObject:
    """Return the state of a container that does not run yet."""
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Termination:
    """How a container has ended; times as metav1.Time. Without a reason the exit code gives one."""

    exit_code: int
    signal: int
    started_at: str
    finished_at: str
    message: str
    reason: str
    container_id: str

    def as_state(self) -> JsonObject:
        """Return the state of the container."""
        return {
            "terminated": {
                "exitCode": self.exit_code,
                **({"signal": self.signal} if self.signal else {}),
                "reason": self.reason or ("Completed" if self.exit_code == 0 else "Error"),
                **({"message": self.message} if self.message else {}),
                "startedAt": self.started_at,
                "finishedAt": self.finished_at,
                "containerID": self.container_id,
            }
        }


def should_restart(policy: str, exit_code: int, *, is_init: bool) -> bool:
    """Return whether to restart after an exit code. An init container under Always runs until it succeeds."""
    if is_init and exit_code == 0:
        return False
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def crash_backoff_s(restarts: int, *, scale: float) -> float:
    """Return the pause before restart number `restarts` + 1: none, then 10 s, doubling up to 5 minutes."""
    if restarts <= 0:
        return 0.0
    return float(min(10 * 2 ** min(restarts - 1, 10), 300)) * scale


def whole_seconds(text: str) -> str:
    """Truncate a time with fractions to metav1.Time."""
    return f"{text[:19]}Z"
