"""Values and names of user data in messages: on one line, of bounded length."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

_MAX_CHARS = 60
_MAX_NAMES = 20


def shown(value: Any) -> str:
    """Return a value as a message quotes it, in one line: texts with quotes, lists and objects by their size.

    A list may be as deep as JSON allows: its content is not read.
    """
    if isinstance(value, str):
        return repr(value if len(value) <= _MAX_CHARS else f"{value[: _MAX_CHARS - 1]}…")
    if value is None:
        return "null"
    if isinstance(value, dict):
        return f"an object with {names(value) or 'no keys'}"
    if isinstance(value, list | tuple):
        return _counted(value, "value")
    if isinstance(value, bytes):
        return _counted(value, "byte")
    # A number of five thousand digits has no decimal text in Python.
    text = hex(value) if isinstance(value, int) and value.bit_length() > 1000 else str(value)
    return f"{text[:_MAX_CHARS]} ({type(value).__name__})"


def _counted(values: Sized, unit: str) -> str:
    return f"a list of {len(values)} {unit}{'' if len(values) == 1 else 's'}"


def names(columns: Iterable[Any]) -> str:
    """Return the names of columns or files, the first twenty of them; empty if there are none."""
    found = [str(name) for name in columns]
    listed = [name if len(name) <= _MAX_CHARS else f"{name[: _MAX_CHARS - 1]}…" for name in found[:_MAX_NAMES]]
    return ", ".join(listed) + (f" and {len(found) - _MAX_NAMES} more" if len(found) > _MAX_NAMES else "")
