"""Token cache: token rows in one Parquet file.

A resumed run does not tokenise again, and all ranks train on the same ids. The file's metadata contains the counts of
dropped and changed rows, so that rows and counts are published together.
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
    """Write rows and counts to a Parquet file."""
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
    """Return rows and counts of a file that `write_tokens` wrote."""
    facts = json.loads(pl.read_parquet_metadata(path)[_METADATA_KEY])
    # Every rank holds all rows. An integer object takes 28 bytes in addition to the 8 of its slot in a tuple. Sharing
    # the objects limits them to the size of the vocabulary, and reading slices limits the temporary ones.
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
