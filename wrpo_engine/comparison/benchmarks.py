"""Benchmarks of a comparison: all rows on one benchmark by one judge, with paired differences. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from wrpo_engine.comparison.agreement import Agreement, agreement_of
from wrpo_engine.comparison.columns import Cell, Judged, Sampling, column_of
from wrpo_engine.comparison.length_control import rows_of
from wrpo_engine.comparison.outcomes import JudgedCell, Key, Outcome
from wrpo_engine.comparison.scales import Scale, scale_of
from wrpo_engine.errors import UsageError

MAIN = "main"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the artifacts say of a row in addition to its outcomes, on average over its runs."""

    metrics: Mapping[str, float]
    """Of the judge's protocol, as far as every run has them."""
    length_controlled: tuple[str, float] | None
    """Its form, LC, LC-minimal or SC, and the protocol's value in per cent."""
    characters: float | None
    tokens: float | None
    generated: float | None
    """Tokens that the system and its members generate for an answer."""
    read: float | None
    turns: tuple[float, ...]
    """Mean of each turn; empty for items of one turn."""
    invalid_share: float
    is_marked: bool
    """Whether the judge is the reward that trained or selected the system."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkTable:
    """All rows on one benchmark by one judge."""

    key: Key
    column: Mapping[str, Any]
    """Column of benchmarks.json, without its cells: kind, judge's identity, unit."""
    baseline: str
    """Row that differences are taken from."""
    common_items: int
    cells: Mapping[str, Cell]
    """By row; scores from 0 to 1 for those in per cent. Rows without a valid verdict are left out."""
    facts: Mapping[str, Facts]
    outcomes: Mapping[str, Sequence[Judged]]
    """By row and run."""

    @property
    def scale(self) -> Scale:
        """Unit of the scores."""
        return scale_of(self.column["protocol"])

    def to_json(self) -> dict[str, Any]:
        """Return everything from which the numbers can be recomputed."""
        return {
            "benchmark": self.key[0],
            "judge": self.key[1],
            "column": dict(self.column),
            "baseline": self.baseline,
            "common_items": self.common_items,
            "factor": self.scale.factor,
            "rows": {
                name: {
                    **asdict(cell),
                    "facts": asdict(self.facts[name]),
                    "outcomes": [_json(judged) for judged in self.outcomes[name]],
                }
                for name, cell in self.cells.items()
            },
        }


@dataclass(frozen=True, kw_only=True)
class JudgesCompared:
    """Two judges of one benchmark."""

    benchmark: str
    judges: tuple[str, str]
    agreement: Agreement


def tables_of(systems: Mapping[str, Sequence[Outcome]], *, baseline: str, sampling: Sampling) -> list[BenchmarkTable]:
    """Return a table for each benchmark and judge; the score on held-out prompts is the rows' own.

    UsageError if two experiments mean different things by one benchmark or judge.
    """
    keys = dict.fromkeys(key for runs in systems.values() for run in runs for key in run.judged)
    tables = [_table(key, systems, baseline, sampling) for key in keys]
    return [table for table in tables if table is not None and not _is_held_out_score(table.column)]


def agreements_of(tables: Sequence[BenchmarkTable], sampling: Sampling) -> list[JudgesCompared]:
    """Return how far the judges of each benchmark agree, by the first run of each row."""
    found = []
    for first, second in combinations(tables, 2):
        if first.key[0] != second.key[0]:
            continue
        sides = [{name: runs[0] for name, runs in table.outcomes.items()} for table in (first, second)]
        agreement = agreement_of(sides[0], sides[1], sampling=sampling)
        if agreement is not None:
            judges = (first.key[1], second.key[1])
            found.append(JudgesCompared(benchmark=first.key[0], judges=judges, agreement=agreement))
    return found


def _is_held_out_score(column: Mapping[str, Any]) -> bool:
    return bool(column["kind"] == "HeldOutReward" and column["by"] == "reward" and column["judge"] == MAIN)


def _table(
    key: Key, systems: Mapping[str, Sequence[Outcome]], baseline: str, sampling: Sampling
) -> BenchmarkTable | None:
    found = {name: [run.judged[key] for run in runs if key in run.judged] for name, runs in systems.items()}
    judged = {name: cells for name, cells in found.items() if len(cells) == len(systems[name]) and _is_valid(cells)}
    if not judged:
        return None
    _refuse_other_judges(key, systems)
    column = next(iter(judged.values()))[0].column
    start = baseline if baseline in judged else next(iter(judged))
    regulariser = column.get("regulariser")
    own = Sampling(
        seed=sampling.seed,
        resamples=sampling.resamples,
        regulariser=None if regulariser is None else rows_of(regulariser),
    )
    outcomes = {name: [cell.outcomes for cell in cells] for name, cells in judged.items()}
    compared = column_of(outcomes, baseline=start, sampling=own)
    return BenchmarkTable(
        key=key,
        column=column,
        baseline=start,
        common_items=len(compared.common),
        cells=compared.cells,
        facts={name: facts_of(cells) for name, cells in judged.items()},
        outcomes=outcomes,
    )


def _is_valid(cells: Sequence[JudgedCell]) -> bool:
    """Return whether the runs have a valid item in common."""
    return bool(set(cells[0].outcomes.items).intersection(*(cell.outcomes.items for cell in cells[1:])))


def _refuse_other_judges(key: Key, systems: Mapping[str, Sequence[Outcome]]) -> None:
    first: tuple[str, dict[str, Any]] | None = None
    for outcome in (run for runs in systems.values() for run in runs if key in run.judged):
        column = outcome.judged[key].column
        identity = {name: value for name, value in column["identity"].items() if name != "reported"}
        meaning = {name: column[name] for name in ("kind", "protocol", "by", "baseline_answers")} | identity
        if first is None:
            first = (outcome.location, meaning)
        elif meaning != first[1]:
            odd = sorted(name for name in meaning.keys() | first[1].keys() if meaning.get(name) != first[1].get(name))
            raise UsageError(
                f"{key[0]} by {key[1]} is not the same in {first[0]} and {outcome.location}: {odd[0]} is "
                f"{first[1].get(odd[0])} and {meaning.get(odd[0])}",
                hint="Compare experiments with the same benchmarks and judges, or give unlike ones different names.",
            )


def facts_of(cells: Sequence[JudgedCell]) -> Facts:
    """Return the facts of a row from its runs."""
    raw = [cell.cell for cell in cells]
    names = set(raw[0]["metrics"]).intersection(*(cell["metrics"] for cell in raw[1:]))
    controlled = [cell["length_controlled"] for cell in raw]
    turns = [[turn["score"] for turn in cell["turns"]] for cell in raw]
    return Facts(
        metrics={name: _mean([cell["metrics"][name] for cell in raw]) for name in sorted(names)},
        length_controlled=None
        if None in controlled
        else (controlled[0]["form"], _mean([each["score"] for each in controlled])),
        characters=_known([cell["answers"].get("characters") for cell in raw]),
        tokens=_known([cell["answers"].get("tokens") for cell in raw]),
        generated=_known([cell.cost.get("generated") for cell in cells]),
        read=_known([cell.cost.get("read") for cell in cells]),
        turns=tuple(_mean(list(values)) for values in zip(*turns, strict=False)),
        invalid_share=_mean([cell["invalid_share"] for cell in raw]),
        is_marked=any(cell["judged_by_own_reward"] for cell in raw),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


def _json(judged: Judged) -> dict[str, Any]:
    return {"items": list(judged.items), "values": judged.values.tolist(), "weights": judged.weights.tolist()}
