"""JSONPath of printer columns: fields, indexes, wildcards and simple filters."""

from __future__ import annotations

import re
from typing import Any

_STEP = re.compile(
    r"\.(?P<field>[A-Za-z0-9_-]+|\*)"
    r"|\[(?P<index>-?\d+|\*)\]"
    r"|\['(?P<quoted>(?:[^'\\]|\\.)+)'\]"
    r"|\[\?\(@\.(?P<path>[A-Za-z0-9_.-]+)\s*(?P<op>==|!=)\s*(?P<value>\"[^\"]*\"|'[^']*'|[^)]+)\)\]"
    r"|\.(?P<escaped>(?:[A-Za-z0-9_/-]|\\\.)+)"
)


def find(path: str, obj: Any) -> list[Any]:
    """Return every value at `path`, an expression such as `.status.conditions[?(@.type=="Ready")].status`."""
    found = [obj]
    at = 0
    while at < len(path):
        match = _escaped(path, at) or _STEP.match(path, at)
        if match is None:
            return []
        found = [item for value in found for item in _step(match, value)]
        at = match.end()
    return found


def _escaped(path: str, at: int) -> re.Match[str] | None:
    r"""Return a field with escaped dots, e.g. `.metadata.labels.app\.kubernetes\.io/name`."""
    match = re.compile(r"\.(?P<escaped>(?:[A-Za-z0-9_/-]|\\\.)+)").match(path, at)
    return match if match and "\\" in match.group("escaped") else None


def first(path: str, obj: Any) -> Any:
    """Return the first value at `path`; None if there is none."""
    found = find(path, obj)
    return found[0] if found else None


def _step(match: re.Match[str], value: Any) -> list[Any]:
    groups = match.groupdict()
    name = groups.get("field") or groups.get("quoted") or groups.get("escaped")
    if name is not None:
        name = re.sub(r"\\(.)", r"\1", name)
        if name == "*":
            return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []
        return [value[name]] if isinstance(value, dict) and name in value else []
    if not isinstance(value, list):
        return []
    if groups.get("index") is not None:
        if groups["index"] == "*":
            return list(value)
        index = int(groups["index"])
        return [value[index]] if -len(value) <= index < len(value) else []
    wanted = str(groups["value"]).strip("\"' ")
    equal = groups["op"] == "=="
    return [item for item in value if (_text(first("." + str(groups["path"]), item)) == wanted) is equal]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
