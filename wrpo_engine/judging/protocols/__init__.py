"""Protocols of AlpacaEval 2, Arena-Hard and MT-Bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_never

import polars as pl

from wrpo_engine.contract.benchmarks import JudgeFields, Protocol
from wrpo_engine.judging.protocol import BenchmarkProtocol
from wrpo_engine.judging.protocols.alpaca_eval import AlpacaEval, Difficulties
from wrpo_engine.judging.protocols.arena_hard import ArenaHard
from wrpo_engine.judging.protocols.length_control import Regulariser
from wrpo_engine.judging.protocols.mt_bench import MTBench


def protocol_of(
    kind: Protocol,
    judge: JudgeFields,
    *,
    templates: Mapping[str, str],
    baseline_names: Mapping[str, str] | None = None,
    regulariser: pl.DataFrame | None = None,
    order_seed: int = 0,
    positional: bool = False,
    length_of: Callable[[str], int] | None = None,
    length_unit: str = "tokens",
) -> BenchmarkProtocol:
    """Return a benchmark's protocol with a judge's settings.

    `templates` and `regulariser` are those of the bundle. Pass no regulariser if the baseline is not the bundle's: its
    difficulties hold for that baseline alone, and LC-minimal is computed instead. `baseline_names` is by item id.
    `positional` joins the difficulties by row, as AlpacaEval itself does, for comparisons with published values.
    `length_of` counts the length of an answer for Arena-Hard's style control, in characters if unset. Raises DataError
    if the bundle lacks a judge prompt, or one lacks a field.
    """
    names = baseline_names or {}
    match kind:
        case "AlpacaEval2":
            return AlpacaEval(
                judge=judge,
                templates=templates,
                difficulties=None if regulariser is None else difficulties_of(regulariser),
                order_seed=order_seed,
                baseline_names=names,
                positional=positional,
            )
        case "ArenaHard" | "ArenaHardV2":
            return ArenaHard(
                judge=judge,
                version="v0.1" if kind == "ArenaHard" else "v2.0",
                templates=templates,
                baseline_names=names,
                length_of=length_of or len,
                length_unit="characters" if length_of is None else length_unit,
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
