"""JSON of the API server -> Python, whatever a server can store.

Python's own reader recurses with the nesting of the text and ends in RecursionError at a depth that depends on the
caller; so does much of what handles the result. Here the depth is bounded: what nests deeper than MAX_DEPTH is
replaced by null. `parse_spec` refuses specs long before that depth, so nothing is lost that could be used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

MAX_DEPTH = 150
"""Below the bound of `from_json` (200); a spec begins at depth 4 of a list."""
MAX_DIGITS = 400
"""Longer integers exceed every number that JSON readers agree on."""
OPENING, CLOSING = b"[{", b"]}"
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class UndecodableError(ValueError):
    """Bytes that are no JSON at all."""


def decode(data: bytes, on_cut: Callable[[], None] = lambda: None) -> Any:
    """Return the value of a JSON text of any depth; UndecodableError if it is no JSON.

    `on_cut` is called for each part that nested too deep and was left out.
    """
    return decode_exactly(data, on_cut)[0]


def decode_exactly(data: bytes, on_cut: Callable[[], None] = lambda: None) -> tuple[Any, bool]:
    """Return the same, and whether it is all that the text says: then any JSON reader takes the text."""
    try:
        return from_json(data), True
    except ValueError:
        pass
    try:
        value = json.loads(cut_depth(data, on_cut=on_cut), parse_int=_integer)
        # Half of a surrogate pair is no character: nothing could send it on.
        return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")), False
    except ValueError as error:
        raise UndecodableError(f"not JSON: {error}") from error


def is_object(value: Any) -> bool:
    """Whether a decoded value can be an object of the API."""
    return isinstance(value, dict) and isinstance(value.get("metadata"), dict)


def objects_in(answer: Any, on_cut: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Return the objects of a list; `on_cut` is called for each item that is none."""
    items = answer.get("items") if isinstance(answer, dict) else None
    found = [item for item in items if is_object(item)] if isinstance(items, list) else []
    for _ in range(len(items) - len(found) if isinstance(items, list) else 0):
        on_cut()
    return found


def encode(value: Any) -> bytes:
    """Return JSON in UTF-8 without escapes of characters: a YAML reader refuses those of surrogate pairs."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def cut_depth(data: bytes, limit: int = MAX_DEPTH, *, on_cut: Callable[[], None] = lambda: None) -> bytes:
    """Replace what nests deeper than `limit` by null. Reads the text once, without recursion."""
    kept: list[bytes] = []
    depth, begin = 0, 0
    for token in _TOKENS.finditer(data):
        bracket = data[token.start()]
        if bracket in OPENING:
            depth += 1
            if depth == limit + 1:
                kept += (data[begin : token.start()], b"null")
                on_cut()
        elif bracket in CLOSING:
            depth -= 1
            if depth == limit:
                begin = token.end()
    if depth <= limit:
        kept.append(data[begin:])
    return b"".join(kept)


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= MAX_DIGITS else float(text)
