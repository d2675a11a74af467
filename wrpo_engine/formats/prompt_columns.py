"""Columns of prompts, and their history where the artifact has that column."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.formats.columns import Schema, read_columns
from wrpo_engine.formats.parquet import parquet_columns
from wrpo_engine.text.conversations import Prompt, prompt_of

HISTORY = "history"


def history_in(columns: Collection[str]) -> Schema:
    """Return the schema of the history if it is among the columns; an empty one otherwise."""
    return records.HISTORY if HISTORY in columns else {}


def read_prompts(paths: Sequence[Path]) -> pl.DataFrame:
    """Return (prompt_id, prompt) of all files in their order, with `history` if they have that column.

    DataError as for `read_columns`.
    """
    history = history_in({name for path in paths for name in parquet_columns(path)})
    return read_columns(paths, {**records.PROMPTS, **history}, nullable=list(history))


def prompts_in(frame: pl.DataFrame) -> list[Prompt]:
    """Return the prompt of each row, with its history."""
    if HISTORY not in frame.columns:
        return frame["prompt"].to_list()
    return [prompt_of(text, history) for text, history in frame.select("prompt", HISTORY).iter_rows()]


def whole_prompt(columns: Collection[str]) -> pl.Expr:
    """Return the text by which prompts are compared: the prompt, after the messages of its history if it has any."""
    prompt = pl.col("prompt")
    if HISTORY not in columns:
        return prompt
    message = pl.format("{}\x1f{}\x1e", pl.element().struct.field("role"), pl.element().struct.field("content"))
    return (pl.col(HISTORY).list.eval(message).list.join("").fill_null("") + prompt).alias("prompt")
