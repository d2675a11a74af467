"""The search of a merge stage: its points in the artifact, and the measure of a candidate that its settings name."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from wrpo_engine.contract.merging import MergeParams, MergeSearch
from wrpo_engine.merging.candidates import Candidates
from wrpo_engine.merging.judged import JudgedFitness
from wrpo_engine.merging.parents import Parent
from wrpo_engine.merging.rewarded import RewardedFitness
from wrpo_engine.merging.search import Found, Place, Point, groups_of, search
from wrpo_engine.stage import StageContext

log = logging.getLogger("wrpo_engine")

POINTS = "points/"
"""Directory, in the artifact, of what is known of each candidate."""


def searched(ctx: StageContext, params: MergeParams, parents: Sequence[Parent]) -> Found:
    """Search the weights of the models; points of earlier attempts are kept, and are in the artifact."""
    settings = params.search
    assert settings is not None
    groups = groups_of(list(parents[0].facts), settings.groups)
    candidates = Candidates(ctx=ctx, params=params, parents=parents, groups=groups)
    start = params.weights * len(set(groups.values()))
    with _fitness(ctx, settings, params.seed, candidates) as fitness:
        best, evaluated = search(settings, start, seed=params.seed, fitness=fitness, memory=_Points(ctx, settings))
        return Found(groups=groups, best=best, evaluated=evaluated, measure=fitness.measure)


def _fitness(
    ctx: StageContext, settings: MergeSearch, seed: int, candidates: Candidates
) -> AbstractContextManager[RewardedFitness | JudgedFitness]:
    if settings.judge is not None:
        return JudgedFitness(ctx, settings, seed, candidates, POINTS)
    return nullcontext(RewardedFitness(ctx, settings, seed, candidates))


@dataclass
class _Points:
    """The points that were evaluated, one file each in the unfinished artifact."""

    ctx: StageContext
    settings: MergeSearch

    def get(self, place: Place) -> Point | None:
        name = _name(place)
        if name not in self.ctx.output.published(name):
            return None
        content = json.loads(self.ctx.output.fetch(name).read_text(encoding="utf-8"))
        self._show(place)
        return Point(**{**content, "coefficients": tuple(content["coefficients"])})

    def put(self, point: Point) -> None:
        text = json.dumps(asdict(point))
        place = Place(point.generation, point.index)
        self._show(place)
        self.ctx.output.publish(_name(place), lambda path: _write(text, path))
        log.info(
            "candidate %d of generation %d: fitness %.4f (budget %d)",
            point.index, point.generation, point.fitness, self.settings.budget,
        )  # fmt: skip

    def _show(self, place: Place) -> None:
        """Show the candidates that are evaluated; the merge that follows counts as one."""
        self.ctx.progress.update(
            self.settings.number_of(place.generation, place.index) + 1, self.settings.candidates + 1
        )


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _name(place: Place) -> str:
    return f"{POINTS}{place.name}.json"
