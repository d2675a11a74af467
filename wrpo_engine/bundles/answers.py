"""Reader of a system's answers to a benchmark: those of one model, of a mixture, or of a selection."""

from __future__ import annotations

import polars as pl

from wrpo_engine.artifacts import Artifact, records
from wrpo_engine.formats.columns import read_batches


def read_answers(artifact: Artifact) -> pl.DataFrame:
    """Return all answers of an artifact (see `records.ANSWERS`), in its order; DataError names a damaged part."""
    frames = list(read_batches(artifact, dict(records.ANSWERS)))
    return pl.concat(frames) if frames else pl.DataFrame(schema=dict(records.ANSWERS))


def texts_by_item(frame: pl.DataFrame, sample_index: int = 0) -> dict[str, tuple[str, ...]]:
    """Return item id -> the texts of its turns, in the order of the turns, of one sample of each item."""
    one = frame.filter(pl.col("sample_index") == sample_index).sort("turn", maintain_order=True)
    turns = one.group_by("item_id", maintain_order=True).agg("text")
    return {item: tuple(texts) for item, texts in zip(turns["item_id"], turns["text"].to_list(), strict=True)}
