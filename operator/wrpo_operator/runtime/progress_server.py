"""Endpoint to which running stages post their progress, in the form of Kubeflow Trainer's trainerStatus.

Trust: the API server reviews the bearer token for the operator's audience. The pod of the token must belong to the
experiment, stage and attempt of the URL, with the uid in the token. Progress is shown to users and never decides
anything. It is kept in memory only: after a restart the next post restores it.

All costs that a caller can cause are bounded: posts per pod, token reviews, concurrent requests, size and time of
bodies, and the length of every table.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from aiohttp import web

from wrpo_operator.api import names
from wrpo_operator.plan.model import ProgressFact
from wrpo_operator.plan.progress import MAX_REMAINING_S
from wrpo_operator.runtime.cluster import Cluster
from wrpo_operator.runtime.kube import KubeError
from wrpo_operator.runtime.observe import pod_fact
from wrpo_operator.runtime.resources import PODS, TOKEN_REVIEWS, JsonObject, labels_of, uid_of

log = logging.getLogger(__name__)
BODY_LIMIT = 16 * 1024
MIN_INTERVAL_S = 5.0
SLACK_S = 0.5
"""Tolerance in seconds for early posts, because clocks and networks jitter."""
MAX_METRICS = 32
TOKEN_CACHE_S = 60.0
REFUSAL_CACHE_S = 10.0
BODY_TIMEOUT_S = 10.0
MAX_AT_ONCE = 256
MAX_REVIEWS_AT_ONCE = 16
MAX_TRACKED = 20_000
"""Maximum remembered callers, refused tokens and times of posts; the oldest are evicted."""
MAX_STAGES = 1024
"""Attempts of stages remembered for one experiment."""
MAX_SHARDS = 4096
"""Shards remembered for one attempt."""
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
ROUTE = "/v1/namespaces/{namespace}/experiments/{experiment}/stages/{stage}/attempts/{attempt}"


@dataclass(frozen=True, slots=True)
class StageAddress:
    """One attempt of one stage."""

    namespace: str
    experiment: str
    stage: str
    """str(StageId)"""
    attempt: int


@dataclass(slots=True)
class ProgressStore:
    """The last post of each pod, by experiment, stage attempt and shard."""

    _facts: dict[tuple[str, str], dict[tuple[str, int], dict[int, ProgressFact]]] = field(default_factory=dict)

    def put(self, at: StageAddress, fact: ProgressFact) -> None:
        """Store the post of a shard; the oldest attempt and shard are evicted beyond the limits."""
        stages = self._facts.setdefault((at.namespace, at.experiment), {})
        shards = stages.setdefault((at.stage, at.attempt), {})
        if len(stages) > MAX_STAGES:
            del stages[next(iter(stages))]
        if fact.shard not in shards and len(shards) >= MAX_SHARDS:
            del shards[next(iter(shards))]
        before = shards.get(fact.shard)
        stalled = before is not None and fact.percent <= before.percent
        advanced_at = before.advanced_at if before is not None and stalled else fact.received_at
        shards[fact.shard] = replace(fact, advanced_at=advanced_at)

    def of(self, namespace: str, experiment: str) -> Mapping[tuple[str, int], tuple[ProgressFact, ...]]:
        """Return the posts of one experiment: (stage, attempt) -> one fact a shard, by shard."""
        stages = self._facts.get((namespace, experiment), {})
        return {at: tuple(shards[index] for index in sorted(shards)) for at, shards in stages.items()}

    def forget(self, namespace: str, experiment: str) -> None:
        """Drop the posts of a deleted experiment."""
        self._facts.pop((namespace, experiment), None)


class RefusedError(Exception):
    """A post that is refused with an HTTP error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Caller:
    namespace: str
    pod: str
    pod_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressHost:
    """The operator as the server of progress sees it."""

    on_post: Callable[[str, str], None]
    """Called with namespace and name of the experiment to reconcile."""
    on_answer: Callable[[int], None] = lambda _code: None
    """Called with the HTTP status of each reply."""
    leading: Callable[[], bool] = lambda: True


class ProgressServer:
    """Reviews, limits and stores posts."""

    def __init__(self, cluster: Cluster, progress: ProgressStore, audience: str, host: ProgressHost) -> None:
        self._cluster = cluster
        self._progress = progress
        self._audience = audience
        self._host = host
        self._callers: _Recent[_Caller | RefusedError] = _Recent(MAX_TRACKED)
        """Keyed by the digest of the token, because tokens are not kept."""
        self._last_post: _Recent[None] = _Recent(MAX_TRACKED)
        self._running = 0
        self._reviewing = 0

    def app(self) -> web.Application:
        """Return the HTTP application of the endpoint."""
        app = web.Application(client_max_size=BODY_LIMIT)
        app.add_routes([web.post(ROUTE, self._handle)])
        return app

    async def _handle(self, request: web.Request) -> web.Response:
        self._running += 1
        try:
            await self._accept(request)
        except RefusedError as refusal:
            self._host.on_answer(refusal.status)
            headers = {"Retry-After": f"{MIN_INTERVAL_S:.0f}"} if refusal.status in {429, 503} else None
            return web.json_response({"error": str(refusal)}, status=refusal.status, headers=headers)
        finally:
            self._running -= 1
        self._host.on_answer(200)
        return web.json_response({})

    async def _accept(self, request: web.Request) -> None:
        if not self._host.leading():
            # Only the leader shows progress. Stages retry, and a Service then selects another replica.
            raise RefusedError(503, "this replica is a standby")
        if self._running > MAX_AT_ONCE:
            raise RefusedError(503, "too many posts at once")
        at = _address(request.match_info)
        caller = await self._authenticate(request.headers.get("Authorization", ""))
        pod = self._authorize(at, caller)
        self._limit(caller.pod_uid)
        body = await _read_json(request)
        shard = pod_fact(pod).index or 0
        self._progress.put(at, parse_status(body, now=self._cluster.now(), shard=shard))
        self._host.on_post(at.namespace, at.experiment)

    async def _authenticate(self, header: str) -> _Caller:
        scheme, _, token = header.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise RefusedError(401, "a bearer token is required")
        key = hashlib.sha256(token.encode(errors="replace")).hexdigest()
        known = self._callers.get(key, self._cluster.monotonic())
        if known is None:
            known = await self._review_within_limits(token)
            lasts = REFUSAL_CACHE_S if isinstance(known, RefusedError) else TOKEN_CACHE_S
            self._callers.put(key, known, self._cluster.monotonic() + lasts)
        if isinstance(known, RefusedError):
            raise RefusedError(known.status, str(known))
        return known

    async def _review_within_limits(self, token: str) -> _Caller | RefusedError:
        """Review a token with the API server, unless too many reviews are open, which protects it from a flood."""
        if self._reviewing >= MAX_REVIEWS_AT_ONCE:
            raise RefusedError(503, "too many tokens are being reviewed")
        self._reviewing += 1
        try:
            return await self._review(token)
        except RefusedError as refusal:
            if refusal.status == 503:
                raise
            return refusal
        finally:
            self._reviewing -= 1

    async def _review(self, token: str) -> _Caller:
        review = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer = await self._cluster.client.create(TOKEN_REVIEWS, review)
        except KubeError as error:
            log.warning("tokens of progress posts cannot be reviewed: %s", error.message)
            raise RefusedError(503, "tokens cannot be reviewed at the moment") from error
        status = answer.get("status") or {}
        if not status.get("authenticated") or self._audience not in (status.get("audiences") or ()):
            log.info("token of a progress post refused: %s", status.get("error") or "it has another audience")
            raise RefusedError(401, f"the token is not valid for audience {self._audience}")
        user = status.get("user") or {}
        extra = user.get("extra") or {}
        # system:serviceaccount:<namespace>:<name>
        parts = str(user.get("username", "")).split(":")
        pod, uid = _first(extra.get(POD_NAME)), _first(extra.get(POD_UID))
        if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"] or not pod or not uid:
            raise RefusedError(403, "the token is not bound to a pod")
        return _Caller(parts[2], pod, uid)

    def _authorize(self, at: StageAddress, caller: _Caller) -> JsonObject:
        pod = self._cluster.store.get(PODS, caller.namespace, caller.pod)
        labels = labels_of(pod or {})
        is_stage_pod = (
            pod is not None
            and caller.namespace == at.namespace
            and uid_of(pod) == caller.pod_uid
            and labels.get(names.LABEL_EXPERIMENT) == at.experiment
            and labels.get(names.LABEL_STAGE) == names.stage_label(at.stage)
            and labels.get(names.LABEL_ATTEMPT) == str(at.attempt)
        )
        if pod is None or not is_stage_pod:
            raise RefusedError(403, f"pod {caller.pod} does not run {at.stage} attempt {at.attempt}")
        return pod

    def _limit(self, pod_uid: str) -> None:
        at = self._cluster.monotonic()
        if self._last_post.holds(pod_uid, at):
            raise RefusedError(429, f"at most one post in {MIN_INTERVAL_S:g} s")
        self._last_post.put(pod_uid, None, at + MIN_INTERVAL_S - SLACK_S)


T = TypeVar("T")


class _Recent(Generic[T]):
    """Values with an expiry, at most `limit` of them; the oldest are evicted first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def get(self, key: str, now: float) -> T | None:
        entry = self._entries.get(key)
        return entry[1] if entry is not None and now < entry[0] else None

    def holds(self, key: str, now: float) -> bool:
        entry = self._entries.get(key)
        return entry is not None and now < entry[0]

    def put(self, key: str, value: T, until: float) -> None:
        self._entries.pop(key, None)
        self._entries[key] = (until, value)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)


async def _read_json(request: web.Request) -> Any:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            data = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise RefusedError(413, f"the body exceeds {BODY_LIMIT} bytes") from None
    except TimeoutError:
        raise RefusedError(408, f"the body was not received within {BODY_TIMEOUT_S:g} s") from None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is not JSON") from None


def _address(parts: Mapping[str, str]) -> StageAddress:
    attempt = parts["attempt"]
    if not (attempt.isascii() and attempt.isdecimal() and len(attempt) <= 9):
        raise RefusedError(404, "the attempt is not a number")
    stage = names.stage_from_label(parts["stage"])
    return StageAddress(parts["namespace"], parts["experiment"], stage, int(parts["attempt"]))


def _first(values: Any) -> str:
    return str(values[0]) if isinstance(values, list) and values else ""


def parse_status(body: Any, *, now: datetime, shard: int) -> ProgressFact:
    """Read {"trainerStatus": {progressPercentage, estimatedRemainingSeconds, metrics}}; refuse anything else.

    Numbers that are not finite are dropped. The percentage is clamped to 0..100, the remaining time to ten years.
    """
    status = body.get("trainerStatus") if isinstance(body, dict) else None
    if not isinstance(status, dict):
        raise RefusedError(400, "trainerStatus must be an object")
    percent = _number(status.get("progressPercentage"))
    if percent is None:
        raise RefusedError(400, "trainerStatus.progressPercentage must be a number from 0 to 100")
    remaining = _number(status.get("estimatedRemainingSeconds"))
    metrics: dict[str, float] = {}
    given = status.get("metrics")
    for entry in given if isinstance(given, list) else ():
        value = _number(entry.get("value")) if isinstance(entry, dict) else None
        if value is not None and len(metrics) < MAX_METRICS:
            metrics[_text(entry.get("name", ""))[:64]] = value
    return ProgressFact(
        percent=min(100.0, max(0.0, percent)),
        remaining_s=None if remaining is None else min(float(MAX_REMAINING_S), max(0.0, remaining)),
        metrics=metrics,
        received_at=now,
        shard=shard,
    )


def _text(value: Any) -> str:
    """Return a text that can be encoded as UTF-8, because JSON may hold lone surrogates."""
    return str(value).encode(errors="replace").decode()


def _number(value: Any) -> float | None:
    """Return a finite number, also of a text, which is the protocol's form of metric values."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
