"""What a merge does with one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from wrpo_engine.contract.merging import MergeFields, MergeMethod
from wrpo_engine.merging.operands import Operands


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method with its parameters. Without base, all operands are merged; with one, it is the first operand."""

    method: MergeMethod
    weights: Sequence[float] = ()
    """One for each operand besides the base."""
    density: float = 1.0
    scale: float = 1.0
    position: float = 0.5
    select_top_k: float = 1.0
    normalize: bool = False
    rescale: Literal["Norm", "Density"] = "Norm"
    seed: int = 0
    """Of this tensor's random elements."""


def recipe_of(fields: MergeFields, weights: Sequence[float], seed: int) -> Recipe:
    """Return a stage's recipe for one tensor."""
    return Recipe(
        method=fields.method,
        weights=tuple(weights),
        density=fields.density,
        scale=fields.scale,
        position=fields.position,
        select_top_k=fields.select_top_k,
        normalize=fields.divides_by_weights,
        rescale=fields.rescale,
        seed=seed,
    )


Combine: TypeAlias = Callable[[slice], Tensor]
"""Rows -> the merged rows. Called once for each chunk."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A tensor's merge after all that depends on the whole tensor is known."""

    combine: Combine
    weights: tuple[float, ...] | None = None
    """SCE: the weight of each model."""
    ordered: bool = False
    """DARE: chunks are merged one after the other, because they draw from one sequence of random numbers."""

    def merged(self, operands: Operands) -> Iterator[Tensor]:
        """Yield the merged rows, chunk by chunk."""
        if self.ordered:
            return map(self.combine, operands.chunks())
        return (rows for _, rows in operands.mapped(self.combine))
