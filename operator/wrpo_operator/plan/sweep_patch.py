"""Patches of a variant: fields of a spec, named by their paths. Pure."""

from __future__ import annotations

import copy
import re
from typing import Any

from wrpo_operator.api import sweep_messages

Raw = dict[str, Any]
_STEP = re.compile(r"(?P<field>[A-Za-z][A-Za-z0-9_-]*)(\[(?P<item>[A-Za-z0-9._/-]+)\])?")


class PatchError(ValueError):
    """A patch that cannot be applied; the message names path and rule."""


def apply_patch(spec: Raw, path: str, value: Any) -> None:
    """Set the field at a path such as training.alpha or sources[NAME].shards; None removes it. PatchError: no such
    place.
    """
    steps = [_STEP.fullmatch(part) for part in _split(path)]
    if any(step is None for step in steps):
        raise PatchError(sweep_messages.no_path(path))
    *above, last = [step for step in steps if step is not None]
    place: Any = spec
    for step in above:
        place = _enter(place, step["field"], step["item"], path)
    if last["item"]:
        entry = _enter(place, last["field"], last["item"], path)
        if value is None:
            place[last["field"]].remove(entry)
        else:
            entry.clear()
            entry.update(copy.deepcopy(value) if isinstance(value, dict) else {})
            entry.setdefault("name", last["item"])
    elif value is None:
        place.pop(last["field"], None)
    else:
        place[last["field"]] = copy.deepcopy(value)


def _split(path: str) -> list[str]:
    """Split at dots outside brackets."""
    return re.split(r"\.(?![^\[]*\])", path)


def _enter(place: Raw, field: str, item: str | None, path: str) -> Raw:
    found = place.setdefault(field, {}) if item is None else place.get(field)
    if item is not None:
        entries = found if isinstance(found, list) else []
        found = next((entry for entry in entries if isinstance(entry, dict) and entry.get("name") == item), None)
        if found is None:
            raise PatchError(sweep_messages.no_item(path, field, item))
    if not isinstance(found, dict):
        raise PatchError(sweep_messages.no_object(path, field))
    return found
