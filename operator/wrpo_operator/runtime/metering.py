"""A KubeClient that counts: each request, and what an experiment's status shows to have ended.

Statuses are counted where they are written. Only the leader writes them, and each change once, so nothing is counted
twice by standbys, by repeated watch events, or after a restart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import datetime
from time import perf_counter
from typing import Any, TypeVar

from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.status import AttemptState, StageState
from wrpo_operator.runtime.kube import KubeClient, KubeError, Page, Propagation
from wrpo_operator.runtime.metrics import Metrics
from wrpo_operator.runtime.resources import EXPERIMENTS, JsonObject, Resource

T = TypeVar("T")
ENDED = frozenset({AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.DISRUPTED, AttemptState.STOPPED})
FAILURES = frozenset({"Application", "Config", "Disruption"})


class MeteredKube:
    """Hands every call on to `client`. `known` returns the status that a status write replaces."""

    def __init__(
        self,
        client: KubeClient,
        metrics: Metrics,
        *,
        known: Callable[[str, str], JsonObject] = lambda _namespace, _name: {},
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._known = known
        self._clock = clock

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        return await self._count("get", resource.plural, self._client.get(resource, name, namespace))

    async def pages(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[Page]:
        pages = self._client.pages(resource, namespace, label_selector=label_selector, field_selector=field_selector)
        page: Page | None = None
        while page is None or page.more:
            page = await self._count("list", resource.plural, anext(pages))
            yield page

    async def create(self, resource: Resource, body: JsonObject) -> JsonObject:
        return await self._count("create", resource.plural, self._client.create(resource, body))

    async def replace(self, resource: Resource, body: JsonObject) -> JsonObject:
        return await self._count("update", resource.plural, self._client.replace(resource, body))

    async def apply(self, resource: Resource, body: JsonObject) -> JsonObject:
        return await self._count("apply", resource.plural, self._client.apply(resource, body))

    async def merge_patch(
        self, resource: Resource, name: str, namespace: str | None, patch: JsonObject, *, subresource: str = ""
    ) -> JsonObject:
        what = f"{resource.plural}/{subresource}" if subresource else resource.plural
        is_status = resource == EXPERIMENTS and subresource == "status"
        before = self._known(namespace or "", name) if is_status else {}
        call = self._client.merge_patch(resource, name, namespace, patch, subresource=subresource)
        try:
            answer = await self._count("patch", what, call)
        except KubeError:
            if is_status:
                self._metrics.status_writes.labels("error").inc()
            raise
        if is_status:
            self._metrics.status_writes.labels("done").inc()
            count_ended(self._metrics, before, answer.get("status") or {})
        return answer

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        *,
        uid: str | None = None,
        propagation: Propagation = "Background",
    ) -> JsonObject:
        call = self._client.delete(resource, name, namespace, uid=uid, propagation=propagation)
        return await self._count("delete", resource.plural, call)

    async def served(self, resource: Resource) -> bool:
        return await self._count("discover", resource.plural, self._client.served(resource))

    async def _count(self, verb: str, resource: str, call: Awaitable[T]) -> T:
        began, code = self._clock(), "200"
        try:
            return await call
        except KubeError as error:
            code = str(error.code)
            raise
        finally:
            self._metrics.api_requests.labels(verb, resource, code).inc()
            self._metrics.api_request_seconds.labels(verb, resource).observe(self._clock() - began)


def count_ended(metrics: Metrics, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Count the attempts and stages that have ended between two statuses, and their GPU time."""
    known = {stage.get("name"): stage for stage in before.get("stages") or ()}
    for stage in after.get("stages") or ():
        old = known.get(stage.get("name"), {})
        if old.get("hash") != stage.get("hash"):
            old = {}
        kind = kind_of(stage)
        for attempt in _newly_ended(old, stage):
            failure = attempt.get("failure")
            metrics.attempts.labels(kind, attempt["state"], failure if failure in FAILURES else "").inc()
        grown = int(stage.get("gpuSeconds") or 0) - int(old.get("gpuSeconds") or 0)
        if grown > 0:
            metrics.gpu_seconds.labels(kind).inc(grown)
        if stage.get("state") in {StageState.SUCCEEDED, StageState.FAILED} and old.get("state") != stage["state"]:
            outcome = "Cached" if stage.get("cached") else str(stage["state"])
            metrics.stage_seconds.labels(kind, outcome).observe(_lasted_s(stage))


def kind_of(stage: Mapping[str, Any]) -> str:
    """Return a stage's kind: `sample` of `sample/qwen`."""
    kind = str(stage.get("name", "")).partition("/")[0]
    return kind if kind in STAGES else "other"


def _newly_ended(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    over = {attempt.get("number") for attempt in before.get("attempts") or () if attempt.get("state") in ENDED}
    for attempt in after.get("attempts") or ():
        if attempt.get("state") in ENDED and attempt.get("number") not in over:
            yield attempt


def _lasted_s(stage: Mapping[str, Any]) -> float:
    try:
        began, ended = (datetime.fromisoformat(str(stage[key])) for key in ("startedAt", "finishedAt"))
    except (KeyError, ValueError):
        return 0.0
    return max(0.0, (ended - began).total_seconds())
