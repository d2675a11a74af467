"""Rows of a represent artifact: tokenised for one model, then with the likeliest tokens for each label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.fusing.tokens import Vocabulary, label_starts
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.data.tokenize import Encoder, TextRow, tokenize_rows

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Limits:
    """The longest rows that a model is given."""

    max_length: int
    max_prompt_length: int
    context: int | None = None
    """Rows that exceed it are left out, not truncated."""


@dataclass(frozen=True)
class CorpusRow:
    """One row of the corpus for one model."""

    row_id: str
    tokens: TokenRow | None
    """None: it is not represented."""
    dropped: str | None
    starts: tuple[int, ...] | None
    """Of the labels in the text; None if the tokens do not give the text."""
    num_bytes: int


@dataclass(frozen=True)
class Top:
    """The likeliest tokens of one row's T labels."""

    ids_TK: Array
    logps_TK: Array
    labels_T: Array
    """Log-probability of each label itself, in nats."""


def corpus_row(row: TextRow, encoder: Encoder, vocabulary: Vocabulary, limits: Limits) -> CorpusRow:
    """Return a row of the corpus as a model reads it, or why it does not."""
    tokenized = tokenize_rows([row], encoder, limits)
    (response,) = row.responses
    num_bytes = len(response.encode())
    if not tokenized.rows:
        return CorpusRow(row.row_id, None, next(iter(tokenized.dropped)), None, num_bytes)
    (tokens,) = tokenized.rows
    if limits.context is not None and tokens.num_tokens > limits.context:
        return CorpusRow(row.row_id, None, "longer than the model's context", None, num_bytes)
    starts = label_starts(vocabulary, tokens.responses[0], response) if vocabulary.has_bytes else None
    return CorpusRow(row.row_id, tokens, None, None if starts is None else tuple(starts), num_bytes)


def represented_frame(rows: Sequence[CorpusRow], tops: Iterable[Top | None]) -> pl.DataFrame:
    """Return the part of the artifact with these rows; a row that is not represented has no top."""
    return pl.DataFrame(
        [_values(row, top) for row, top in zip(rows, tops, strict=True)], schema=records.REPRESENTED, orient="row"
    )


def _values(row: CorpusRow, top: Top | None) -> tuple[Any, ...]:
    if row.tokens is None or top is None:
        return row.row_id, [], [], [], [], [], 0.0, 0, 0, row.dropped
    prompt, (response,) = row.tokens.prompt, row.tokens.responses
    logps_TK = top.logps_TK.astype(np.float16).astype(np.float32)
    # A backend may give fewer tokens than asked for, and float16 has no numbers for the least likely ones.
    is_kept_TK = np.isfinite(logps_TK)
    return (
        row.row_id,
        [*prompt, *response],
        [False] * len(prompt) + [True] * len(response),
        list(row.starts or ()),
        [ids[kept].tolist() for ids, kept in zip(top.ids_TK, is_kept_TK, strict=True)],
        [logps[kept].tolist() for logps, kept in zip(logps_TK, is_kept_TK, strict=True)],
        float(-top.labels_T.astype(np.float64).sum()),
        len(response),
        row.num_bytes,
        None,
    )
