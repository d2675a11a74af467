"""Curation artifacts as text rows, with the responses in the order of `TokenRow`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.contract.objectives import listed, objectives_of_pairs
from wrpo_engine.errors import DataError
from wrpo_engine.formats.columns import read_columns
from wrpo_engine.formats.parquet import parquet_columns
from wrpo_engine.formats.prompt_columns import history_in, prompts_in
from wrpo_engine.text import chat
from wrpo_engine.text.conversations import Prompt
from wrpo_engine.training.data.tokenize import TextRow

SFT_ROWS_FILE = "rows.parquet"
TRIPLES_FILE = "triples.parquet"


class ChatEncoder:
    """Encoder of prompts and responses with the target's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, prompt: Prompt, responses: Sequence[str]) -> chat.Conversation:
        """Return the token ids of a prompt and its responses."""
        return chat.conversation_token_ids(self._tokenizer, prompt, responses)

    def check(self, prompt_ids: list[int], response_ids: list[int], *, row: str) -> None:
        """Raise DataError naming `row` for a duplicate BOS or a number of end-of-turn tokens other than one."""
        chat.check_sequence(self._tokenizer, prompt_ids, response_ids, row=row)


def read_sft_rows(path: Path) -> list[TextRow]:
    """Return the rows of curate-sft; DataError names a missing column or value."""
    return _read(path, ["response"])


def read_triples(path: Path, *, has_source: bool) -> list[TextRow]:
    """Return the triples of curation, with y_ws only if `has_source`; DataError names a missing column or value."""
    columns = ["source_chosen", "target_chosen", "rejected"] if has_source else ["target_chosen", "rejected"]
    return _read(path, columns)


def _read(path: Path, responses: Sequence[str]) -> list[TextRow]:
    present = parquet_columns(path)
    needed = ["prompt_id", "prompt", *responses]
    absent = [name for name in needed if name not in present]
    if absent:
        raise DataError(
            f"{path} lacks the columns {', '.join(absent)}; it has {', '.join(present)}",
            code="ColumnMissing",
            hint="Use an artifact of the curate stage of this engine version.",
        )
    history = history_in(present)
    frame = read_columns([path], {**dict.fromkeys(needed, pl.String), **history}, nullable=[*needed, *history])
    incomplete = frame.filter(pl.any_horizontal(pl.col(needed).is_null()))
    if len(incomplete):
        raise DataError(
            f"{len(incomplete)} rows of {path} lack one of {', '.join(needed)}: {incomplete['prompt_id'][0]}",
            code="ValueMissing",
            field="training.objective",
            hint=f"Triples without source responses support {listed(objectives_of_pairs(), 'and')} only. Rerun "
            "curation with needs_source.",
        )
    texts = frame.select("prompt_id", *responses).rows()
    return [TextRow(row[0], prompt, tuple(row[1:])) for row, prompt in zip(texts, prompts_in(frame), strict=True)]
