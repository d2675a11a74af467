"""Fitness of a candidate of a search: its score by a judge for answers to the development items of a benchmark.

Answers and verdicts are kept below the candidate's place, so that a search that is killed asks no question twice.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Self

import numpy as np
import polars as pl

from wrpo_engine.bundles.items import BenchItem, read_development
from wrpo_engine.comparison.columns import Judged as Outcomes
from wrpo_engine.comparison.scales import scale_of
from wrpo_engine.contract.evaluation import BenchmarkJudge
from wrpo_engine.contract.merging import MergeSearch
from wrpo_engine.errors import DataError
from wrpo_engine.judging.cell import Cell, bundle_inputs, make_cell
from wrpo_engine.judging.decision import Decided, text_writer, with_protocol
from wrpo_engine.judging.inquiry import Inquiry, Parts
from wrpo_engine.judging.protocol import Summary
from wrpo_engine.judging.results import summarise
from wrpo_engine.judging.verdicts import check_invalid, judged_of
from wrpo_engine.merging.candidates import Answers, Candidates
from wrpo_engine.merging.search import Place, chosen
from wrpo_engine.stage import StageContext

_VERDICTS = ".parquet"


class JudgedFitness:
    """Asks a judge about a candidate's answers. A context manager: its end keeps the replies and ends a server."""

    def __init__(
        self,
        ctx: StageContext,
        settings: MergeSearch,
        seed: int,
        candidates: Candidates,
        directory: str,
    ) -> None:
        """Choose the items; DataError if there are none. `directory` is that of the candidates in the artifact."""
        assert settings.judge is not None
        self._ctx, self._settings, self._judge = ctx, settings, settings.judge
        self._candidates, self._directory = candidates, directory
        self._items = _development(ctx, settings.judge, settings.prompts, seed)
        self._inquiry = Inquiry(ctx=ctx, judge=settings.judge, published_parts=self._published_parts)

    def __enter__(self) -> Self:
        """Read the replies of earlier attempts."""
        self._inquiry.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Keep the replies, and end the judge's server if the stage has one."""
        self._inquiry.__exit__(*error)

    @property
    def measure(self) -> str:
        """What the fitness is."""
        unit, judge = scale_of(self._judge.benchmark_protocol).name, self._judge
        return f"score ({unit}) by judge {judge.model} on {len(self._items)} development items of {judge.benchmark}"

    def __call__(self, place: Place, coefficients: Sequence[float], /) -> float:
        """Return a candidate's score as the report would have it: the weighted mean of the valid outcomes."""
        answers = self._answers(place, coefficients)
        inputs = bundle_inputs(self._ctx, self._items, answers)

        @functools.cache
        def cells(decided: Decided) -> Cell:
            return make_cell(inputs, with_protocol(self._judge, decided), self._ctx.config.output)

        pending = 0

        def pending_of(cell: Cell) -> Parts:
            nonlocal pending
            parts = self._pending(place, cell)
            pending = sum(map(len, parts.values()))
            return parts

        def show(count: int) -> None:
            # Half of the candidate is done when it has answered.
            done = 0.5 + 0.5 * count / max(1, pending)
            number = self._settings.number_of(place.generation, place.index)
            self._ctx.progress.update(number + done, self._settings.candidates + 1)

        decided, _ = self._inquiry.ask(cells, pending_of, show)
        cell = cells(decided)
        paths = self._ctx.output.fetch_all(list(self._parts(place, cell)))
        judged = judged_of(pl.concat([pl.read_parquet(path) for path in paths]), cell)
        check_invalid(self._ctx, judged, len(judged))
        return _score(summarise(cell, judged), scale_of(self._judge.benchmark_protocol).factor)

    def _answers(self, place: Place, coefficients: Sequence[float]) -> Answers:
        """Return a candidate's answers, those of an earlier attempt if it has left them."""
        name = f"{self._directory}{place.name}/answers.json"
        if name not in self._ctx.output.published(name):
            answers = self._candidates.answers(coefficients, self._items)
            self._ctx.output.publish(name, text_writer(json.dumps(answers)))
        kept: dict[str, list[str]] = json.loads(self._ctx.output.fetch(name).read_text(encoding="utf-8"))
        return {item: tuple(texts) for item, texts in kept.items()}

    def _parts(self, place: Place, cell: Cell) -> Parts:
        names = (f"{self._directory}{place.name}/part-{index:05d}{_VERDICTS}" for index in range(len(cell.parts)))
        return dict(zip(names, cell.parts, strict=True))

    def _pending(self, place: Place, cell: Cell) -> Parts:
        there = frozenset(self._ctx.output.published(f"{self._directory}{place.name}/"))
        return {name: part for name, part in self._parts(place, cell).items() if name not in there}

    def _published_parts(self) -> list[str]:
        return [name for name in self._ctx.output.published(self._directory) if name.endswith(_VERDICTS)]


def _score(summary: Summary, factor: float) -> float:
    """Return the weighted mean of the valid outcomes, as the report's table has it; NaN without one."""
    valid = [(each.item_id, each.value, each.weight) for each in summary.outcomes if each.valid]
    if not valid:
        return float("nan")
    items, values, weights = zip(*valid, strict=True)
    return factor * Outcomes(items=items, values=np.array(values, float), weights=np.array(weights, float)).mean


def _development(ctx: StageContext, judge: BenchmarkJudge, count: int, seed: int) -> list[BenchItem]:
    items = read_development(ctx)
    if not items:
        raise DataError(
            f"the {judge.benchmark} benchmark has no development items, so the search of merge weights has no prompts",
            code="NoPrompts",
            field="evaluation.benchmarks",
            hint="Set development of the benchmark to the number of items that searches may see.",
        )
    return chosen(items, count, seed)
