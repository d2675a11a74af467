"""Row schemas of the artifacts: the columns and their content."""

from __future__ import annotations

from typing import TypeAlias

import polars as pl

Schema: TypeAlias = dict[str, pl.DataType | type[pl.DataType]]

PROMPTS = {"prompt_id": pl.String, "prompt": pl.String}
"""prompts: sft.parquet, preference.parquet, evaluation.parquet; prompt is the user's last turn; prompt_id is the
sha256 of the prompt, with a history that of the whole conversation (`text.conversations.id_of`)."""

HISTORY: Schema = {"history": pl.List(pl.Struct({"role": pl.String, "content": pl.String}))}
"""prompts, curate-sft and curate-triples: a further column. The messages before the prompt: perhaps a system message,
then turns of user and assistant; null for a prompt without any. If no prompt has a history, prompts lack the column,
and so do the rows that are made of them."""

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

BENCH_ITEMS: Schema = {
    "item_id": pl.String,
    "index": pl.Int64,
    "category": pl.String,
    "turns": pl.List(pl.String),
    "messages": pl.List(pl.Struct({"role": pl.String, "content": pl.String})),
    "temperature": pl.Float64,
}
"""bench: items.parquet. index: position in the bundle. turns: the user's turns. messages: a conversation that goes
before the first turn, empty for none. temperature: null where the benchmark does not say."""

BENCH_REFERENCES: Schema = {"item_id": pl.String, "reference_set": pl.String, "turns": pl.List(pl.String)}
"""bench: references.parquet, reference answers by turn."""

BENCH_BASELINE: Schema = {"item_id": pl.String, "generator": pl.String, "turns": pl.List(pl.String)}
"""bench: baseline.parquet, the baseline's answers by turn."""

BENCH_REGULARISER = {
    "preference": pl.Float64,
    "index": pl.Int64,
    "std_delta_len": pl.Float64,
    "instruction_difficulty": pl.Float64,
    "not_gamed_baseline": pl.Boolean,
}
"""bench: regulariser.parquet, judgements of other models that regularise AlpacaEval's length control. index: the item's
position in the bundle; std_delta_len: standardised difference of the lengths, baseline minus model."""

ANSWERS = {
    "item_id": pl.String,
    "turn": pl.Int64,
    "sample_index": pl.Int64,
    "text": pl.String,
    "num_tokens": pl.Int64,
    "finish_reason": pl.String,
    "seed": pl.Int64,
    "prompt_tokens": pl.Int64,
    "references_cut": pl.Int64,
}
"""answer, mixture and select: parts/part-NNNNN.parquet. turn counts from 0. references_cut: references that were
truncated (mixture)."""

SELECTED = {"member": pl.String, "criterion": pl.Float64, "margin": pl.Float64}
"""select: further columns. criterion: what decided, higher is better. margin: its distance to the second best one."""

PERPLEXITIES = {
    "item_id": pl.String,
    "sum_logp": pl.Float64,
    "tokens": pl.Int64,
    "bytes": pl.Int64,
    "skipped_eos": pl.Int64,
}
"""perplexity: parts. tokens: those with a log probability; bytes: of the prompt's text in UTF-8."""

RANKS = {
    "item_id": pl.String,
    "left": pl.String,
    "right": pl.String,
    "logit": pl.Float64,
    "cut_left": pl.Boolean,
    "cut_right": pl.Boolean,
}
"""rank: parts. left and right are members' roles; logit above 0: the left answer is better."""

VERDICTS = {
    "item_id": pl.String,
    "order": pl.Int64,
    "turn": pl.Int64,
    "outcome": pl.String,
    "verdict": pl.String,
    "value": pl.Float64,
    "raw": pl.String,
    "finish_reason": pl.String,
    "prompt_tokens": pl.Int64,
    "completion_tokens": pl.Int64,
    "attempts": pl.Int64,
    "latency_ms": pl.Float64,
}
"""judge: parts. outcome: ok, unparsable, refused, too_long or failed; value: null unless it is ok. raw: the replies of
all rounds as JSON."""

OUTCOMES = {"item_id": pl.String, "value": pl.Float64, "weight": pl.Float64, "valid": pl.Boolean}
"""judge: outcomes.parquet, one row an item: what a benchmark's score is made of."""

GRADES = {
    "item_id": pl.String,
    "turn": pl.Int64,
    "sample_index": pl.Int64,
    "score": pl.Float64,
    "truncated": pl.Boolean,
}
"""grade: parts, one row for each answer."""

REPRESENTED: dict[str, pl.DataType | type[pl.DataType]] = {
    "row_id": pl.String,
    "ids": pl.List(pl.Int32),
    "label_mask": pl.List(pl.Boolean),
    "starts": pl.List(pl.Int32),
    "top_ids": pl.List(pl.List(pl.Int32)),
    "top_logp": pl.List(pl.List(pl.Float16)),
    "ce_sum": pl.Float32,
    "label_tokens": pl.Int32,
    "bytes": pl.Int32,
    "dropped": pl.String,
}
"""represent: parts, one row for each row of the corpus, in its order. Lists have an entry for each token of prompt and
response (ids, label_mask), or for each label, which is a token of the response. starts: byte of the response's text at
which a label begins; -1 for a label that is no part of the text, -2 for the end of the turn. top_ids and top_logp: the
likeliest tokens for a label's position, likeliest first. ce_sum: cross-entropy of the labels in nats. bytes: of the
response's text in UTF-8. dropped: why a row is not represented, all else of it is then empty; null otherwise."""

ALIGNED: dict[str, pl.DataType | type[pl.DataType]] = {
    "row_id": pl.String,
    "target_ids": pl.List(pl.Int32),
    "fused_ids": pl.List(pl.List(pl.Int32)),
    "fused_p": pl.List(pl.List(pl.Float16)),
    "source": pl.String,
    "ce": pl.Float32,
    "one_hot_share": pl.Float32,
}
"""align: parts, one row for each represented row of the target. target_ids: the response's tokens. fused_ids and
fused_p: the distribution of each, with sum 1. source: the model whose distributions these are; with AvgCE the models
joined by +. ce: cross-entropy of that model, with AvgCE the lowest. one_hot_share: share of the tokens whose
distribution is the token itself, because no source has a distribution for the position."""
