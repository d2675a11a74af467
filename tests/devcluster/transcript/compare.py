"""Comparison of two records of the same requests: python compare.py REAL.json OURS.json [NAME-PART ...]

Compared: HTTP status, Status reason, the causes' field and reason, table columns and cells, types of watch events,
object content including managedFields. Not compared: message texts, headers, objects inside watch events.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
_IGNORED = {"message", "annotations", "apiUpdateTimestamp"}


def _causes(body: Any) -> list[tuple[str, str]]:
    found = (body.get("details") or {}).get("causes", [])
    return sorted((cause.get("reason", ""), cause.get("field", "")) for cause in found)


def _short(value: Any) -> str:
    return json.dumps(value)[:80]


def _walk(real: Any, ours: Any, path: str = "") -> Iterator[str]:
    if isinstance(real, dict) and isinstance(ours, dict):
        for key in sorted((real.keys() | ours.keys()) - _IGNORED):
            if key not in real:
                yield f"{path}.{key}: only ours has {_short(ours[key])}"
            elif key not in ours:
                yield f"{path}.{key}: ours lacks {_short(real[key])}"
            else:
                yield from _walk(real[key], ours[key], f"{path}.{key}")
    elif isinstance(real, list) and isinstance(ours, list):
        if len(real) != len(ours):
            yield f"{path}: {len(real)} items, ours {len(ours)}"
        for index, (one, other) in enumerate(zip(real, ours, strict=False)):
            yield from _walk(one, other, f"{path}[{index}]")
    elif real != ours:
        yield f"{path}: {_short(real)}, ours {_short(ours)}"


def _types(events: Any) -> Any:
    return [event.get("type") for event in events] if isinstance(events, list) else events


def differences(real: Entry, ours: Entry) -> Iterator[str]:
    """Return the differences between two replies to the same request."""
    if real["status"] != ours["status"]:
        yield f"HTTP {real['status']}, ours {ours['status']}"
        return
    expected, got = real["body"], ours["body"]
    if isinstance(expected, dict) and expected.get("kind") == "Status" and expected.get("status") == "Failure":
        if not isinstance(got, dict):
            yield "a Status object, ours not"
            return
        if expected.get("reason") != got.get("reason"):
            yield f"reason {expected.get('reason')}, ours {got.get('reason')}"
        if _causes(expected) != _causes(got):
            yield f"causes {_causes(expected)}, ours {_causes(got)}"
        return
    if isinstance(expected, list):
        if _types(expected) != _types(got):
            yield f"events {_types(expected)}, ours {_types(got)}"
        return
    if real.get("same_resource_version") != ours.get("same_resource_version"):
        yield "resourceVersion stability differs"
    yield from _walk(expected, got)


def load(path: Path) -> dict[str, Entry]:
    return {entry["name"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))}


def compare(real: dict[str, Entry], ours: dict[str, Entry]) -> dict[str, list[str]]:
    """Return the differences by entry name, without equal entries."""
    found = {
        name: list(differences(entry, ours[name])) if name in ours else ["not recorded"] for name, entry in real.items()
    }
    return {name: lines for name, lines in found.items() if lines}


def main() -> None:
    real, ours = (load(Path(argument)) for argument in sys.argv[1:3])
    parts = sys.argv[3:]
    wanted = {name: entry for name, entry in real.items() if not parts or any(part in name for part in parts)}
    found = compare(wanted, ours)
    for name, lines in found.items():
        print(f"- {name}")
        for line in lines[:6]:
            print(f"    {line}")
        if len(lines) > 6:
            print(f"    and {len(lines) - 6} more")
    print(f"{len(wanted) - len(found)} of {len(wanted)} equal")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
