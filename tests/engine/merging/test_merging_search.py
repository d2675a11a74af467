"""The search of merge weights repeats nothing that was evaluated, and finds a maximum."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from engine_support import save_tiny_model
from safetensors.torch import load_file

from wrpo_engine.contract.merging import MergeSearch
from wrpo_engine.errors import DataError, Interrupted
from wrpo_engine.merging import stage
from wrpo_engine.merging.search import Fitness, Found, Place, Point, candidate_weights, groups_of, search

NAMES = [f"model.layers.{layer}.mlp.weight" for layer in range(6)] + ["model.embed_tokens.weight", "lm_head.weight"]
GROUPS = groups_of(NAMES, "Layer")
START = [0.5] * 14
BEST = np.linspace(-0.2, 1.1, 14)


def settings(**changes: Any) -> MergeSearch:
    return MergeSearch.model_validate({"reward": {"function": "m:f"}, "budget": 40, "population": 8, **changes})


class Memory:
    def __init__(self) -> None:
        self.points: dict[tuple[int, int], Point] = {}

    def get(self, place: Place) -> Point | None:
        return self.points.get((place.generation, place.index))

    def put(self, point: Point) -> None:
        self.points[point.generation, point.index] = point


def distance(_place: Place, coefficients: Sequence[float]) -> float:
    np.random.default_rng()
    np.random.rand(3)  # noqa: NPY002 (a fitness may draw from the global generator)
    return -float(np.square(np.array(coefficients) - BEST).sum())


def found(memory: Memory, fitness: Fitness = distance, **changes: Any) -> Any:
    best, evaluated = search(settings(**changes), START, seed=3, fitness=fitness, memory=memory)
    return Found(groups=GROUPS, best=best, evaluated=evaluated)


def test_a_search_improves_on_its_start_within_its_budget() -> None:
    memory = Memory()
    outcome = found(memory, budget=400)
    assert outcome.evaluated == len(memory.points) == 400
    assert memory.points[0, 0].coefficients == tuple(START)
    assert outcome.best.fitness == max(point.fitness for point in memory.points.values())
    assert outcome.best.fitness > distance(Place(0, 0), START) / 100


def test_the_last_generation_is_completed() -> None:
    assert found(Memory(), budget=9).evaluated == 16


def test_a_search_that_is_killed_evaluates_no_point_twice() -> None:
    whole, memory = Memory(), Memory()
    expected = found(whole)
    calls = 0

    def killed(place: Place, coefficients: Sequence[float]) -> float:
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise Interrupted
        return distance(place, coefficients)

    for _attempt in range(20):
        try:
            outcome = found(memory, killed)
            break
        except Interrupted:
            continue
    assert outcome == expected
    assert memory.points == whole.points
    assert calls - calls // 7 == 40


def test_points_of_another_search_are_refused() -> None:
    memory = Memory()
    found(memory)
    other = memory.points[1, 2]
    memory.points[1, 2] = Point(generation=1, index=2, coefficients=(9.0,) * 14, fitness=other.fitness)
    with pytest.raises(DataError, match="candidate 2 of generation 1 was evaluated at other coefficients"):
        found(memory)


def test_a_fitness_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="the fitness of candidate 0 of generation 0 is nan"):
        found(Memory(), lambda _place, _coefficients: math.nan)


@pytest.mark.parametrize(
    ("by", "count", "group"), [("Tensor", 8, NAMES[5]), ("Layer", 7, "layer-5"), ("Block", 4, "block-2")]
)
def test_tensors_of_a_group_share_their_weights(by: str, count: int, group: str) -> None:
    groups = groups_of(NAMES, by)
    order = list(dict.fromkeys(groups.values()))
    assert len(order) == count
    assert groups[NAMES[5]] == group
    assert by == "Tensor" or groups["lm_head.weight"] == groups["model.embed_tokens.weight"] == "other"
    weights = candidate_weights(groups, list(range(2 * count)), 2)
    place = order.index(group)
    assert list(weights(NAMES[5])) == [2 * place, 2 * place + 1]


def lengths(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward of the tests: more different characters are better."""
    return [float(len(set(response))) for response in responses]


def test_a_searched_merge_has_the_weights_of_its_best_candidate(
    make_ctx: Any, commit_artifact: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    paths = [save_tiny_model(tmp_path / f"model-{seed}", seed=seed) for seed in range(3)]
    rows = pl.DataFrame({"prompt_id": list("abc"), "prompt": ["hi", "why?", "count"]})
    prompts = commit_artifact("prepare", {"preference.parquet": rows})
    given = {
        "stage": "merge", "method": "TaskArithmetic", "base": {"name": str(paths[0])},
        "models": [{"name": str(path)} for path in paths[1:]], "weight": [0.5],
        "search": {
            "reward": {"function": "test_merging_search:lengths"},
            "budget": 4, "population": 2, "groups": "Layer", "prompts": 2, "max_tokens": 4,
        },
    }  # fmt: skip
    ctx = make_ctx(given, {"prompts": prompts}, stage="merge/m")
    shown: list[float] = []
    sink = SimpleNamespace(show=lambda state: shown.append(state.done / state.total), close=lambda: None)
    ctx.progress.sinks.append(sink)
    result = stage.run(ctx)
    assert (shown, shown[-1]) == (sorted(shown), 1), "the merge after the search does not begin at 0"
    assert {0.2, 0.4, 0.6, 0.8} <= set(shown)
    artifact = ctx.output.committed()
    outcome = json.loads(artifact.file("merge.json").read_text())["search"]
    assert len(artifact.files("points/")) == outcome["evaluated"] == result.metrics["candidates"] == 4
    assert outcome["manner"].startswith("of unconstrained model merging")
    assert outcome["measure"] == "mean reward by test_merging_search:lengths on 2 preference prompts"
    assert outcome["groups"] == ["other", "layer-0", "layer-1"]
    points = [json.loads(artifact.file(name).read_text()) for name in artifact.files("points/")]
    assert outcome["best"]["fitness"] == max(point["fitness"] for point in points) == result.metrics["fitness"]
    base, *models = [load_file(path / "model.safetensors") for path in paths]
    one, other = outcome["best"]["coefficients"][:2]
    expected = base["model.norm.weight"] + sum(
        weight * (model["model.norm.weight"] - base["model.norm.weight"])
        for weight, model in zip((one, other), models, strict=True)
    )
    merged = load_file(artifact.directory / "model" / "model.safetensors")
    torch.testing.assert_close(merged["model.norm.weight"], expected)
    assert "in the manner of arXiv 2410.13699" in artifact.file("README.md").read_text()
