"""Fault injection: failures of pods and requests as a real cluster has them, at a chosen moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wrpo_devcluster.client import PODS, ApiError, Client, JsonObject
from wrpo_devcluster.clock import Clock, timestamp

Disruption = Literal["PreemptionByScheduler", "EvictionByEvictionAPI", "DeletionByTaintManager"]

_MESSAGES: dict[str, str] = {
    "PreemptionByScheduler": "default-scheduler: preempting to accommodate a higher priority pod",
    "EvictionByEvictionAPI": "Eviction API: evicting",
    "DeletionByTaintManager": "Taint manager: deleting due to NoExecute taint",
}


class Refusal(BaseModel):
    """Requests to refuse or delay. An empty selector matches everything. `times` counts down with each match."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_by_name=True, validate_by_alias=True)

    code: int = 500
    """HTTP status of the refusal; 0 only delays."""
    verb: str = ""
    """Verb as RBAC knows it, e.g. `get`, `patch`, `watch`."""
    group: str | None = None
    """API group; the empty string is the core group, None any."""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    user: str = ""
    times: int = Field(1, ge=1)
    delay_s: float = Field(0.0, ge=0, strict=False, alias="delaySeconds")
    message: str = "injected fault"
    retry_after_s: int = Field(1, ge=0, alias="retryAfterSeconds")
    """Retry-After of the refusal, sent with 429, 503 and 504 only."""

    @field_validator("code")
    @classmethod
    def _is_a_refusal(cls, code: int) -> int:
        if code != 0 and not 400 <= code <= 599:
            raise ValueError(f"must be 0 (delay only) or an HTTP status from 400 to 599, not {code}")
        return code

    def matches(self, request: RequestTarget) -> bool:
        """Return whether the refusal applies to a request and is not used up."""
        return (
            self.times > 0
            and self.group in {None, request.group}
            and self.verb in {"", request.verb}
            and self.resource in {"", request.resource}
            and self.namespace in {"", request.namespace}
            and self.name in {"", request.name}
            and self.user in {"", request.user}
        )


@dataclass(frozen=True, slots=True)
class RequestTarget:
    """A request as refusals match it: the user and the target."""

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str


@dataclass(slots=True)
class Faults:
    """Faults in force, which API server, scheduler and kubelet read."""

    scheduling_delay_s: float = 0.0
    pull_errors: dict[str, str] = field(default_factory=dict)
    """Image (or part of its name) -> message of the pull error."""
    refusals: list[Refusal] = field(default_factory=list)
    """The first one that matches a request applies to it."""

    def refuse(self, refusal: Refusal) -> Refusal:
        """Add a refusal. Its `times` counts down, so that the caller sees how often it applied."""
        self.refusals.append(refusal)
        return refusal

    def clear(self) -> None:
        """Remove every fault."""
        self.scheduling_delay_s = 0.0
        self.pull_errors.clear()
        self.refusals.clear()

    def take_refusal(self, request: RequestTarget) -> Refusal | None:
        """Return the refusal that applies to a request, counted down by one."""
        for refusal in self.refusals:
            if refusal.matches(request):
                refusal.times -= 1
                return refusal
        return None

    def pull_error(self, image: str) -> str | None:
        """Return the message of a failed pull of an image; None if the pull succeeds."""
        for part, message in self.pull_errors.items():
            if part in image:
                return message or f'failed to pull and unpack image "{image}": injected fault'
        return None


async def disrupt(client: Client, clock: Clock, namespace: str, pod: str, reason: Disruption) -> None:
    """Disrupt a pod as the cluster does: the DisruptionTarget condition first, then a graceful deletion."""
    entry: JsonObject = {
        "type": "DisruptionTarget",
        "status": "True",
        "lastProbeTime": None,
        "lastTransitionTime": timestamp(clock.now()),
        "reason": reason,
        "message": _MESSAGES[reason],
    }
    await client.patch(
        PODS, pod, namespace, {"status": {"conditions": [entry]}}, kind="strategic", subresource="status"
    )
    await client.delete(PODS, pod, namespace, propagation="Background")


async def lose_pod(client: Client, namespace: str, pod: str) -> None:
    """Remove a pod without notice, like the forced removal of a lost node's pods."""
    await client.delete(PODS, pod, namespace, propagation="Background", grace_period_s=0)


async def lose_node(client: Client, clock: Clock, node: str) -> list[str]:
    """Evict all pods of a node as the taint manager does after its grace period; return their keys."""
    lost = []
    for pod in await client.list(PODS):
        if pod["spec"].get("nodeName") != node or (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
            continue
        meta = pod["metadata"]
        try:
            await disrupt(client, clock, meta["namespace"], meta["name"], "DeletionByTaintManager")
        except ApiError as error:
            if error.code != 404:
                raise
            continue
        lost.append(f"{meta['namespace']}/{meta['name']}")
    return lost
