"""Search of merge weights by CMA-ES, in the manner of unconstrained model merging (arXiv 2410.13699).

What was evaluated is kept point by point. CMA-ES is determined by its seed and the fitness of earlier points. So a
search that is started again asks for the same points, and evaluates only those that are missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.contract.merging import MergeSearch
from wrpo_engine.errors import DataError
from wrpo_engine.seeds import seed_of

_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")
_BLOCKS = 4
_OTHERS = "other"
Groups = Mapping[str, str]
"""Tensor -> its group."""


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a candidate in a search."""

    generation: int
    index: int

    @property
    def name(self) -> str:
        """Its name in the artifact."""
        return f"generation-{self.generation:04d}-candidate-{self.index:03d}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A candidate."""

    generation: int
    index: int
    coefficients: tuple[float, ...]
    """Of each group the weights of all models, the groups in order."""
    fitness: float
    """Higher is better."""


class Fitness(Protocol):
    """What a search maximises."""

    def __call__(self, place: Place, coefficients: Sequence[float], /) -> float:
        """Return how good a candidate is; higher is better."""
        ...


class Memory(Protocol):
    """Keeps the points that were evaluated."""

    def get(self, place: Place) -> Point | None:
        """Return a point that an earlier attempt evaluated."""
        ...

    def put(self, point: Point) -> None:
        """Keep a point."""
        ...


@dataclass(frozen=True, kw_only=True)
class Found:
    """The outcome of a search."""

    groups: Groups
    best: Point
    evaluated: int
    measure: str = ""
    """What the fitness is."""

    def to_json(self) -> dict[str, Any]:
        """Return what merge.json says of the search."""
        return {
            "manner": "of unconstrained model merging (arXiv 2410.13699), which published no code",
            "algorithm": "CMA-ES",
            "measure": self.measure,
            "groups": list(dict.fromkeys(self.groups.values())),
            "best": asdict(self.best),
            "evaluated": self.evaluated,
        }


def groups_of(names: Sequence[str], by: str) -> dict[str, str]:
    """Return the group of each tensor by MergeSearch.groups, in the order of the layers."""
    if by == "Tensor":
        return {name: name for name in sorted(names)}
    layers = {name: int(match.group(1)) for name in sorted(names) if (match := _LAYER.search(f".{name}"))}
    count = max(layers.values(), default=-1) + 1
    size = 1 if by == "Layer" else max(1, -(-count // _BLOCKS))
    grouped = {name: f"{by.lower()}-{layer // size}" for name, layer in sorted(layers.items(), key=lambda one: one[1])}
    return {**{name: _OTHERS for name in sorted(names) if name not in layers}, **grouped}


def candidate_weights(groups: Groups, coefficients: Sequence[float], models: int) -> Callable[[str], Sequence[float]]:
    """Return tensor -> weights of the models for a candidate."""
    order = {group: place for place, group in enumerate(dict.fromkeys(groups.values()))}

    def weights(name: str) -> Sequence[float]:
        start = order[groups[name]] * models
        return coefficients[start : start + models]

    return weights


def search(
    settings: MergeSearch,
    start: Sequence[float],
    *,
    seed: int,
    fitness: Fitness,
    memory: Memory,
) -> tuple[Point, int]:
    """Return the best candidate of a search that begins around `start`, and the number of evaluated candidates.

    That number exceeds the budget by less than a generation.
    `fitness` is called once for each point that `memory` lacks. DataError if it is not finite.
    The first candidate is `start` itself, so the outcome is no worse than no search.
    """
    best: Point | None = None
    strategy = _strategy(settings, start, seed)
    evaluated = generation = 0
    while evaluated < settings.budget:
        asked = strategy.ask()
        if generation == 0:
            asked[0] = np.array(start, dtype=float)
        points = [
            _evaluated(memory, Place(generation, index), tuple(map(float, one)), fitness)
            for index, one in enumerate(asked)
        ]
        strategy.tell(asked, [-point.fitness for point in points])
        evaluated += len(points)
        generation += 1
        best = max([*([best] if best is not None else []), *points], key=lambda point: point.fitness)
    assert best is not None
    return best, evaluated


def chosen(items: Sequence[BenchItem], count: int, seed: int) -> list[BenchItem]:
    """Return at most `count` of the items that candidates answer, chosen by the seed and their ids."""
    return sorted(items, key=lambda item: seed_of(seed, item.item_id))[:count]


def _strategy(settings: MergeSearch, start: Sequence[float], seed: int) -> Any:
    """Return CMA-ES with a separate random generator: what a fitness draws does not change the points."""
    import cma

    numbers = np.random.default_rng(seed)
    options = {
        "popsize": settings.population,
        "randn": lambda *shape: numbers.standard_normal(shape),
        "seed": float("nan"),
        "verbose": -9,
    }
    return cma.CMAEvolutionStrategy(list(start), settings.sigma, options)


def _evaluated(memory: Memory, place: Place, coefficients: tuple[float, ...], fitness: Fitness) -> Point:
    known = memory.get(place)
    if known is not None:
        if not np.allclose(known.coefficients, coefficients, rtol=1e-9, atol=1e-12):
            raise DataError(
                f"candidate {place.index} of generation {place.generation} was evaluated at other coefficients than it "
                "has now",
                code="ArtifactDamaged",
                hint="Remove the directory `points` of the stage's unfinished artifact; the search starts again.",
            )
        return known
    value = fitness(place, coefficients)
    if not np.isfinite(value):
        raise DataError(
            f"the fitness of candidate {place.index} of generation {place.generation} is {value}",
            code="FitnessNotFinite",
            hint="Check the reward or the judge, and the models' weights; a smaller search.sigma keeps candidates near "
            "the start.",
        )
    point = Point(generation=place.generation, index=place.index, coefficients=coefficients, fitness=float(value))
    memory.put(point)
    return point
