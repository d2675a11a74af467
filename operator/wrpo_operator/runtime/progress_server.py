"""The endpoint to which running stages post their progress (Kubeflow Trainer's trainerStatus form).

Trust: the bearer token is reviewed by the API server for our audience, and the pod it is bound to must be a pod of the
very experiment, stage and attempt in the URL, with the uid in the token. What arrives is a hint that is shown to users
and never decides anything. Facts live in memory only: after a restart the next post fills them again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from aiohttp import web

from wrpo_operator.api import names
from wrpo_operator.plan.model import ProgressFact
from wrpo_operator.runtime.kube import KubeClient, KubeError
from wrpo_operator.runtime.observe import pod_fact
from wrpo_operator.runtime.resources import TOKEN_REVIEWS, JsonObject, labels_of, uid_of

log = logging.getLogger(__name__)
BODY_LIMIT = 16 * 1024
MIN_INTERVAL_S = 5.0
SLACK_S = 0.5
"""Let through of a post that comes a little early, for clocks and networks jitter."""
MAX_METRICS = 32
TOKEN_CACHE_S = 60.0
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
ROUTE = "/v1/namespaces/{namespace}/experiments/{experiment}/stages/{stage}/attempts/{attempt}"


class PodSource(Protocol):
    """Where the operator's picture of pods is looked up."""

    def pod(self, namespace: str, name: str) -> JsonObject | None: ...


@dataclass(frozen=True, slots=True)
class StageAddress:
    """One attempt of one stage."""

    namespace: str
    experiment: str
    stage: str
    """str(StageId)"""
    attempt: int


@dataclass(slots=True)
class ProgressBook:
    """The last post of each pod, by experiment, stage attempt and shard."""

    _facts: dict[tuple[str, str], dict[tuple[str, int], dict[int, ProgressFact]]] = field(default_factory=dict)

    def put(self, at: StageAddress, fact: ProgressFact) -> None:
        stages = self._facts.setdefault((at.namespace, at.experiment), {})
        shards = stages.setdefault((at.stage, at.attempt), {})
        before = shards.get(fact.shard)
        stalled = before is not None and fact.percent <= before.percent
        advanced_at = before.advanced_at if before is not None and stalled else fact.received_at
        shards[fact.shard] = replace(fact, advanced_at=advanced_at)

    def of(self, namespace: str, experiment: str) -> Mapping[tuple[str, int], tuple[ProgressFact, ...]]:
        """Return the posts of one experiment: (stage, attempt) -> one fact a shard, by shard."""
        stages = self._facts.get((namespace, experiment), {})
        return {at: tuple(shards[index] for index in sorted(shards)) for at, shards in stages.items()}

    def forget(self, namespace: str, experiment: str) -> None:
        self._facts.pop((namespace, experiment), None)


class RefusedError(Exception):
    """A post that is answered with an HTTP error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Caller:
    namespace: str
    pod: str
    pod_uid: str


class ProgressServer:
    """Reviews, limits and stores posts; `on_post` is told which experiment to look at."""

    def __init__(
        self,
        client: KubeClient,
        pods: PodSource,
        book: ProgressBook,
        *,
        audience: str,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        on_post: Callable[[str, str], None],
        on_answer: Callable[[int], None] = lambda _code: None,
    ) -> None:
        self._client = client
        self._pods = pods
        self._book = book
        self._audience = audience
        self._now = now
        self._monotonic = monotonic
        self._on_post = on_post
        self._on_answer = on_answer
        self._callers: dict[str, tuple[float, _Caller]] = {}
        self._last_post: dict[str, float] = {}

    def app(self) -> web.Application:
        app = web.Application(client_max_size=BODY_LIMIT)
        app.add_routes([web.post(ROUTE, self._handle)])
        return app

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            await self._accept(request)
        except RefusedError as refusal:
            self._on_answer(refusal.status)
            headers = {"Retry-After": f"{MIN_INTERVAL_S:.0f}"} if refusal.status == 429 else None
            return web.json_response({"error": str(refusal)}, status=refusal.status, headers=headers)
        self._on_answer(200)
        return web.json_response({})

    async def _accept(self, request: web.Request) -> None:
        at = _address(request.match_info)
        caller = await self._authenticate(request.headers.get("Authorization", ""))
        pod = self._authorize(at, caller)
        self._limit(caller.pod_uid)
        try:
            body = await request.json()
        except web.HTTPRequestEntityTooLarge:
            raise RefusedError(413, f"the body exceeds {BODY_LIMIT} bytes") from None
        except ValueError:
            raise RefusedError(400, "the body is not JSON") from None
        shard = pod_fact(pod).index or 0
        self._book.put(at, parse_status(body, now=self._now(), shard=shard))
        self._on_post(at.namespace, at.experiment)

    async def _authenticate(self, header: str) -> _Caller:
        scheme, _, token = header.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise RefusedError(401, "a bearer token is needed")
        at = self._monotonic()
        cached = self._callers.get(token)
        if cached is not None and at - cached[0] < TOKEN_CACHE_S:
            return cached[1]
        caller = await self._review(token)
        self._callers = {key: entry for key, entry in self._callers.items() if at - entry[0] < TOKEN_CACHE_S}
        self._callers[token] = (at, caller)
        return caller

    async def _review(self, token: str) -> _Caller:
        review = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer = await self._client.create(TOKEN_REVIEWS, review)
        except KubeError as error:
            log.warning("tokens of progress posts cannot be reviewed: %s", error.message)
            raise RefusedError(503, "tokens cannot be reviewed now") from error
        status = answer.get("status") or {}
        if not status.get("authenticated") or self._audience not in (status.get("audiences") or ()):
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
        pod = self._pods.pod(caller.namespace, caller.pod)
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
        at = self._monotonic()
        if at - self._last_post.get(pod_uid, -math.inf) < MIN_INTERVAL_S - SLACK_S:
            raise RefusedError(429, f"at most one post in {MIN_INTERVAL_S:g} s")
        self._last_post = {uid: when for uid, when in self._last_post.items() if at - when < MIN_INTERVAL_S}
        self._last_post[pod_uid] = at


def _address(parts: Mapping[str, str]) -> StageAddress:
    if not parts["attempt"].isdecimal():
        raise RefusedError(404, "the attempt is not a number")
    stage = names.stage_from_label(parts["stage"])
    return StageAddress(parts["namespace"], parts["experiment"], stage, int(parts["attempt"]))


def _first(values: Any) -> str:
    return str(values[0]) if isinstance(values, list) and values else ""


def parse_status(body: Any, *, now: datetime, shard: int) -> ProgressFact:
    """Read {"trainerStatus": {progressPercentage, estimatedRemainingSeconds, metrics}}; refuse anything else.

    What is not a finite number is left out, and the percentage is held within 0..100.
    """
    status = body.get("trainerStatus") if isinstance(body, dict) else None
    if not isinstance(status, dict):
        raise RefusedError(400, "the body needs an object trainerStatus")
    percent = _number(status.get("progressPercentage"))
    if percent is None:
        raise RefusedError(400, "trainerStatus.progressPercentage needs a number from 0 to 100")
    remaining = _number(status.get("estimatedRemainingSeconds"))
    metrics: dict[str, float] = {}
    for entry in status.get("metrics") or ():
        value = _number(entry.get("value")) if isinstance(entry, dict) else None
        if value is not None and len(metrics) < MAX_METRICS:
            metrics[str(entry.get("name", ""))[:64]] = value
    return ProgressFact(
        percent=min(100.0, max(0.0, percent)),
        remaining_s=None if remaining is None else max(0.0, remaining),
        metrics=metrics,
        received_at=now,
        shard=shard,
    )


def _number(value: Any) -> float | None:
    """Return a finite number, also when it comes as text (the protocol's metric values do)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
