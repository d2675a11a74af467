"""Maximum depth of a spec: the API server stores free-form fields (podTemplate, engineArgs) at any depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_DEPTH = 64
"""Levels of objects and lists. A pod template has about twelve."""
NAMED_DEPTH = 3
"""Levels of the path in a message."""


def too_deep(raw: object, name: str) -> str:
    """Return the path of a part that nests too deep, up to its first fields; empty if there is none."""
    parts: list[tuple[object, int, str]] = [(raw, 0, name)]
    while parts:
        part, depth, path = parts.pop()
        if depth > MAX_DEPTH:
            return path
        inner: Iterable[tuple[object, object]] = ()
        if isinstance(part, Mapping):
            inner = part.items()
        elif isinstance(part, list):
            inner = enumerate(part)
        parts += [
            (value, depth + 1, f"{path}.{field}" if depth < NAMED_DEPTH else path)
            for field, value in inner
            if isinstance(value, dict | list)
        ]
    return ""
