"""Names and lines of the original tools' files."""

from __future__ import annotations

import json
from typing import Any

from wrpo_engine.prompts.split import is_unicode


def file_name(name: str) -> str:
    """Return a model's name as part of a file name."""
    return name.replace("/", "--")


def question_id(item_id: str) -> int | str:
    """Return an item's id as FastChat has it: a number if it is written as one."""
    return int(item_id) if item_id.isascii() and item_id.isdigit() and str(int(item_id)) == item_id else item_id


def json_line(row: dict[str, Any]) -> str:
    """Return an object as a line of JSON that UTF-8 can hold."""
    return json_text(row) + "\n"


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON that UTF-8 can hold: texts with halves of surrogate pairs are written with escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    return text if is_unicode(text) else json.dumps(value, indent=indent, allow_nan=False)
