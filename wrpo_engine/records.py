"""Row schemas of the artifacts: one place that says which columns exist and what they hold."""

from __future__ import annotations

import polars as pl

PROMPTS = {"prompt_id": pl.String, "prompt": pl.String}
"""prompts: sft.parquet, preference.parquet, evaluation.parquet; prompt_id is the sha256 of the prompt."""

SAMPLES = {
    "prompt_id": pl.String,
    "source": pl.String,
    "sample_index": pl.Int64,
    "text": pl.String,
    "num_tokens": pl.Int64,
    "finish_reason": pl.String,
    "seed": pl.Int64,
}
"""samples: parts/part-NNNNN.parquet."""

SCORES = {
    "prompt_id": pl.String,
    "source": pl.String,
    "sample_index": pl.Int64,
    "score": pl.Float64,
    "truncated": pl.Boolean,
}
"""scores: parts/part-NNNNN.parquet, one row for each answer; truncated: the reward model read only a part of it."""

SFT_ROWS = {
    "prompt_id": pl.String,
    "prompt": pl.String,
    "response": pl.String,
    "source": pl.String,
    "score": pl.Float64,
}
"""curate-sft: rows.parquet."""

TRIPLES = {
    "prompt_id": pl.String,
    "prompt": pl.String,
    "source_chosen": pl.String,
    "target_chosen": pl.String,
    "rejected": pl.String,
    "source": pl.String,
    "source_score": pl.Float64,
    "target_score": pl.Float64,
    "rejected_score": pl.Float64,
}
"""curate-triples: triples.parquet; the three source columns are null for objectives without a source."""
