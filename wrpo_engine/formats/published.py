"""The row format of the published data sets of arXiv:2412.03187."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.formats.prompt_columns import history_in

_SLICE_ROWS = 2048


def published_row(row: Mapping[str, Any], *, has_history: bool = False) -> dict[str, Any]:
    """Return a triple in the published format: `chosen` is [y_ws, y_wt], or [y_wt] alone.

    `prompt` is the user's message; with `has_history` a list of messages, in each row of a file, as tables need.
    """
    message = {"role": "user", "content": row["prompt"]}
    chosen = [text for text in (row["source_chosen"], row["target_chosen"]) if text is not None]
    return {
        "prompt_id": row["prompt_id"],
        "prompt": [*(row["history"] or ()), message] if has_history else message,
        "chosen": [{"role": "assistant", "content": text} for text in chosen],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


def write_published(table: pl.DataFrame, path: Path) -> None:
    """Write JSON lines, a few rows at a time: the table's texts are not copied as a whole."""
    has_history = bool(history_in(table.columns))
    columns = ["prompt_id", "prompt", "source_chosen", "target_chosen", "rejected", *history_in(table.columns)]
    with path.open("w", encoding="utf-8") as file:
        for part in table.select(columns).iter_slices(_SLICE_ROWS):
            rows = (published_row(row, has_history=has_history) for row in part.to_dicts())
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
