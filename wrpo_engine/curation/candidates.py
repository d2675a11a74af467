"""Which answers may be chosen, and the best of them: one order decides every tie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from wrpo_engine.sampling.sampler import FinishReason

CANDIDATE = ["prompt_id", "source", "sample_index", "text", "score"]
_ANSWER = ["prompt_id", "source", "sample_index"]


def eligible(samples: pl.DataFrame, scores: pl.DataFrame, *, drop_truncated: bool) -> pl.DataFrame:
    """Return the answers that may be chosen, with their scores; empty ones never are."""
    kept = samples.filter(
        (pl.col("finish_reason") != FinishReason.PROMPT_TOO_LONG.value) & (pl.col("text").str.strip_chars() != "")
    )
    if drop_truncated:
        kept = kept.filter(pl.col("finish_reason") != FinishReason.LENGTH.value)
    return kept.join(scores.select(*_ANSWER, "score"), on=_ANSWER, how="inner").select(CANDIDATE)


def left_out(samples: pl.DataFrame, *, drop_truncated: bool) -> dict[str, float]:
    """Count the answers that may not be chosen, by reason."""
    too_long = pl.col("finish_reason") == FinishReason.PROMPT_TOO_LONG.value
    empty = ~too_long & (pl.col("text").str.strip_chars() == "")
    truncated = ~too_long & ~empty & (pl.col("finish_reason") == FinishReason.LENGTH.value)
    counts = samples.select(
        responses_prompt_too_long=too_long.sum(), responses_empty=empty.sum(), responses_truncated=truncated.sum()
    ).row(0, named=True)
    if not drop_truncated:
        counts.pop("responses_truncated")
    return {name: float(count) for name, count in counts.items() if count}


def best(candidates: pl.DataFrame) -> pl.DataFrame:
    """Return the best answer to each prompt: highest score, then source name, then sample index."""
    ordered = candidates.sort(["score", "source", "sample_index"], descending=[True, False, False], maintain_order=True)
    return ordered.unique("prompt_id", keep="first", maintain_order=True)


def attribution(chosen: pl.DataFrame, sources: Sequence[str]) -> dict[str, float]:
    """Count how many prompts each source's answer won, and its share; sources that won none are listed too."""
    counts: Mapping[str, int] = dict(chosen.group_by("source").len().iter_rows())
    total = max(chosen.height, 1)
    wins = {f"chosen_{source}": float(counts.get(source, 0)) for source in sources}
    return wins | {f"share_{source}": counts.get(source, 0) / total for source in sources}
