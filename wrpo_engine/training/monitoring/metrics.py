"""Metrics of a step: local sums, reduction over ranks, and metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from wrpo_engine.training.batch.collate import Batch
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.objectives.tasks import RowTerms
from wrpo_engine.training.reference.agreement import Disagreement, largest_disagreement

METRICS_FILE = "metrics.jsonl"
CLOCK_FIELDS = (
    "step_seconds",
    "tokens_per_second",
    "triples_per_second",
    "data_seconds",
    "data_seconds_max",
    "reference_seconds",
    "reference_seconds_max",
    "forward_seconds",
    "forward_seconds_max",
    "backward_seconds",
    "backward_seconds_max",
    "optimizer_seconds",
    "peak_memory_bytes",
    "attention_fallback",
    "mfu",
)
"""Fields that differ from run to run; all others are deterministic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """What a rank says of a step in addition to its sums."""

    stop: bool = False
    peak_memory: int = 0
    """Bytes."""
    attention_fallback: bool = False
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds by name; every rank has the same names."""


@dataclass
class StepSums:
    """Sums over one rank's rows of one step, in float64, with the flags that ranks must agree on.

    They stay on the device until the step's micro-batches are done, because reading one makes the device wait for
    Python. One all-reduce per step carries loss, statistics, counts, whether any loss is not finite, and whether any
    rank was asked to stop.
    """

    statistic_names: Sequence[str]
    num_rows: int = 0
    num_tokens: int = 0
    bad_rows: list[str] = field(default_factory=list)
    """Rows of this rank whose loss is not finite; known once the sums are reduced."""
    disagreement: Disagreement = field(default_factory=Disagreement)
    """Largest difference from the reference on this rank."""
    _row_ids: list[str] = field(default_factory=list)
    _losses: list[Tensor] = field(default_factory=list)
    """[B] of every micro-batch, on the device."""
    _sums: Tensor | None = None
    """[1 + statistics] of the loss and of each statistic, float64, on the device."""

    def add(self, terms: RowTerms, row_ids: Sequence[str], num_tokens: int) -> None:
        """Add one micro-batch: `row_ids` has one id per row of the terms' [B], `num_tokens` are its sequences' tokens.

        The device is not waited for.
        """
        losses_B = terms.numerators.detach()
        columns = [losses_B, *(terms.statistics[name] for name in self.statistic_names)]
        sums = torch.stack(columns).sum(dim=1, dtype=torch.float64)
        self._sums = sums if self._sums is None else self._sums + sums
        self._losses.append(losses_B)
        self._row_ids += row_ids
        self.num_rows += len(row_ids)
        self.num_tokens += num_tokens

    def _read(self) -> list[float]:
        """Wait for the device, once; return the sums of the loss and of each statistic, and note the bad rows."""
        if self._sums is None:
            return [0.0] * (1 + len(self.statistic_names))
        is_finite = torch.cat(self._losses).isfinite().to(torch.float64)
        values = torch.cat([self._sums, is_finite]).tolist()
        sums, flags = values[: len(self._sums)], values[len(self._sums) :]
        self.bad_rows = [row for row, flag in zip(self._row_ids, flags, strict=True) if not flag]
        return sums

    def compare(self, batch: Batch, logps_S: Tensor, reference_S: Tensor) -> None:
        """Record the response on which policy and reference differ most; both tensors are [S], summed log-probs."""
        self.disagreement = max(self.disagreement, largest_disagreement(batch, logps_S, reference_S))

    def reduced(self, group: Group, report: RankReport, *, denominator: float) -> StepTotals:
        """Return the sums over all ranks, which all call this together. `denominator` is the divisor of the loss."""
        own_loss, *own_statistics = self._read()
        # One slot per rank, filled by that rank only: after the sum every rank has all ranks' values.
        facts = torch.zeros(group.world_size, 1 + len(report.phases), dtype=torch.float64)
        facts[group.rank] = torch.tensor([float(report.peak_memory), *report.phases.values()], dtype=torch.float64)
        vector = torch.tensor(
            [
                own_loss,
                float(self.num_rows),
                float(self.num_tokens),
                float(len(self.bad_rows)),
                float(report.stop),
                float(report.attention_fallback),
                *own_statistics,
                *facts.flatten().tolist(),
            ],
            dtype=torch.float64,
        )
        loss, rows, tokens, bad, stops, fallbacks, *others = group.sum(vector).tolist()
        statistics, slots = others[: len(own_statistics)], others[len(own_statistics) :]
        peaks, *seconds = torch.tensor(slots, dtype=torch.float64).view(group.world_size, -1).T.tolist()
        means = {name: value / rows for name, value in zip(self.statistic_names, statistics, strict=True)}
        return StepTotals(
            loss=loss / denominator,
            means=means,
            num_rows=int(rows),
            num_tokens=int(tokens),
            num_bad_rows=int(bad),
            should_stop=stops > 0,
            peak_memory=int(max(peaks)),
            attention_fallbacks=int(fallbacks),
            phases={
                field: value
                for name, values in zip(report.phases, seconds, strict=True)
                for field, value in ((name, fmean(values)), (f"{name}_max", max(values)))
            },
        )


@dataclass(frozen=True, kw_only=True)
class StepTotals:
    """Totals of a step over all ranks."""

    loss: float
    means: dict[str, float]
    """Statistics, each row of the global batch weighing the same."""
    num_rows: int
    num_tokens: int
    num_bad_rows: int
    should_stop: bool
    peak_memory: int
    """Bytes of the rank with the highest peak."""
    attention_fallbacks: int = 0
    """Ranks that compute attention segment by segment because FlexAttention has failed."""
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each phase before the reduction: the mean over ranks, and the slowest rank's as `<name>_max`."""


class MetricsLog:
    """metrics.jsonl of rank 0: one row per optimizer step; deterministic fields first, clock-dependent ones last."""

    def __init__(self, path: Path, group: Group) -> None:
        self._path = path
        self._is_main = group.is_main

    def cut(self, step: int) -> dict[str, float]:
        """Remove rows after `step`, which a resumed run recomputes; return the deterministic part of the last one.

        A line that a kill has cut off is removed as well. Return {} on other ranks than 0.
        """
        if not self._is_main:
            return {}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        pairs = read_rows(self._path) if self._path.exists() else []
        kept = [(row, line) for row, line in pairs if row["step"] <= step]
        temporary = self._path.with_name(f".tmp-{self._path.name}")
        temporary.write_text("".join(line for _, line in kept))
        temporary.replace(self._path)
        last = kept[-1][0] if kept else {}
        return {name: value for name, value in last.items() if name not in CLOCK_FIELDS}

    def write(self, row: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """Append a row; `clock` holds fields of CLOCK_FIELDS only."""
        if not self._is_main:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({**row, **clock}) + "\n")


def read_rows(path: Path) -> list[tuple[dict[str, Any], str]]:
    """Return (row, line) pairs up to the first incomplete line."""
    pairs: list[tuple[dict[str, Any], str]] = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not line.endswith("\n"):
            break
        pairs.append((row, line))
    return pairs
