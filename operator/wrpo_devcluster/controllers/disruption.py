"""Disruption controller: how many pods of each PodDisruptionBudget may be evicted now."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from typing_extensions import override

from wrpo_devcluster.client import BUDGETS, PODS, Client, JsonObject
from wrpo_devcluster.clock import Clock, parse_time
from wrpo_devcluster.controllers.base import Controller, Watched, get_or_none, own_key
from wrpo_devcluster.objects import (
    controller_of,
    is_deleting,
    is_ready,
    is_terminal,
    key_of,
    labels_of,
    matches,
    set_condition,
    split_key,
)

_DISRUPTION_LASTS = timedelta(minutes=2)
_ALLOWS = "SufficientPods"
"""Seconds for which an evicted pod that still exists counts as disrupted."""


class DisruptionController(Controller):
    """Controller of budgets. A changed pod enqueues the budgets that select it."""

    name = "disruption-controller"

    def __init__(self, client: Client, clock: Clock) -> None:
        super().__init__(client, clock)
        self._selectors: dict[str, JsonObject] = {}

    @override
    def watched(self) -> Sequence[Watched]:
        return (Watched(BUDGETS, self._budget_keys), Watched(PODS, self._keys_of_pod))

    def _budget_keys(self, budget: JsonObject) -> Iterable[str]:
        self._selectors[key_of(budget)] = budget["spec"].get("selector") or {}
        return own_key(budget)

    def _keys_of_pod(self, pod: JsonObject) -> Iterable[str]:
        namespace = pod["metadata"]["namespace"]
        for key, selector in self._selectors.items():
            if split_key(key)[0] == namespace and matches(selector, labels_of(pod)):
                yield key

    @override
    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        budget = await get_or_none(self.client, BUDGETS, name, namespace)
        if budget is None:
            self._selectors.pop(key, None)
            return None
        selector = budget["spec"].get("selector")
        pods = [
            pod
            for pod in await self.client.list(PODS, namespace)
            if selector is not None and matches(selector, labels_of(pod)) and not is_terminal(pod)
        ]
        status = budget_status(budget, pods, self.clock.now())
        if status != budget.get("status"):
            await self.client.update(BUDGETS, {**budget, "status": status}, subresource="status")
        return None


def budget_status(budget: JsonObject, pods: Sequence[JsonObject], now: datetime) -> JsonObject:
    """Return the status of a budget that selects `pods`."""
    old = budget.get("status") or {}
    there = {pod["metadata"]["name"]: pod for pod in pods}
    evicted = {
        name: at
        for name, at in (old.get("disruptedPods") or {}).items()
        if name in there and not is_deleting(there[name]) and parse_time(at) + _DISRUPTION_LASTS > now
    }
    healthy = sum(is_ready(pod) and not is_deleting(pod) and name not in evicted for name, pod in there.items())
    status: JsonObject = {
        "observedGeneration": budget["metadata"].get("generation", 1),
        "disruptionsAllowed": 0,
        "currentHealthy": healthy,
        "desiredHealthy": 0,
        "expectedPods": len(pods),
    }
    if evicted:
        status["disruptedPods"] = evicted
    unmanaged = sorted(name for name, pod in there.items() if controller_of(pod) is None)
    if unmanaged and _counts_owners(budget["spec"]):
        # As in the real controller: without owners the expected number of pods is unknown.
        problem = f'found no controller ref for pod "{unmanaged[0]}"'
        return _with_condition(status, old, "SyncFailed", problem, now)
    desired = _desired(budget["spec"], len(pods))
    status["desiredHealthy"] = desired
    status["disruptionsAllowed"] = max(healthy - desired, 0) if pods else 0
    reason = _ALLOWS if status["disruptionsAllowed"] > 0 else "InsufficientPods"
    return _with_condition(status, old, reason, "", now)


def _counts_owners(spec: JsonObject) -> bool:
    return spec.get("maxUnavailable") is not None or isinstance(spec.get("minAvailable"), str)


def _desired(spec: JsonObject, expected: int) -> int:
    """Return how many pods have to stay healthy."""
    if spec.get("maxUnavailable") is not None:
        return max(expected - _scaled(spec["maxUnavailable"], expected), 0)
    return _scaled(spec["minAvailable"], expected) if spec.get("minAvailable") is not None else 1


def _scaled(value: Any, whole: int) -> int:
    """Resolve a count or a share of `whole`, which is rounded up."""
    return math.ceil(int(value.rstrip("%")) * whole / 100) if isinstance(value, str) else int(value)


def _with_condition(status: JsonObject, old: JsonObject, reason: str, message: str, now: datetime) -> JsonObject:
    entry = {
        "type": "DisruptionAllowed",
        "status": "True" if reason == _ALLOWS else "False",
        "observedGeneration": status["observedGeneration"],
        "reason": reason,
        "message": message,
    }
    return {**status, "conditions": set_condition(old.get("conditions") or [], entry, now)}
