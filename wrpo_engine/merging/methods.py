"""Merge methods on tensors that are read in chunks.

What depends on a whole tensor (thresholds, norms, angles) is found first, in chunks. The elements are then combined
chunk by chunk: means by mergekit's own function, deltas by its formulas, because its function copies all deltas several
times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wrpo_engine.merging.election import of_majority, total_of
from wrpo_engine.merging.largest import largest
from wrpo_engine.merging.operands import Operands, gram
from wrpo_engine.merging.recipe import Combine, Prepared, Recipe
from wrpo_engine.merging.sce import prepare_sce

_TINY = 1e-7
"""Norms below are not restored by DARE, as in mergekit."""
_NO_WEIGHT = 1e-8
"""Sums of weights below are no divisors, as in mergekit."""
_COLLINEAR = 0.9995
"""Absolute cosine above which SLERP is linear, as in mergekit."""

Kept = Callable[[slice, Tensor], Tensor]
"""(rows, delta) -> the delta with the elements that its method keeps, which may be the same tensor, changed."""


def prepare(operands: Operands, recipe: Recipe) -> Prepared:
    """Return how to merge a tensor. The first operand is the base, except for Linear."""
    match recipe.method:
        case "Linear":
            return Prepared(combine=_mean(operands, recipe.weights, normalize=recipe.normalize))
        case "TaskArithmetic" | "TIES" | "DARE-Linear" | "DARE-TIES":
            ordered = recipe.method.startswith("DARE")
            return Prepared(combine=_task_arithmetic(operands, recipe), ordered=ordered)
        case "SLERP":
            return Prepared(combine=_mean(operands, _on_arc(operands, recipe.position)))
        case "ModelStock":
            return Prepared(combine=_mean(operands, _of_stock(operands)))
        case "SCE":
            return prepare_sce(operands, recipe.select_top_k)


def merged_tensor(operands: Operands, recipe: Recipe) -> Tensor:
    """Return a merged tensor as a whole."""
    return torch.cat(list(prepare(operands, recipe).merged(operands))).reshape(operands.shape)


def _mean(operands: Operands, weights: Sequence[float], *, normalize: bool = False) -> Combine:
    from mergekit.merge_methods.api import merge_tensors

    def combine(rows: slice) -> Tensor:
        parameters = {"weight": list(weights), "normalize": normalize}
        merged: Tensor = merge_tensors(operands.all(rows), "linear", parameters=parameters)
        return merged

    return combine


def _task_arithmetic(operands: Operands, recipe: Recipe) -> Combine:
    kept = [_kept(operands, recipe, parent) for parent in _draws(operands, recipe)]
    sum_of_weights = sum(recipe.weights)

    def combine(rows: slice) -> Tensor:
        base, deltas = operands.deltas(rows)
        weighted = [
            keep(rows, delta).mul_(weight) for keep, delta, weight in zip(kept, deltas, recipe.weights, strict=True)
        ]
        merged = total_of(weighted)
        if recipe.method in {"TIES", "DARE-TIES"}:
            merged, divisor = of_majority(weighted, merged, [1.0] * len(weighted), recipe.weights)
            if recipe.normalize:
                merged.div_(divisor.masked_fill_(divisor == 0, 1))
        elif recipe.normalize and abs(sum_of_weights) >= _NO_WEIGHT:
            merged.div_(sum_of_weights)
        return base + merged.mul_(recipe.scale)

    return combine


def _draws(operands: Operands, recipe: Recipe) -> list[tuple[int, torch.Generator]]:
    """Return (operand, generator) of each model. All draw from one sequence, one model after the other."""
    generator = torch.Generator().manual_seed(recipe.seed)
    found: list[tuple[int, torch.Generator]] = []
    for parent in range(1, operands.count):
        own = torch.Generator()
        own.set_state(generator.get_state())
        found.append((parent, own))
        if recipe.density < 1 and recipe.method.startswith("DARE") and parent + 1 < operands.count:
            for rows in operands.chunks():
                _random(operands, rows, recipe.density, generator)
    return found


def _random(operands: Operands, rows: slice, density: float, generator: torch.Generator) -> Tensor:
    shape = (rows.stop - rows.start, *operands.shape[1:])
    return torch.bernoulli(torch.full(shape, density, dtype=torch.float32), generator=generator)


def _kept(operands: Operands, recipe: Recipe, draws: tuple[int, torch.Generator]) -> Kept:
    """Return the rule by which a model's elements are kept."""
    if recipe.density >= 1 or recipe.method == "TaskArithmetic":
        return lambda _rows, delta: delta
    parent, generator = draws
    if recipe.method == "TIES":
        return _by_size(operands, parent, recipe.density)
    return _at_random(operands, parent, recipe, generator)


def _by_size(operands: Operands, parent: int, density: float) -> Kept:
    # mergekit compares sizes in float32, too.
    sizes = operands.collected(lambda rows: operands.delta(parent, rows).abs_().float())
    selection = largest(sizes, max(1, int(density * operands.numel)))
    return lambda rows, delta: delta.mul_(selection.mask(delta.abs().float(), operands.start(rows)).to(delta.dtype))


def _at_random(operands: Operands, parent: int, recipe: Recipe, generator: torch.Generator) -> Kept:
    factor = 1 / recipe.density
    if recipe.rescale == "Norm":
        trial = torch.Generator()
        trial.set_state(generator.get_state())
        factor = _restoring(operands, parent, recipe.density, trial)
    return lambda rows, delta: delta * _random(operands, rows, recipe.density, generator).to(delta.dtype) * factor


def _restoring(operands: Operands, parent: int, density: float, generator: torch.Generator) -> float:
    """Return the factor that gives the kept elements the sum of the absolute values of all."""
    before = after = 0.0
    for rows in operands.chunks():
        delta = operands.delta(parent, rows)
        before += float(delta.abs().double().sum())
        after += float((delta * _random(operands, rows, density, generator)).abs().double().sum())
    return 1.0 if min(before, after) < _TINY else before / after


def _on_arc(operands: Operands, position: float) -> tuple[float, float]:
    """Return the factors of SLERP; linear interpolation for models that are nearly on one line."""
    products = gram(operands, of_deltas=False)
    one, other = (math.sqrt(float(products[index, index])) for index in range(2))
    cosine = float(products[0, 1]) / ((one if one > 1e-8 else 1.0) * (other if other > 1e-8 else 1.0))
    cosine = min(1.0, max(-1.0, cosine))
    if abs(cosine) > _COLLINEAR:
        return 1 - position, position
    angle = math.acos(cosine)
    return math.sin((1 - position) * angle) / math.sin(angle), math.sin(position * angle) / math.sin(angle)


def _of_stock(operands: Operands) -> tuple[float, ...]:
    """Return ModelStock's factors: of the base, and of each model."""
    products = gram(operands, of_deltas=True)
    count = len(products)
    norms = products.diagonal().sqrt()
    cosines = [
        float((products[i, j] / (norms[i] * norms[j]).clamp(min=1e-6)).clamp(-1, 1))
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = sum(cosines) / len(cosines)
    divisor = 1 + (count - 1) * cosine
    share = 0.0 if abs(divisor) < 1e-6 else count * cosine / divisor
    return 1 - share, *(share / count,) * count
