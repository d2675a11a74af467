"""Merge methods give what mergekit and FuseChat's authors give, however a tensor is divided into chunks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mergekit.merge_methods.api import merge_tensors
from torch import Tensor

from wrpo_engine.merging import largest as choice
from wrpo_engine.merging.largest import largest
from wrpo_engine.merging.methods import merged_tensor, prepare
from wrpo_engine.merging.operands import operands_of
from wrpo_engine.merging.recipe import Recipe

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "comparisons" / "merging.json").read_text(encoding="utf-8")
)
BASE = torch.tensor(GOLDEN["base"], dtype=torch.float64)
MODELS = [torch.tensor(model, dtype=torch.float64) for model in GOLDEN["models"]]
ALL = [BASE, *MODELS]
EVEN = (1.0, 1.0, 1.0)
FIFTHS = (0.2, 0.2, 0.2)
TENTHS = (0.3, 0.3, 0.3)
RECIPES: dict[str, tuple[list[Tensor], Recipe]] = {
    "linear_equal_no_base": (MODELS, Recipe(method="Linear", weights=EVEN, normalize=True)),
    "linear_weights_532": (MODELS, Recipe(method="Linear", weights=(0.5, 0.3, 0.2), normalize=True)),
    "task_arithmetic_w0.3": (ALL, Recipe(method="TaskArithmetic", weights=TENTHS)),
    "task_arithmetic_w0.3_lambda0.5": (ALL, Recipe(method="TaskArithmetic", weights=TENTHS, scale=0.5)),
    "ties_density0.5_w1": (ALL, Recipe(method="TIES", weights=EVEN, density=0.5, normalize=True)),
    "ties_density0.6_w0.2": (ALL, Recipe(method="TIES", weights=FIFTHS, density=0.6, normalize=True)),
    "ties_density1_weights": (ALL, Recipe(method="TIES", weights=(0.5, 0.3, 0.2), normalize=True)),
    "dare_linear_density0.6_w0.2_normalize_seed0": (
        ALL,
        Recipe(method="DARE-Linear", weights=FIFTHS, density=0.6, normalize=True, seed=0),
    ),
    "model_stock": (ALL, Recipe(method="ModelStock")),
    "slerp_t0.3": ([BASE, MODELS[0]], Recipe(method="SLERP", position=0.3)),
}


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("case", RECIPES)
def test_a_method_gives_what_mergekit_gives(case: str, chunk: int) -> None:
    tensors, recipe = RECIPES[case]
    merged = merged_tensor(operands_of(tensors, chunk_elements=chunk), recipe)
    np.testing.assert_allclose(merged, GOLDEN["merged"][case], rtol=0, atol=1e-6 if "dare" in case else 1e-12)


def test_all_handed_merges_are_compared() -> None:
    others = {"dare_masks_seed0", "dare_rescale_of_first_delta_seed0"}
    assert set(GOLDEN["merged"]) == RECIPES.keys() | others


@pytest.mark.parametrize(("rescale", "key"), [("Density", "paper_and_2024_fork"), ("Norm", "mergekit_0_1_5")])
def test_dare_restores_the_norm_or_divides_by_the_density(rescale: Any, key: str) -> None:
    recipe = Recipe(method="DARE-Linear", weights=(1.0,), density=0.6, rescale=rescale, seed=0)
    merged = merged_tensor(operands_of([BASE, MODELS[0]], chunk_elements=4), recipe)
    expected = GOLDEN["merged"]["dare_rescale_of_first_delta_seed0"][key]
    np.testing.assert_allclose(merged - BASE, expected, rtol=0, atol=1e-6)


def test_dare_draws_the_masks_of_all_models_from_one_sequence() -> None:
    for index, mask in enumerate(GOLDEN["merged"]["dare_masks_seed0"]):
        weights = [float(index == other) for other in range(3)]
        recipe = Recipe(method="DARE-Linear", weights=weights, density=0.6, rescale="Density", seed=0)
        merged = merged_tensor(operands_of(ALL, chunk_elements=4), recipe)
        delta = MODELS[index] - BASE
        np.testing.assert_allclose(merged - BASE, delta * torch.tensor(mask) / 0.6, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("top_k", [1.0, 0.5])
def test_sce_is_that_of_its_authors(top_k: float, chunk: int) -> None:
    operands = operands_of(ALL, chunk_elements=chunk)
    recipe, expected = Recipe(method="SCE", select_top_k=top_k), GOLDEN["sce"][f"fuseai_topk{top_k}"]
    assert prepare(operands, recipe).weights == pytest.approx(expected["weights"], abs=1e-9, rel=0)
    np.testing.assert_allclose(merged_tensor(operands, recipe), expected["merged"], rtol=0, atol=1e-9)


def original_sce(base: Tensor, models: list[Tensor], top_k: float) -> tuple[Any, Any]:
    """Return weights and merge by the algorithm as FuseChat's authors have it, on whole tensors."""
    origin = base.double().numpy()
    deltas = np.stack([model.double().numpy() for model in models]) - origin
    variance = deltas.var(axis=0)
    mask = np.ones(origin.size)
    if top_k < 1:
        mask[np.argsort(-variance.reshape(-1), kind="stable")[int(top_k * np.count_nonzero(variance)) :]] = 0
    squares = (deltas**2 * mask.reshape(origin.shape)).reshape(len(models), -1).sum(axis=1)
    weights = squares / squares.sum()
    agrees = np.sign(deltas) == np.where(deltas.sum(axis=0) >= 0, 1, -1)
    shares = agrees * weights.reshape(-1, *[1] * origin.ndim)
    divisor = shares.sum(axis=0)
    return weights, origin + (shares * deltas).sum(axis=0) / np.where(divisor == 0, 1, divisor)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("top_k", [1.0, 0.5, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_sce_in_chunks_is_the_original_algorithm_on_whole_tensors(
    dtype: torch.dtype, tolerance: float, top_k: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, *models = (torch.randn(20, 15, generator=generator, dtype=dtype) for _ in range(2 + seed % 4))
    # Equal elements have no variance and no sign.
    models = [base + 1e-2 * model.where(model.abs() > 0.5, torch.zeros_like(model)) for model in models]
    operands = operands_of([base, *models, base.clone()], chunk_elements=40)
    recipe = Recipe(method="SCE", select_top_k=top_k)
    weights, merged = original_sce(base, [*models, base], top_k)
    assert prepare(operands, recipe).weights == pytest.approx(weights, abs=tolerance * 10)
    np.testing.assert_allclose(merged_tensor(operands, recipe), merged, rtol=0, atol=tolerance)


def test_sce_without_a_selected_element_weighs_models_equally() -> None:
    operands = operands_of(ALL)
    assert prepare(operands, Recipe(method="SCE", select_top_k=0.05)).weights == (1 / 3, 1 / 3, 1 / 3)
    same = operands_of([BASE, BASE, BASE])
    assert torch.equal(merged_tensor(same, Recipe(method="SCE", select_top_k=0.5)), BASE)


def test_sce_weighs_deltas_of_the_usual_size_by_their_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = [scale * torch.randn(40, 50, generator=generator, dtype=torch.float64) for scale in (1e-5, 3e-5)]
    operands = operands_of([torch.zeros(40, 50, dtype=torch.float64), *deltas])
    weights = prepare(operands, Recipe(method="SCE")).weights
    assert weights == pytest.approx((0.1, 0.9), abs=0.01)


ORACLES: dict[str, tuple[str, dict[str, Any], Recipe]] = {
    "linear": ("linear", {"normalize": False}, Recipe(method="Linear")),
    "task arithmetic": ("task_arithmetic", {"normalize": True, "lambda": 0.7}, Recipe(
        method="TaskArithmetic", scale=0.7, normalize=True)),
    "TIES": ("ties", {"density": 0.37, "lambda": 1.3}, Recipe(method="TIES", density=0.37, scale=1.3, normalize=True)),
    "DARE-Linear": ("dare_linear", {"density": 0.4}, Recipe(method="DARE-Linear", density=0.4, seed=5)),
    "DARE-TIES": ("dare_ties", {"density": 0.4}, Recipe(method="DARE-TIES", density=0.4, seed=5)),
    "model stock": ("model_stock", {}, Recipe(method="ModelStock")),
    "SLERP": ("slerp", {"t": 0.8}, Recipe(method="SLERP", position=0.8)),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(7,), (6, 5), (3, 4, 5)])
@pytest.mark.parametrize("name", ORACLES)
def test_a_method_in_chunks_is_mergekits_on_the_whole_tensor(name: str, shape: tuple[int, ...]) -> None:
    method, parameters, recipe = ORACLES[name]
    generator = torch.Generator().manual_seed(len(shape))
    tensors = [torch.randn(shape, generator=generator) for _ in range(2 if name == "SLERP" else 4)]
    weights = [0.9, -0.2, 0.5, 0.4][: len(tensors)] if name == "linear" else [0.9, 0.2, 0.5]
    if name not in {"SLERP", "model stock"}:
        parameters = {**parameters, "weight": [1.0, *weights] if len(weights) < len(tensors) else weights}
        if len(weights) < len(tensors):
            parameters["weight"] = dict(zip("bcd", weights, strict=True))
    ids = list("abcd"[: len(tensors)])
    torch.manual_seed(5)
    whole = merge_tensors(tensors, method, parameters=parameters, ids=ids, base_index=None if name == "linear" else 0)
    own = Recipe(**{**{field: getattr(recipe, field) for field in recipe.__dataclass_fields__}, "weights": weights})
    torch.testing.assert_close(merged_tensor(operands_of(tensors, chunk_elements=5), own), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sample", [None, 16, 256])
def test_the_largest_elements_are_those_of_a_sort(
    sample: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sample is not None:
        monkeypatch.setattr(choice, "_SAMPLE", sample)
        monkeypatch.setattr(choice, "_PIECE", 100)
    generator = torch.Generator().manual_seed(3)
    for size, levels in ((1, 1), (50, 3), (997, 10**6)):
        values = torch.randint(levels, (size,), generator=generator).to(dtype) / 7
        for k in {0, 1, size // 3, size - 1, size}:
            selection = largest(values, k)
            mask = torch.cat([selection.mask(values[:20], 0), selection.mask(values[20:], 20)])
            assert int(mask.sum()) == k
            assert sorted(values[mask].tolist()) == sorted(values.sort(descending=True).values[:k].tolist())
