"""Conversion of Events between events.k8s.io/v1 and core/v1, the stored form."""

from __future__ import annotations

from wrpo_devcluster.client import JsonObject

GROUP = "events.k8s.io"
# New name -> core name
_RENAMED = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}


def to_core(event: JsonObject) -> JsonObject:
    """Return an events.k8s.io Event in the core form."""
    out = {_RENAMED.get(name, name): value for name, value in event.items()}
    return {**out, "kind": "Event", "apiVersion": "v1"}


def from_core(event: JsonObject) -> JsonObject:
    """Return a core Event in the events.k8s.io form."""
    names = {core: new for new, core in _RENAMED.items()}
    out = {names.get(name, name): value for name, value in event.items() if value not in ("", 0)}
    return {**out, "kind": "Event", "apiVersion": f"{GROUP}/v1"}


def core_selector(text: str) -> str:
    """Return a field selector of the new form for stored objects."""
    return text.replace("regarding.", "involvedObject.").replace("reportingController", "reportingComponent")
