"""Event recorder like client-go's: a repeated text about the same object raises a count."""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

from wrpo_devcluster.client import EVENTS, ApiError, Client, JsonObject
from wrpo_devcluster.clock import Clock, timestamp

log = logging.getLogger(__name__)

_REMEMBERED = 4096


class _Identity(NamedTuple):
    """Properties by which an event is a repetition of another."""

    uid: str
    kind: str
    reason: str
    message: str


class EventRecorder:
    """Recorder of one component's events. A repeated event is counted instead of written again."""

    def __init__(self, client: Client, clock: Clock, component: str, host: str = "") -> None:
        self._client = client
        self._clock = clock
        self._component = component
        self._host = host
        self._seen: dict[_Identity, tuple[str, int]] = {}
        self._last_stamp = 0

    async def event(self, about: JsonObject, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Record an event. A failed write is logged and never fatal."""
        meta = about["metadata"]
        namespace = meta.get("namespace") or "default"
        identity = _Identity(meta["uid"], kind, reason, message)
        try:
            if not await self._count(namespace, identity):
                await self._create(about, namespace, identity)
        except ApiError as error:
            # A namespace that is being deleted accepts no events, so the refusal is not logged.
            log.debug("event %s of %s: %s", reason, meta["name"], error)

    async def _count(self, namespace: str, identity: _Identity) -> bool:
        known = self._seen.get(identity)
        if known is None:
            return False
        name, count = known
        patch = {"count": count + 1, "lastTimestamp": timestamp(self._clock.now())}
        try:
            await self._client.patch(EVENTS, name, namespace, patch, kind="strategic")
        except ApiError as error:
            if error.code == 404:
                return False
            raise
        self._seen[identity] = (name, count + 1)
        return True

    async def _create(self, about: JsonObject, namespace: str, identity: _Identity) -> None:
        now = self._clock.now()
        # The name's suffix is the time in nanoseconds; two events of one instant still need two names.
        self._last_stamp = max(self._last_stamp + 1, int(now.timestamp() * 1e9))
        meta = about["metadata"]
        source = {"component": self._component, **({"host": self._host} if self._host else {})}
        body: JsonObject = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{self._last_stamp:016x}", "namespace": namespace},
            "involvedObject": {
                "kind": about["kind"],
                **({"namespace": meta["namespace"]} if meta.get("namespace") else {}),
                "name": meta["name"],
                "uid": meta["uid"],
                "apiVersion": about["apiVersion"],
                "resourceVersion": meta.get("resourceVersion", ""),
            },
            "reason": identity.reason,
            "message": identity.message[:1024],
            "source": source,
            "firstTimestamp": timestamp(now),
            "lastTimestamp": timestamp(now),
            "count": 1,
            "type": identity.kind,
            "eventTime": None,
            "reportingComponent": self._component,
            "reportingInstance": self._host,
        }
        created = await self._client.create(EVENTS, body, namespace)
        if len(self._seen) >= _REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        self._seen[identity] = (created["metadata"]["name"], 1)
