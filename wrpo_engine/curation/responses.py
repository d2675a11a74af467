"""Index of all responses by ids, score and position, without their texts, so that memory stays small.

The texts are read twice: once to find empty and equal responses, once for the chosen ones. At most a batch of parts
is in memory. Memory grows by some 40 bytes with each response and by the chosen texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from wrpo_engine.artifacts import Artifact
from wrpo_engine.errors import DataError
from wrpo_engine.formats.columns import batches_of, read_columns
from wrpo_engine.sampling.sampler import FinishReason

CANDIDATES = {
    "prompt": pl.UInt32,
    "model": pl.UInt16,
    "sample_index": pl.Int64,
    "score": pl.Float64,
    "key": pl.UInt64,
    "truncated": pl.Boolean,
    "batch": pl.UInt32,
    "row": pl.UInt32,
}
"""prompt: position in the prompts artifact. model: position among the models' sorted names. key: hash of the text (two
of a prompt's few texts collide with a probability below 1e-15). batch and row: the position of the text."""

_READ = {
    "prompt_id": pl.String,
    "sample_index": pl.Int64,
    "text": pl.String,
    "num_tokens": pl.Int64,
    "finish_reason": pl.String,
}
PLACE = ["model", "batch", "row"]


@dataclass(frozen=True, kw_only=True)
class Eligibility:
    """Which responses may be chosen; empty ones and prompts without a response never are."""

    drop_truncated: bool = False
    max_response_tokens: int | None = None


def read_responses(
    samples: Artifact, index: pl.DataFrame, *, model: int, on_batch: Callable[[], None] = lambda: None
) -> pl.DataFrame:
    """Return all responses to the prompts of `index` (prompt_id, prompt): CANDIDATES without score, num_tokens, empty.

    Order and number of the parts have no influence on what follows, as (prompt, sample_index) must be unique.
    """
    frames: list[pl.DataFrame] = []
    for number, names in enumerate(batches_of(samples)):
        frame = read_columns(samples.fetch_all(names), _READ).with_row_index("row")
        frames.append(
            frame.with_columns(key=pl.col("text").hash(), empty=pl.col("text").str.strip_chars() == "")
            .drop("text")
            .join(index, on="prompt_id", how="inner")
            .select(
                "prompt",
                pl.lit(model, pl.UInt16).alias("model"),
                "sample_index",
                "key",
                pl.col("row").cast(pl.UInt32),
                pl.lit(number, pl.UInt32).alias("batch"),
                "num_tokens",
                "empty",
                (pl.col("finish_reason") == FinishReason.LENGTH.value).alias("truncated"),
                (pl.col("finish_reason") == FinishReason.PROMPT_TOO_LONG.value).alias("too_long"),
            )
        )
        on_batch()
    if not frames:
        raise DataError(f"artifact {samples.ref.stage} has no parts", code="ArtifactDamaged", hint="Sample again.")
    rows = pl.concat(frames)
    twice = rows.filter(pl.struct("prompt", "sample_index").is_duplicated())
    if twice.height:
        prompt_id = index.filter(pl.col("prompt") == twice["prompt"][0])["prompt_id"][0]
        raise DataError(
            f"{samples.ref.stage} has two responses to prompt {prompt_id} with sample_index {twice['sample_index'][0]}",
            code="DuplicateAnswer",
            hint="Remove the artifact; the stage that made it runs again.",
        )
    return rows


def eligible(responses: pl.DataFrame, rules: Eligibility, counts: dict[str, float]) -> pl.DataFrame:
    """Return the CANDIDATES among scored responses; adds to `counts` how many were left out, each for one reason."""
    limit = rules.max_response_tokens
    reasons = {
        "responses_empty": pl.col("empty"),
        "responses_truncated": pl.col("truncated") if rules.drop_truncated else pl.lit(value=False),
        "responses_too_many_tokens": pl.col("num_tokens") > limit if limit is not None else pl.lit(value=False),
    }
    kept = responses
    for name, condition in reasons.items():
        left = kept.filter(~condition)
        if left.height < kept.height:
            counts[name] = counts.get(name, 0.0) + kept.height - left.height
        kept = left
    return kept.select(pl.col(name).cast(kind) for name, kind in CANDIDATES.items())


def read_texts(places: pl.DataFrame, samples: Mapping[int, Artifact], on_batch: Callable[[], None]) -> pl.DataFrame:
    """Return (model, batch, row, text) of these places (model, batch, row), reading each batch once."""
    frames = [pl.DataFrame(schema={"model": pl.UInt16, "batch": pl.UInt32, "row": pl.UInt32, "text": pl.String})]
    for model, artifact in samples.items():
        batches = batches_of(artifact)
        wanted = places.filter(pl.col("model") == model).unique().sort("batch", "row")
        for (number,), rows in wanted.group_by("batch", maintain_order=True):
            paths = artifact.fetch_all(batches[int(number)])
            texts = read_columns(paths, {"text": pl.String})["text"].gather(rows["row"])
            frames.append(rows.select(PLACE).with_columns(text=_compact(texts)))
            on_batch()
    return pl.concat(frames)


def _compact(texts: pl.Series) -> pl.Series:
    """Copy the texts: gathered ones share the buffers of all they were gathered from, and would keep them in memory."""
    return pl.Series(texts.to_arrow(compat_level=pl.CompatLevel.oldest()), dtype=pl.String)


def prompt_index(prompt_ids: Sequence[str] | pl.Series) -> pl.DataFrame:
    """Return (prompt_id, prompt): the position of each id; DataError if one occurs twice."""
    frame = pl.DataFrame({"prompt_id": prompt_ids}, schema={"prompt_id": pl.String}).with_row_index("prompt")
    twice = frame.filter(pl.col("prompt_id").is_duplicated())
    if twice.height:
        raise DataError(
            f"the prompts artifact holds prompt_id {twice['prompt_id'][0]} {twice.height} times or more",
            code="DuplicatePrompt",
            hint="Remove the artifact; the prepare stage recreates it.",
        )
    return frame.select("prompt_id", pl.col("prompt").cast(pl.UInt32))
