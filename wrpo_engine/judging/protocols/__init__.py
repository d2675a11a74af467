"""Protocols of AlpacaEval 2, Arena-Hard and MT-Bench."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

import polars as pl

from wrpo_engine.contract.benchmarks import JudgeFields, Protocol
from wrpo_engine.judging.protocol import BenchmarkProtocol
from wrpo_engine.judging.protocols.alpaca_eval import AlpacaEval, Difficulties
from wrpo_engine.judging.protocols.arena_hard import ArenaHard
from wrpo_engine.judging.protocols.length_control import Regulariser
from wrpo_engine.judging.protocols.mt_bench import MTBench


@dataclass(frozen=True, slots=True)
class Baseline:
    """Whose answers a system's answers are compared with."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Item id -> who gave the baseline's answer, for native files."""
    regulariser: pl.DataFrame | None = None
    """Of the length control; None if the baseline is not the bundle's. Its difficulties hold for that baseline alone,
    and LC-minimal is computed instead."""


def protocol_of(
    kind: Protocol,
    judge: JudgeFields,
    *,
    templates: Mapping[str, str],
    baseline: Baseline = Baseline(),
    order_seed: int = 0,
) -> BenchmarkProtocol:
    """Return a benchmark's protocol with a judge's settings; `templates` are those of the bundle.

    Raises DataError if the bundle lacks a judge prompt, or one lacks a field.
    """
    match kind:
        case "AlpacaEval2":
            return AlpacaEval(
                judge=judge,
                templates=templates,
                difficulties=None if baseline.regulariser is None else difficulties_of(baseline.regulariser),
                order_seed=order_seed,
                baseline_names=baseline.names,
            )
        case "ArenaHard" | "ArenaHardV2":
            return ArenaHard(
                judge=judge,
                version="v0.1" if kind == "ArenaHard" else "v2.0",
                templates=templates,
                baseline_names=baseline.names,
            )
        case "MTBench":
            return MTBench(judge=judge, templates=templates)
        case _:
            assert_never(kind)


def difficulties_of(frame: pl.DataFrame) -> Difficulties:
    """Return a bundle's regulariser (`records.BENCH_REGULARISER`) as the length control needs it."""
    first = frame.unique("index", keep="first", maintain_order=True)
    return Difficulties(
        regulariser=Regulariser(
            outcome=frame["preference"].to_numpy(),
            standardised_delta=frame["std_delta_len"].to_numpy(),
            difficulty=frame["instruction_difficulty"].to_numpy(),
        ),
        by_index=dict(zip(first["index"], first["instruction_difficulty"], strict=True)),
    )
