"""Counts of responses, as each stage reports them whose models respond."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from wrpo_engine.sampling.sampler import FinishReason


@dataclass(slots=True)
class ResponseCounts:
    """Sums over the parts of an artifact."""

    given: int = 0
    tokens: int = 0
    truncated: int = 0
    """Responses that hit max_tokens or the context."""
    empty: int = 0
    """Responses without any character but white space."""
    skipped: int = 0
    """Rows of prompts that were too long, which have no response."""

    def add(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Count the rows of a part; return those with a response."""
        given = frame.filter(pl.col("finish_reason") != FinishReason.PROMPT_TOO_LONG.value)
        self.given += given.height
        self.skipped += frame.height - given.height
        self.tokens += int(given["num_tokens"].sum())
        self.truncated += int((given["finish_reason"] == FinishReason.LENGTH.value).sum())
        self.empty += int((given["text"].str.strip_chars() == "").sum())
        return given

    def metrics(self, name: str) -> dict[str, float]:
        """Return the metrics; `name` is that of the number of responses."""
        return {
            name: float(self.given),
            "tokens": float(self.tokens),
            "mean_tokens": self.tokens / self.given if self.given else 0.0,
            "truncated": float(self.truncated),
            "empty": float(self.empty),
            "skipped_prompt_too_long": float(self.skipped),
        }
