"""Rows of tables, and their ages."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from wrpo_devcluster.client import JsonObject

NONE = "<none>"
UNKNOWN = "<unknown>"


@dataclass(slots=True)
class Row:
    """Row of a table: cells after the name, and conditions."""

    cells: list[Any]
    conditions: list[JsonObject] = field(default_factory=list)


def human_duration(seconds: float) -> str:
    """Format a duration as kubectl does: 5s, 3m10s, 2h, 4d5h."""
    total = int(seconds)
    if total < -1:
        return "<invalid>"
    total = max(total, 0)
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if total < 120:
        return f"{total}s"
    if minutes < 10:
        return f"{minutes}m{total % 60}s" if total % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 365 * 2:
        return f"{days}d"
    years = days // 365
    return f"{years}y{days % 365}d" if years < 8 and days % 365 else f"{years}y"


def parse(text: Any) -> datetime | None:
    """Return the time that a value of an object states; None for anything else."""
    try:
        return datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return None


def human_age(moment: Any, now: datetime) -> str:
    """Return the time since a moment as `kubectl` shows it, e.g. `5m3s`; UNKNOWN if it is no time."""
    parsed = parse(moment)
    return human_duration((now - parsed).total_seconds()) if parsed is not None else UNKNOWN


def age(obj: JsonObject, now: datetime) -> str:
    """Return the time since an object's creation as `kubectl` shows it."""
    return human_age(obj["metadata"].get("creationTimestamp"), now)


def status_of(obj: JsonObject) -> JsonObject:
    """Return an object's status; empty if it has none."""
    found: JsonObject = obj.get("status") or {}
    return found
