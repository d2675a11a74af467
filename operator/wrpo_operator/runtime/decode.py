"""Decoding of JSON that the API server can store, with bounded depth.

Python's reader recurses with the nesting of the text and raises RecursionError at a depth that depends on the caller,
as does code that processes the result. This module replaces values that nest deeper than MAX_DEPTH by null.
`parse_spec` refuses specs at a much smaller depth, so no usable data is lost.
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
"""Longer integers exceed the range of numbers on which JSON readers agree."""
OPENING, CLOSING = b"[{", b"]}"
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class UndecodableError(ValueError):
    """Bytes that are not JSON."""


def decode(data: bytes, on_cut: Callable[[], None] = lambda: None) -> Any:
    """Return the value of a JSON text of any depth; UndecodableError if it is not JSON.

    `on_cut` is called for each part that nests too deep and is dropped.
    """
    return decode_exactly(data, on_cut)[0]


def decode_exactly(data: bytes, on_cut: Callable[[], None] = lambda: None) -> tuple[Any, bool]:
    """Return the value, and whether it is complete; every JSON reader accepts the text of a complete value."""
    try:
        return from_json(data), True
    except ValueError:
        pass
    try:
        value = json.loads(cut_depth(data, on_cut=on_cut), parse_int=_integer)
        # Half of a surrogate pair is not a character and could not be encoded.
        return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")), False
    except ValueError as error:
        raise UndecodableError(f"not JSON: {error}") from error


def is_object(value: Any) -> bool:
    """Return whether a decoded value can be an API object."""
    return isinstance(value, dict) and isinstance(value.get("metadata"), dict)


def objects_in(answer: Any, on_cut: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Return the objects of a list; `on_cut` is called for each item that is not an object."""
    items = answer.get("items") if isinstance(answer, dict) else None
    found = [item for item in items if is_object(item)] if isinstance(items, list) else []
    for _ in range(len(items) - len(found) if isinstance(items, list) else 0):
        on_cut()
    return found


def encode(value: Any) -> bytes:
    """Return JSON in UTF-8 without escapes, because YAML readers refuse escaped surrogate pairs."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def cut_depth(data: bytes, limit: int = MAX_DEPTH, *, on_cut: Callable[[], None] = lambda: None) -> bytes:
    """Replace values that nest deeper than `limit` by null, in one pass without recursion."""
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
