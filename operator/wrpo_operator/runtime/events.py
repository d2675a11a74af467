"""Kubernetes Events about an experiment. A repeated reason and message increments a count instead of adding an Event.

The Event's name is derived from the experiment's uid, the reason and the message, so counting survives a restart of
the operator. Events are for users: a failure to write one is logged and never fails a reconcile.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from wrpo_operator.plan.model import PlannedEvent
from wrpo_operator.runtime.kube import KubeClient, KubeError
from wrpo_operator.runtime.resources import EVENTS, EXPERIMENTS, JsonObject, name_of, namespace_of, uid_of

log = logging.getLogger(__name__)
MESSAGE_LIMIT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EventWriter:
    """Writer of the Events of one operator process."""

    client: KubeClient
    now: Callable[[], datetime]
    host: str
    """The reporting process."""
    check: Callable[[], None] = lambda: None
    """Raises if writes are no longer allowed."""

    async def post(self, subject: JsonObject, event: PlannedEvent) -> None:
        """Write one event about an experiment or a sweep."""
        name, namespace = event_name(subject, event), namespace_of(subject)
        stamp = self.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            self.check()
            try:
                await self.client.create(EVENTS, new_event(subject, event, name=name, stamp=stamp, host=self.host))
            except KubeError as error:
                if not error.conflict:
                    raise
                known = await self.client.get(EVENTS, name, namespace)
                self.check()
                again = {"count": int(known.get("count") or 1) + 1, "lastTimestamp": stamp}
                await self.client.merge_patch(EVENTS, name, namespace, again)
        except KubeError as error:
            log.warning("event %s was not written: %s", event.reason, error.message)


def event_name(experiment: JsonObject, event: PlannedEvent) -> str:
    """Return a name that is equal for equal reason and message about the same object."""
    digest = hashlib.sha256(f"{uid_of(experiment)}\n{event.type}\n{event.reason}\n{event.message}".encode())
    return f"{name_of(experiment)[:200]}.{digest.hexdigest()[:16]}"


def new_event(experiment: JsonObject, event: PlannedEvent, *, name: str, stamp: str, host: str) -> JsonObject:
    """Return the Event of an experiment or a sweep; `stamp` is its time in RFC 3339, `host` the reporting process."""
    message = event.message if len(event.message) <= MESSAGE_LIMIT else event.message[: MESSAGE_LIMIT - 1] + "…"
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"name": name, "namespace": namespace_of(experiment)},
        "involvedObject": {
            "apiVersion": EXPERIMENTS.api_version,
            "kind": experiment.get("kind") or EXPERIMENTS.kind,
            "name": name_of(experiment),
            "namespace": namespace_of(experiment),
            "uid": uid_of(experiment),
            "resourceVersion": str(experiment["metadata"].get("resourceVersion", "")),
        },
        "type": event.type,
        "reason": event.reason,
        "message": message,
        "count": 1,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "source": {"component": "wrpo-operator", "host": host},
        "reportingComponent": "wrpo.ai/wrpo-operator",
        "reportingInstance": host,
    }
