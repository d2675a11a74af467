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
from wrpo_engine.sampling.counting import ResponseCounts
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
        counts, cut = ResponseCounts(), 0
        for frame in parts:
            self._keep(frame)
            cut += int(counts.add(frame)["references_cut"].sum())
        return {**counts.metrics("answers"), "references_cut": float(cut)}

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
