"""Micro-batches made ready ahead of the computation, in the order in which it takes them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

import torch

from wrpo_engine.training.batch.batching import BatchPlan, MicroBatch
from wrpo_engine.training.batch.collate import Batch, collate
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.objectives.tasks import Task

T = TypeVar("T")
_POLL_S = 0.1
"""How long a full or empty queue is waited for before looking whether the other side is gone."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One micro-batch of one rank, collated on the CPU; pinned where there is a GPU."""

    step: int
    """Optimizer steps completed before it."""
    micro_batch: MicroBatch
    batch: Batch
    num_tokens: int
    """Tokens of its sequences, each prompt counted once for each response."""
    denominator: float
    """Of the whole step, over all ranks."""
    is_last: bool
    """Of this rank in its step."""


def prepared_micro_batches(
    task: Task, rows: Sequence[TokenRow], plan: BatchPlan, *, rank: int, first_step: int, num_steps: int
) -> Iterator[Prepared]:
    """Collate the micro-batches of one rank from `first_step` to the end: a pure function of its arguments."""
    for step in range(first_step, num_steps):
        denominator = task.denominator([rows[index] for index in plan.step_rows(step)])
        micro_batches = plan.micro_batches(step)[rank]
        for position, micro_batch in enumerate(micro_batches):
            chosen = [rows[index] for index in micro_batch.rows]
            batch = collate(chosen, plan.layout)
            yield Prepared(
                step=step,
                micro_batch=micro_batch,
                batch=batch.pinned() if torch.cuda.is_available() else batch,
                num_tokens=sum(row.num_tokens for row in chosen),
                denominator=denominator,
                is_last=position + 1 == len(micro_batches),
            )


@dataclass(frozen=True, slots=True)
class _Raised:
    error: Exception


class _End:
    pass


class Ahead(Generic[T]):
    """Iterates over `items`, at most `depth` of which another thread has made in advance; 0 makes each when asked.

    The order is that of `items`. Its exception is raised where its next item would have been taken. Leaving the context
    ends the thread, whether or not all was taken.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items = items
        self._queue: queue.Queue[T | _Raised | _End] = queue.Queue(maxsize=max(1, depth))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True) if depth else None

    def __enter__(self) -> Ahead[T]:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._thread is None:
            return next(self._items)
        item = self._queue.get()
        if isinstance(item, _End | _Raised):
            # Whoever asks again gets the same answer, not a wait without end.
            self._queue.put(item)
            if isinstance(item, _Raised):
                raise item.error
            raise StopIteration
        return item

    def _fill(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
            self._put(_End())
        except Exception as error:  # noqa: BLE001 (raised again in the thread that takes the items)
            self._put(_Raised(error))

    def _put(self, item: T | _Raised | _End) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=_POLL_S)
                return True
        return False
