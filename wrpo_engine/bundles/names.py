"""Names and lines of the original tools' files."""

from __future__ import annotations

import json
from typing import Any


def file_name(name: str) -> str:
    """Return a model's name as part of a file name."""
    return name.replace("/", "--")


def question_id(item_id: str) -> int | str:
    """Return an item's id as FastChat has it: a number if it is written as one."""
    return int(item_id) if item_id.isascii() and item_id.isdigit() and str(int(item_id)) == item_id else item_id


def json_line(row: dict[str, Any]) -> str:
    """Return an object as a line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"
