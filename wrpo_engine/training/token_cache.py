"""Token rows on disk, so that a resumed run does not tokenise again and all ranks train on the same tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.training.rows import TokenRow
from wrpo_engine.training.tokenize import TokenizedRows

_SCHEMA: Any = {"row_id": pl.String, "prompt": pl.List(pl.Int32), "responses": pl.List(pl.List(pl.Int32))}


def write_tokens(path: Path, tokenized: TokenizedRows) -> None:
    """Write rows and counts; the counts first, so that rows that exist are complete."""
    counts = {"num_truncated": tokenized.num_truncated, "dropped": dict(tokenized.dropped)}
    _counts_path(path).parent.mkdir(parents=True, exist_ok=True)
    _publish(_counts_path(path), lambda temporary: temporary.write_text(json.dumps(counts)))
    frame = pl.DataFrame(
        {
            "row_id": [row.row_id for row in tokenized.rows],
            "prompt": [list(row.prompt) for row in tokenized.rows],
            "responses": [[list(response) for response in row.responses] for row in tokenized.rows],
        },
        schema=_SCHEMA,
    )
    _publish(path, frame.write_parquet)


def read_tokens(path: Path) -> TokenizedRows:
    counts = json.loads(_counts_path(path).read_text())
    rows = [
        TokenRow(row_id, tuple(prompt), tuple(tuple(response) for response in responses))
        for row_id, prompt, responses in _rows(pl.read_parquet(path))
    ]
    return TokenizedRows(rows, counts["num_truncated"], Counter(counts["dropped"]))


def _rows(frame: pl.DataFrame) -> Sequence[tuple[str, list[int], list[list[int]]]]:
    return frame.select("row_id", "prompt", "responses").rows()


def _counts_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _publish(final: Path, write: Callable[[Path], object]) -> None:
    temporary = final.with_name(f".tmp-{final.name}")
    write(temporary)
    temporary.replace(final)
