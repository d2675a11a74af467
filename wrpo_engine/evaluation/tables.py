"""Content of benchmarks.json and outcomes.parquet: every system on every benchmark by every judge. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import polars as pl

from wrpo_engine.comparison.agreement import agreement_of
from wrpo_engine.comparison.columns import Cell as ComparedCell
from wrpo_engine.comparison.columns import Column, Judged, Sampling, column_of, win_rates
from wrpo_engine.comparison.scales import scale_of
from wrpo_engine.comparison.statistics import Difference, Interval
from wrpo_engine.contract.evaluation import EvaluatedBenchmark, EvaluatedSystem, EvaluateParams
from wrpo_engine.evaluation.cells import Answers, Cell

EVALUATED_OUTCOMES: dict[str, pl.DataType | type[pl.DataType]] = {
    "system": pl.String,
    "benchmark": pl.String,
    "judge": pl.String,
    "item_id": pl.String,
    "value": pl.Float64,
    "weight": pl.Float64,
    "valid": pl.Boolean,
    "characters": pl.Float64,
    "features": pl.List(pl.Float64),
}
"""evaluate: outcomes.parquet. judge: name of the judge or reward. value: null unless valid. characters: mean of the
system's answers to the item. features: of the length control; null without one."""


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """One column: what one judge or reward says about all systems on one benchmark."""

    benchmark: EvaluatedBenchmark
    judge: str
    is_reward: bool
    cells: Mapping[str, Cell]
    """By system."""
    own: frozenset[str] = frozenset()
    """Systems that this judge's reward trained or selected."""

    def judged(self) -> dict[str, Judged]:
        """Return the outcomes of the systems that have a valid one."""
        made = {system: cell.judged() for system, cell in self.cells.items()}
        return {system: judged for system, judged in made.items() if judged.items}

    def sampling(self, params: EvaluateParams) -> Sampling:
        """Return how the items are resampled; the regulariser is the same for all systems."""
        rows = next((rows for cell in self.cells.values() if (rows := cell.regulariser()) is not None), None)
        return Sampling(seed=params.seed, resamples=params.resamples, regulariser=rows)


def benchmarks_of(
    params: EvaluateParams, columns: Sequence[Judgements], answers: Mapping[tuple[str, str], Answers]
) -> dict[str, Any]:
    """Return the content of benchmarks.json; `answers` are by system and benchmark."""
    baseline = baseline_of(params)
    return {
        "subject": params.subject,
        "baseline": baseline,
        "resamples": params.resamples,
        "seed": params.seed,
        "systems": [_system(system, columns) for system in params.systems],
        "columns": [_column(params, column, answers, baseline) for column in columns],
        "agreement": [_agreement(params, pair) for pair in combinations(columns, 2) if _comparable(*pair)],
        "costs": _costs(params, answers),
    }


def baseline_of(params: EvaluateParams) -> str:
    """Return the system that differences are taken from: the first opponent, or else the first system."""
    names = _names(params)
    return next((name for name in params.opponents if name in names), names[0])


def outcomes_of(columns: Iterable[Judgements], answers: Mapping[tuple[str, str], Answers]) -> pl.DataFrame:
    """Return the content of outcomes.parquet."""
    frames = [pl.DataFrame(schema=EVALUATED_OUTCOMES)]
    for column in columns:
        for system, cell in column.cells.items():
            lengths = answers[system, column.benchmark.name].characters()
            features = (cell.length_control or {}).get("features") or {}
            items = cell.outcomes["item_id"].to_list()
            frames.append(
                cell.outcomes.with_columns(
                    system=pl.lit(system),
                    benchmark=pl.lit(column.benchmark.name),
                    judge=pl.lit(column.judge),
                    characters=pl.Series([lengths.get(item) for item in items], dtype=pl.Float64),
                    features=pl.Series([features.get(item) for item in items], dtype=pl.List(pl.Float64)),
                ).select(list(EVALUATED_OUTCOMES))
            )
    return pl.concat(frames)


def metrics_of(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the trained model's figures for manifest and status, each with _BENCHMARK_JUDGE behind its name.

    score, and lc or lc-minimal where there is a length control; the last of them is there with _low and _high behind
    the judge, too, its interval. invalid: share of invalid verdicts. own: 1 if the judge is a reward that trained the
    model.
    """
    metrics: dict[str, float] = {}
    for column in content["columns"]:
        cell = next((each for each in column["cells"] if each["system"] == content["subject"]), None)
        if cell is None or cell["score"] is None:
            continue
        name = f"{column['benchmark']}_{column['judge']}"
        headline, figure = f"score_{name}", cell
        metrics[headline] = float(cell["score"])
        if (controlled := cell["length_controlled"]) is not None:
            headline, figure = f"{controlled['form'].lower()}_{name}", controlled
            metrics[headline] = float(controlled["score"])
        metrics |= {f"{headline}_{side}": float(bound) for side, bound in (figure["interval"] or {}).items()}
        if column["by"] == "judge":
            metrics[f"invalid_{name}"] = float(cell["invalid_share"])
        if cell["judged_by_own_reward"]:
            metrics[f"own_{name}"] = 1.0
    return metrics


def _names(params: EvaluateParams) -> list[str]:
    return [system.name for system in params.systems]


def _system(system: EvaluatedSystem, columns: Sequence[Judgements]) -> dict[str, Any]:
    marks = [system.name in column.own for column in columns if system.name in column.cells]
    return {
        "name": system.name,
        "label": system.label,
        "form": system.form,
        "members": list(system.members),
        "choices": dict(system.choices),
        "models_resident": models_resident(system),
        "uses_reward": system.uses_reward,
        "judged_only_by_own_reward": bool(marks) and all(marks),
    }


def models_resident(system: EvaluatedSystem) -> int:
    """Return how many models must be loaded to answer with this system; a mixture's aggregator may be a member."""
    if system.form not in ("Select", "Mixture", "Joint"):
        return 1
    aggregator = {system.choices["aggregator"]} if "aggregator" in system.choices else set()
    return len(set(system.members) | aggregator)


def _identities(column: Judgements) -> list[Mapping[str, Any]]:
    """Return what each judge is. The baseline against itself needs no request, so no model reports there."""
    found = [cell.identity for cell in column.cells.values()]
    return [identity for identity in found if identity.get("reported") != []] or found


def _column(
    params: EvaluateParams, column: Judgements, answers: Mapping[tuple[str, str], Answers], baseline: str
) -> dict[str, Any]:
    judged = column.judged()
    identities = _identities(column)
    start = baseline if baseline in judged else next(iter(judged), None)
    compared = (
        None
        if start is None
        else column_of(
            {system: [each] for system, each in judged.items()}, baseline=start, sampling=column.sampling(params)
        )
    )
    unit = scale_of(column.benchmark.protocol if not column.is_reward else None)
    shared = {system: judged[system].on(compared.common) for system in judged} if compared and compared.common else {}
    return {
        "benchmark": column.benchmark.name,
        "kind": column.benchmark.kind,
        "protocol": None if column.is_reward else column.benchmark.protocol,
        "judge": column.judge,
        "by": "reward" if column.is_reward else "judge",
        "identity": dict(next(iter(identities), {})),
        "identities_differ": len({str(sorted(identity.items())) for identity in identities}) > 1,
        "unit": unit.name,
        "baseline": start,
        "baseline_answers": column.benchmark.baseline,
        "items": next((cell.outcomes.height for cell in column.cells.values()), 0),
        "common_items": len(compared.common) if compared is not None else 0,
        "cells": [
            {
                "system": system,
                **_scores(compared, system, unit.factor),
                **_length_controlled(compared, cell, system),
                "metrics": dict(cell.metrics),
                "counts": dict(cell.counts),
                "invalid_share": cell.invalid_share,
                "answers": answers[system, column.benchmark.name].counts(),
                "turns": turns_of(cell, unit.factor),
                "position": position_of(cell, unit.factor),
                "judged_by_own_reward": system in column.own,
            }
            for system, cell in column.cells.items()
        ],
        "win_rates": {"systems": list(shared), "rates": win_rates(shared)},
        "regulariser": next(
            (each for cell in column.cells.values() if (each := (cell.length_control or {}).get("regulariser"))), None
        ),
    }


def _scores(compared: Column | None, system: str, factor: float) -> dict[str, Any]:
    cell = compared.cells.get(system) if compared is not None else None
    if cell is None:
        return dict.fromkeys(("score", "interval", "common", "difference", "adjusted_p", "detectable")) | {"items": 0}
    return {
        "score": cell.own.score * factor,
        "interval": _interval(cell.own.interval, factor),
        "items": cell.own.items,
        "common": None
        if cell.common is None
        else {
            "score": cell.common.score * factor,
            "interval": _interval(cell.common.interval, factor),
            "items": cell.common.items,
        },
        "difference": _difference(cell.difference, factor),
        "adjusted_p": cell.adjusted_p,
        "detectable": None if cell.detectable is None else cell.detectable * factor,
    }


def _length_controlled(compared: Column | None, cell: Cell, system: str) -> dict[str, Any]:
    """Return the protocol's own value with the interval of refitted resamples, or with the protocol's own interval."""
    found: ComparedCell | None = compared.cells.get(system) if compared is not None else None
    about = cell.length_control or {}
    metric = str(about.get("metric") or _LENGTH_METRICS.get(str(about.get("form")), ""))
    refitted = found.length_controlled if found is not None else None
    point = cell.metrics.get(metric, 100 * refitted.score if refitted is not None else None)
    if point is None:
        return {"length_controlled": None, "length_controlled_difference": None}
    interval = _interval(refitted.interval, 100) if refitted is not None else _known_interval(cell.metrics, metric)
    difference = found.length_controlled_difference if found is not None else None
    return {
        "length_controlled": {"form": about.get("form", "LC"), "score": point, "interval": interval},
        "length_controlled_difference": _difference(difference, 100),
    }


_LENGTH_METRICS = {"LC": "lc_win_rate", "LC-minimal": "lc_minimal_win_rate"}


def _known_interval(metrics: Mapping[str, float], name: str) -> dict[str, float] | None:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return None if low is None or high is None else {"low": low, "high": high}


def _interval(interval: Interval, factor: float) -> dict[str, float]:
    return {"low": interval.low * factor, "high": interval.high * factor}


def _difference(difference: Difference | None, factor: float) -> dict[str, Any] | None:
    if difference is None:
        return None
    scaled = replace(
        difference,
        mean=difference.mean * factor,
        interval=Interval(difference.interval.low * factor, difference.interval.high * factor),
        standard_error=difference.standard_error * factor,
        t_interval=None
        if difference.t_interval is None
        else Interval(difference.t_interval.low * factor, difference.t_interval.high * factor),
    )
    return asdict(scaled)


def turns_of(cell: Cell, factor: float) -> list[dict[str, float]]:
    """Return the mean of each turn's verdicts; none for a reward or for items of one turn."""
    if cell.verdicts is None:
        return []
    means = cell.verdicts.filter(outcome="ok").group_by("turn").agg(pl.col("value").mean(), pl.len()).sort("turn")
    rows = list(means.iter_rows())
    return [{"turn": turn, "score": value * factor, "verdicts": n} for turn, value, n in rows] if len(rows) > 1 else []


def position_of(cell: Cell, factor: float) -> dict[str, float] | None:
    """Return how verdicts depend on the place of the system's answer; None unless it was shown in both places.

    advantage: mean verdict with the system's answer first (order 1), less that with it second. contradicted: share of
    the items judged in both orders whose verdicts favour different answers; absent if no item was.
    """
    if cell.verdicts is None:
        return None
    valid = cell.verdicts.filter(outcome="ok")
    means = dict(valid.group_by("order").agg(pl.col("value").mean()).iter_rows())
    if not {0, 1} <= means.keys():
        return None
    found = {"advantage": float(means[1] - means[0]) * factor}
    both = valid.filter(order=0).join(valid.filter(order=1), on=["item_id", "turn"])
    if both.is_empty():
        return found
    sides = (both["value"] - _TIE) * (both["value_right"] - _TIE)
    return {**found, "contradicted": float((sides < 0).sum()) / both.height}


_TIE = 0.5
"""Value of a game that ends in a tie."""


def _comparable(first: Judgements, second: Judgements) -> bool:
    return first.benchmark.name == second.benchmark.name


def _agreement(params: EvaluateParams, pair: tuple[Judgements, Judgements]) -> dict[str, Any]:
    first, second = pair
    sampling = Sampling(seed=params.seed, resamples=params.resamples)
    found = agreement_of(first.judged(), second.judged(), sampling=sampling)
    about = {"benchmark": first.benchmark.name, "judges": [first.judge, second.judge]}
    if found is None:
        return {**about, "systems": 0, "items": 0, "kendall": None, "interval": None, "share": None, "pairs": 0}
    return {
        **about,
        "systems": found.systems,
        "items": found.items,
        "kendall": found.kendall,
        "interval": None if found.interval is None else asdict(found.interval),
        "share": found.share,
        "pairs": found.same + found.opposite,
    }


def _costs(params: EvaluateParams, answers: Mapping[tuple[str, str], Answers]) -> dict[str, Any]:
    """Return the mean tokens that a system generates and reads for an answer, those of its members included."""
    by_name = {system.name: system for system in params.systems}
    return {
        system.name: {
            benchmark.name: cost
            for benchmark in params.benchmarks
            if (cost := cost_of(system, benchmark.name, by_name, answers)) is not None
        }
        for system in params.systems
    }


def cost_of(
    system: EvaluatedSystem,
    benchmark: str,
    systems: Mapping[str, EvaluatedSystem],
    answers: Mapping[tuple[str, str], Answers],
) -> dict[str, float] | None:
    """Return mean tokens generated and read for an answer; None where a member's answers are not part of the table.

    A selection generates nothing itself: its members do.
    """
    parts = []
    if system.form != "Select":
        counts = answers[system.name, benchmark].counts() if (system.name, benchmark) in answers else {}
        parts.append({"generated": counts.get("tokens", 0.0), "read": counts.get("tokens_read", 0.0)})
    for member in system.members if system.form in ("Select", "Mixture") else ():
        known = systems.get(member)
        cost = None if known is None else cost_of(known, benchmark, systems, answers)
        if cost is None:
            return None
        parts.append(cost)
    return {name: sum(part[name] for part in parts) for name in ("generated", "read")}
