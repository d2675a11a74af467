"""Artifacts of the cells of an evaluation, without any model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.evaluation import cell_name

PROMPTS = [("p1", "What is one?"), ("p2", "What is two?"), ("p3", "What is three?")]
REWARD = {"name": "org/reward", "revision": "0" * 40}
PART = "parts/part-00000.parquet"
Commit = Callable[..., ArtifactRef]
Texts = Mapping[str, Sequence[str]]
"""Item id -> texts of its turns."""


class Cells:
    """Commits artifacts of cells and collects their roles."""

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self.inputs: dict[str, ArtifactRef] = {}

    def prompts(self, rows: Sequence[tuple[str, str]] = PROMPTS) -> None:
        frame = pl.DataFrame(list(rows), schema=records.PROMPTS, orient="row")
        self.inputs["prompts"] = self._commit("prepare", {"evaluation.parquet": frame})

    def bench(self, benchmark: str, items: Sequence[tuple[str, Sequence[str]]]) -> None:
        rows: list[tuple[Any, ...]] = [
            (item, index, "", list(turns), [], None) for index, (item, turns) in enumerate(items)
        ]
        frame = pl.DataFrame(rows, schema=records.BENCH_ITEMS, orient="row")
        self.inputs[f"bench/{benchmark}"] = self._commit(f"bench/{benchmark}", {"items.parquet": frame})

    def answers(self, system: str, benchmark: str, texts: Texts, *, role: str = "answers", **more: Any) -> None:
        too_long: Sequence[str] = more.get("too_long", ())
        rows = [
            (
                *(item, turn, sample, "" if item in too_long else text),
                *(0 if item in too_long else len(text.split()), "prompt_too_long" if item in too_long else "stop"),
                *(1, 7, 0),
            )
            for item, turns in texts.items()
            for sample in range(more.get("samples", 1))
            for turn, text in enumerate(turns)
        ]
        frame = pl.DataFrame(rows, schema=records.ANSWERS, orient="row")
        details = {"model": {"name": f"org/{system}", "revision": None}} if role == "answers" else {}
        name = cell_name(system, benchmark)
        self.inputs[f"{role}/{name}"] = self._commit(
            f"{role.removesuffix('s') if role == 'answers' else role}/{name}",
            {PART: frame},
            details=details,
            inputs=more.get("inputs"),
        )

    def grades(
        self, system: str, benchmark: str, scores: Mapping[str, float], reward: str = "main", **more: Any
    ) -> None:
        rows = [
            (item, 0, sample, score + sample * 0.5, False)
            for item, score in scores.items()
            for sample in range(more.get("samples", 1))
        ]
        frame = pl.DataFrame(rows, schema=records.GRADES, orient="row")
        name = cell_name(system, benchmark, reward)
        self.inputs[f"grades/{name}"] = self._commit(
            f"grade/{name}", {PART: frame}, details={"reward": more.get("about", REWARD)}
        )

    def verdicts(
        self,
        system: str,
        benchmark: str,
        outcomes: Sequence[tuple[str, float | None, float, bool]],
        judge: str = "gpt",
        **more: Any,
    ) -> None:
        """Commit a judge's verdicts; without `asked`, one of each item in order 0."""
        asked: Sequence[tuple[str, int, int, str, str, float | None]] = more.get("asked") or [
            (item, 0, 0, "ok" if valid else "unparsable", "m" if valid else "", value)
            for item, value, _, valid in outcomes
        ]
        parts = [
            (item, order, turn, outcome, verdict, value, json.dumps([verdict]), "stop", 90, 1, 1, 5.0)
            for item, order, turn, outcome, verdict, value in asked
        ]
        name = cell_name(system, benchmark, judge)
        summary = {
            "metrics": more.get("metrics", {}),
            "judge": more.get("about", {"model": "org/judge", "protocol": "Logprobs"}),
            "details": more.get("details", {}),
        }
        self.inputs[f"verdicts/{name}"] = self._commit(
            f"judge/{name}",
            {
                PART: pl.DataFrame(parts, schema=records.VERDICTS, orient="row"),
                "outcomes.parquet": pl.DataFrame(list(outcomes), schema=records.OUTCOMES, orient="row"),
                "benchmark.json": json.dumps(summary),
            },
        )

    def triples(self, sources: Sequence[str | None]) -> None:
        rows = [(f"p{n}", "q", "s", "t", "l", source, 1.0, 0.5, 0.0) for n, source in enumerate(sources)]
        frame = pl.DataFrame(rows, schema=records.TRIPLES, orient="row")
        self.inputs["triples"] = self._commit("curate-triples", {"triples.parquet": frame})
