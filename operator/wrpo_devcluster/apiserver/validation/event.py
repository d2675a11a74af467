"""Validation of Events of both groups, which are stored in the core form."""

from __future__ import annotations

from wrpo_devcluster.apiserver.apis.errors import Cause, invalid_field, required_field
from wrpo_devcluster.apiserver.schema.typed import same
from wrpo_devcluster.apiserver.validation.metadata import dns_subdomain, qualified_name
from wrpo_devcluster.client import JsonObject

_LONGEST, _LONGEST_NOTE = 128, 1024
_MISMATCH = "does not match event.namespace"
_SYSTEM_NAMESPACES = frozenset({"default", "kube-system"})
_FIXED = (
    "involvedObject", "reason", "message", "firstTimestamp", "lastTimestamp", "count", "type", "eventTime", "action",
    "related", "reportingComponent", "reportingInstance",
)  # fmt: skip
"""Fields of an Event of the newer group that never change; only its series may."""
_NEW_NAMES = {"reportingComponent": "reportingController"}


def validate_event(event: JsonObject, *, is_new_form: bool) -> list[Cause]:
    """Return the faults of a new Event; `is_new_form` if it came through events.k8s.io."""
    causes = _common(event, is_new_form=is_new_form)
    if not is_new_form:
        return causes
    causes += _series(event)
    if not event.get("eventTime"):
        causes.append(required_field("eventTime"))
    if event.get("type") not in {"Normal", "Warning"}:
        causes.append(invalid_field("type", "", f"has invalid value: {event.get('type', '')}"))
    source = {name: value for name, value in (event.get("source") or {}).items() if value}
    old_fields = {
        "firstTimestamp": event.get("firstTimestamp"),
        "lastTimestamp": event.get("lastTimestamp"),
        "count": event.get("count"),
        "source": source,
    }
    return causes + [invalid_field(name, "", "needs to be unset") for name, value in old_fields.items() if value]


def validate_event_update(new: JsonObject, old: JsonObject, *, is_new_form: bool) -> list[Cause]:
    """Return the faults of a changed Event."""
    causes = _common(new, is_new_form=is_new_form)
    if not is_new_form:
        return causes
    if not same(new.get("series"), old.get("series")):
        causes += _series(new)
    return causes + [
        invalid_field(_NEW_NAMES.get(name, name), new.get(name), "field is immutable")
        for name in _FIXED
        if not same(new.get(name), old.get(name))
    ]


def _common(event: JsonObject, *, is_new_form: bool) -> list[Cause]:
    namespace = event["metadata"].get("namespace", "")
    about = (event.get("involvedObject") or {}).get("namespace", "")
    causes: list[Cause] = []
    if event.get("eventTime"):
        if not about and namespace not in _SYSTEM_NAMESPACES:
            causes.append(invalid_field("involvedObject.namespace", about, _MISMATCH))
        causes += _reporter(event, "reportingController" if is_new_form else "reportingComponent")
    elif (about and about != namespace) or (not about and namespace != "default"):
        causes.append(invalid_field("involvedObject.namespace", about, _MISMATCH))
    return causes + dns_subdomain(namespace, "namespace")


def _reporter(event: JsonObject, controller_field: str) -> list[Cause]:
    controller = event.get("reportingComponent", "")
    causes = [] if controller else [required_field(controller_field)]
    causes += qualified_name(controller, controller_field)
    for name in ("reportingInstance", "action", "reason"):
        value = event.get(name, "")
        if not value:
            causes.append(required_field(name))
        elif len(value.encode()) > _LONGEST:
            causes.append(invalid_field(name, "", f"can have at most {_LONGEST} characters"))
    if len((event.get("message") or "").encode()) > _LONGEST_NOTE:
        causes.append(invalid_field("message", "", f"can have at most {_LONGEST_NOTE} characters"))
    return causes


def _series(event: JsonObject) -> list[Cause]:
    series = event.get("series")
    if series is None:
        return []
    causes = []
    if (series.get("count") or 0) < 2:
        causes.append(invalid_field("series.count", "", "should be at least 2"))
    if not series.get("lastObservedTime"):
        causes.append(required_field("series.lastObservedTime"))
    return causes
