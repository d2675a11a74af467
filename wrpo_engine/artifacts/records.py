"""Row schemas of the artifacts: the columns and their content."""

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
"""scores: parts/part-NNNNN.parquet, one row for each response; truncated: the reward model read only a part of it."""

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

TRIPLE_ORIGINS = {
    "target_source": pl.String,
    "rejected_source": pl.String,
    "source_truncated": pl.Boolean,
    "target_truncated": pl.Boolean,
    "rejected_truncated": pl.Boolean,
}
"""curate-triples: further columns of triples.parquet. Who gave target_chosen and rejected (`target` except for pairs),
and whether each response hit max_tokens. Null where it is not known, for example in rows of other projects."""

ATTRIBUTION = {
    "cluster": pl.String,
    "min_chars": pl.Int64,
    "max_chars": pl.Int64,
    "source": pl.String,
    "chosen": pl.Int64,
    "share": pl.Float64,
    "above": pl.Int64,
    "mean_gain": pl.Float64,
    "median_gain": pl.Float64,
}
"""Both curations: attribution.parquet. One row for each model and cluster of prompts: `all`, then quartiles of the
prompt's length in characters. chosen: rows whose preferred response (y_ws; for pairs, the chosen one) the model gave.
gain: its score less that of y_wt (for pairs, of the rejected one), null for SFT. above: rows with a positive gain."""
