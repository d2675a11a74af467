"""One tensor of all parents, read a few rows at a time, so that no more than that is in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 18
"""Elements of each parent that are in memory at a time. The chunks of eleven parents fit the caches of a server."""
_Result = TypeVar("_Result")


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

    def mapped(self, function: Callable[[slice], _Result]) -> Iterator[tuple[slice, _Result]]:
        """Yield each chunk and the function's result, in order; each of several threads works on a whole chunk.

        Torch would divide every operation between threads instead, which costs more than the operation on a chunk.
        """
        threads = torch.get_num_threads()
        waiting: deque[tuple[slice, Future[_Result]]] = deque()
        # This is the number of this thread and of those that begin later.
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads) as pool:
                for rows in self.chunks():
                    waiting.append((rows, pool.submit(function, rows)))
                    if len(waiting) > threads:
                        done, future = waiting.popleft()
                        yield done, future.result()
                for rest, future in waiting:
                    yield rest, future.result()
        finally:
            torch.set_num_threads(threads)

    def collected(self, function: Callable[[slice], Tensor]) -> Tensor:
        """Return the function's results as a whole tensor."""
        found: Tensor | None = None
        for rows, values in self.mapped(function):
            if found is None:
                found = torch.empty(self.shape or (1,), dtype=values.dtype)
            found[rows] = values
        assert found is not None
        return found

    def start(self, rows: slice) -> int:
        """Return the place of the first of these rows' elements in the flat tensor."""
        first: int = rows.start
        return first * prod(self.shape[1:])

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
        flat = torch.stack([value.reshape(-1) for value in values]).double()
        products = flat @ flat.T
        total = products if total is None else total + products
    assert total is not None
    return total
