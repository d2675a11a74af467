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

from wrpo_engine.training.rows import TokenRow
from wrpo_engine.training.tokenize import TokenizedRows

_METADATA_KEY = "wrpo"
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
    rows = [
        TokenRow(row_id, tuple(prompt), tuple(tuple(response) for response in responses), prompt_has_loss)
        for row_id, prompt, responses, prompt_has_loss in _rows(pl.read_parquet(path))
    ]
    return TokenizedRows(rows, facts["num_truncated"], Counter(facts["dropped"]), facts["details"])


def _rows(frame: pl.DataFrame) -> Sequence[tuple[str, list[int], list[list[int]], bool]]:
    return frame.select(*_SCHEMA).rows()
