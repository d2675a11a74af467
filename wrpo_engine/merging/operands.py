"""One tensor of all parents, read a few rows at a time, so that no more than that is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Elements of each parent that are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Operands:
    """A tensor of several parents."""

    shape: tuple[int, ...]
    count: int
    """Parents."""
    read: Callable[[int, slice], Tensor]
    """(parent, rows of the first dimension) -> values in the number format of the arithmetic."""
    chunk_elements: int = CHUNK_ELEMENTS

    @property
    def numel(self) -> int:
        """Elements of one parent's tensor."""
        return prod(self.shape)

    def chunks(self) -> Iterator[slice]:
        """Return the ranges of rows, in order; a number is a tensor of one row."""
        rows = self.shape[0] if self.shape else 1
        size = max(1, self.chunk_elements * rows // max(self.numel, 1))
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))

    def all(self, rows: slice) -> list[Tensor]:
        """Return these rows of all parents."""
        return [self.read(parent, rows) for parent in range(self.count)]

    def deltas(self, rows: slice) -> tuple[Tensor, list[Tensor]]:
        """Return these rows of the first parent, and those of the others minus it."""
        base, *others = self.all(rows)
        return base, [other - base for other in others]

    def delta(self, parent: int, rows: slice) -> Tensor:
        """Return these rows of one parent minus those of the first one."""
        return self.read(parent, rows) - self.read(0, rows)


def operands_of(tensors: list[Tensor], *, chunk_elements: int = CHUNK_ELEMENTS) -> Operands:
    """Return the operands of tensors in memory, which have one shape."""
    return Operands(
        shape=tuple(tensors[0].shape),
        count=len(tensors),
        read=lambda parent, rows: (
            tensors[parent].reshape(-1)[rows] if not tensors[parent].ndim else (tensors[parent][rows])
        ),
        chunk_elements=chunk_elements,
    )


def gram(operands: Operands, *, of_deltas: bool) -> Tensor:
    """Return the inner products of all parents, or of their deltas, in float64."""
    total: Tensor | None = None
    for rows in operands.chunks():
        values = operands.deltas(rows)[1] if of_deltas else operands.all(rows)
        flat = [value.reshape(-1).double() for value in values]
        products = torch.stack([torch.stack([one @ other for other in flat]) for one in flat])
        total = products if total is None else total + products
    assert total is not None
    return total
