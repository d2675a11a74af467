"""Metrics and native files of a system's answers, made when all parts are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import polars as pl

from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.bundles.native import native_answers
from wrpo_engine.contract.benchmarks import Protocol
from wrpo_engine.sampling.sampler import FinishReason
from wrpo_engine.stage import StageContext

NATIVE = "native/"
"""Directory, in the artifact, of the files that the benchmark's own tools read."""


@dataclass
class Measured:
    """Reads the parts one by one, and keeps of them what native files need: the first sample's answers."""

    ctx: StageContext
    protocol: Protocol | None
    """Of the benchmark, if it is one whose own tools have files of answers."""
    items: Sequence[BenchItem]
    system: str
    _texts: dict[str, list[str]] = field(default_factory=dict)
    _tokens: dict[str, list[int]] = field(default_factory=dict)

    def measure(self, parts: Iterable[pl.DataFrame]) -> dict[str, float]:
        """Return the metrics of a whole artifact.

        truncated: answers that hit max_tokens or the context. empty: without any character but white space; they are
        kept. skipped_prompt_too_long: answers that are left out. references_cut: references that were truncated.
        """
        answers = tokens = truncated = empty = skipped = cut = 0
        for frame in parts:
            self._keep(frame)
            given = frame.filter(pl.col("finish_reason") != FinishReason.PROMPT_TOO_LONG.value)
            answers, skipped = answers + given.height, skipped + frame.height - given.height
            tokens += int(given["num_tokens"].sum())
            truncated += int((given["finish_reason"] == FinishReason.LENGTH.value).sum())
            empty += int((given["text"].str.strip_chars() == "").sum())
            cut += int(given["references_cut"].sum())
        return {
            "answers": float(answers),
            "tokens": float(tokens),
            "mean_tokens": tokens / answers if answers else 0.0,
            "truncated": float(truncated),
            "empty": float(empty),
            "skipped_prompt_too_long": float(skipped),
            "references_cut": float(cut),
        }

    def _keep(self, frame: pl.DataFrame) -> None:
        if self.protocol is None:
            return
        first = frame.filter(pl.col("sample_index") == 0).sort("turn", maintain_order=True)
        for item, text, count in first.select("item_id", "text", "num_tokens").iter_rows():
            self._texts.setdefault(item, []).append(text)
            self._tokens.setdefault(item, []).append(count)

    def publish_native(self) -> list[str]:
        """Publish the files of the benchmark's own tools; return their names."""
        if self.protocol is None:
            return []
        files = native_answers(self.protocol, self.items, self._texts, system=self.system, tokens=self._tokens)
        for name, content in files.items():
            self.ctx.output.publish(NATIVE + name, partial(_write, content))
        return [NATIVE + name for name in files]


def _write(content: str, path: Path) -> None:
    path.write_text(content, encoding="utf-8", newline="")
