"""Delays of a real cluster for the simulated one, off by default."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.objects import controller_of

_EVENT_LIST = re.compile(r"/(?:api/v1|apis/events\.k8s\.io/v1)(?:/namespaces/([^/]+))?/events")
_SHORTEST = 1 / 3
"""Least share of a delay's value that a wait takes."""


@dataclass(frozen=True, slots=True)
class Delays:
    """Longest delays in seconds of the cluster's clock. Each wait is drawn by `seed` and the object's name."""

    schedule_s: float = 0.0
    """From a pod's creation until it has a node."""
    create_s: float = 0.0
    """From there until the kubelet reports its containers as being created."""
    start_s: float = 0.0
    """From there until they run."""
    notice_s: float = 0.0
    """From the end of a pod until the Job controller notes it."""
    settle_s: float = 0.0
    """From SuccessCriteriaMet or FailureTarget until the Job is Complete or Failed."""
    event_read_s: float = 0.0
    """For each Event of a namespace in a list: a server reads them all for each request."""
    seed: int = 0

    @property
    def are_on(self) -> bool:
        """Whether any delay is set. If so, pods also report each step with its Events."""
        return self != Delays(seed=self.seed)

    def draw(self, longest_s: float, *what: str) -> float:
        """Return the delay of one step in seconds. Equal seeds and names give equal delays."""
        digest = hashlib.sha256("/".join((str(self.seed), *what)).encode()).digest()
        share = int.from_bytes(digest[:8]) / 2**64
        return longest_s * (_SHORTEST + (1 - _SHORTEST) * share)


NONE = Delays()
REALISTIC = Delays(
    schedule_s=0.5, create_s=0.5, start_s=2.0, notice_s=1.5, settle_s=1.5, event_read_s=0.85 / 6230, seed=1
)
"""As measured on a real control plane: pods wait 1 to 3 s, a Job is complete 1 to 3 s after its pod has ended, and
a list of 6,230 Events takes 0.85 s."""


class Holds:
    """Delays by object and step; the first query of a step starts its delay."""

    def __init__(self, delays: Delays, clock: Clock) -> None:
        self.delays = delays
        self._clock = clock
        self._due: dict[str, dict[str, float]] = {}

    def left_s(self, key: str, step: str, longest_s: float, *what: str) -> float:
        """Return the seconds that the step of `key` still has to wait; 0 when it may be taken."""
        if longest_s <= 0:
            return 0.0
        now = self._clock.now().timestamp()
        due = self._due.setdefault(key, {}).setdefault(step, now + self.delays.draw(longest_s, step, *what))
        return max(0.0, due - now)

    def forget(self, key: str) -> None:
        """Forget an object that is gone or has taken its last step."""
        self._due.pop(key, None)


def delays_middleware(delays: Delays, count_events: Callable[[str], int], clock: Clock) -> Any:
    """Return an aiohttp middleware that delays lists of Events; `count_events` takes a namespace, or "" for all."""

    @web.middleware
    async def middleware(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        listed = _EVENT_LIST.fullmatch(request.path)
        is_list = listed is not None and request.method == "GET" and request.query.get("watch") not in {"true", "1"}
        if delays.event_read_s > 0 and listed is not None and is_list:
            await clock.sleep(delays.event_read_s * count_events(listed[1] or ""))
        return await handler(request)

    return middleware


def pod_identity(pod: JsonObject) -> str:
    """Return an identity of a pod without its random suffix."""
    owner = controller_of(pod)
    index = (pod["metadata"].get("labels") or {}).get("batch.kubernetes.io/job-completion-index", "")
    return f"{owner['name']}/{index}" if owner else str(pod["metadata"]["name"])
