"""Token rows as one Parquet file, so that a resumed run does not tokenise again and all ranks train on the same ids.

What became of the rows that are not in it stands in the file's own metadata, so that rows and counts appear together.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.data.tokenize import TokenizedRows

_METADATA_KEY = "wrpo"
_ROWS_PER_SLICE = 1024
_SCHEMA: Any = {
    "row_id": pl.String,
    "prompt": pl.List(pl.Int32),
    "responses": pl.List(pl.List(pl.Int32)),
    "prompt_has_loss": pl.Boolean,
}


def write_tokens(path: Path, tokenized: TokenizedRows) -> None:
    facts = {
        "num_truncated": tokenized.num_truncated,
        "dropped": dict(tokenized.dropped),
        "changed": dict(tokenized.changed),
        "first_changed": tokenized.first_changed,
        "num_control_text": tokenized.num_control_text,
        "details": dict(tokenized.details),
    }
    frame = pl.DataFrame(
        {
            "row_id": [row.row_id for row in tokenized.rows],
            "prompt": [list(row.prompt) for row in tokenized.rows],
            "responses": [[list(response) for response in row.responses] for row in tokenized.rows],
            "prompt_has_loss": [row.prompt_has_loss for row in tokenized.rows],
        },
        schema=_SCHEMA,
    )
    frame.write_parquet(path, metadata={_METADATA_KEY: json.dumps(facts)})


def read_tokens(path: Path) -> TokenizedRows:
    facts = json.loads(pl.read_parquet_metadata(path)[_METADATA_KEY])
    # Every rank holds all rows. An integer object takes 28 bytes beside the 8 of its place in a tuple; no more of them
    # are needed than the vocabulary has tokens, and a slice at a time keeps the others from piling up.
    known: dict[int, int] = {}

    def shared(ids: list[int]) -> tuple[int, ...]:
        return tuple(map(known.setdefault, ids, ids))

    rows = [
        TokenRow(row_id, shared(prompt), tuple(map(shared, responses)), prompt_has_loss)
        for part in pl.read_parquet(path).iter_slices(_ROWS_PER_SLICE)
        for row_id, prompt, responses, prompt_has_loss in _rows(part)
    ]
    return TokenizedRows(
        rows,
        facts["num_truncated"],
        Counter(facts["dropped"]),
        Counter(facts["changed"]),
        facts["first_changed"],
        facts["num_control_text"],
        facts["details"],
    )


def _rows(frame: pl.DataFrame) -> Sequence[tuple[str, list[int], list[list[int]], bool]]:
    return frame.select(*_SCHEMA).rows()
