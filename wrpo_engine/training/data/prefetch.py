"""Prefetching of collated micro-batches in a background thread, in order."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
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
"""Seconds to wait for a full queue before checking whether the consumer has closed it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One micro-batch of one rank, collated on the CPU; pinned if there is a GPU."""

    step: int
    """Optimizer steps completed before it."""
    micro_batch: MicroBatch
    batch: Batch
    num_tokens: int
    """Tokens of its sequences; each prompt counts once for each response."""
    denominator: float
    """The divisor of the whole step's loss, over all ranks."""
    is_last: bool
    """True for this rank's last micro-batch of the step."""


def prepared_micro_batches(
    task: Task, rows: Sequence[TokenRow], plan: BatchPlan, *, rank: int, steps: Iterable[int]
) -> Iterator[Prepared]:
    """Collate the micro-batches of one rank for these steps: a pure function of its arguments."""
    for step in steps:
        denominator = task.denominator([rows[index] for index in plan.step_rows(step)])
        micro_batches = plan.micro_batches(step)[rank]
        for position, micro_batch in enumerate(micro_batches):
            members = [rows[index] for index in micro_batch.rows]
            batch = collate(members, plan.layout)
            yield Prepared(
                step=step,
                micro_batch=micro_batch,
                batch=batch.pinned() if torch.cuda.is_available() else batch,
                num_tokens=sum(row.num_tokens for row in members),
                denominator=denominator,
                is_last=position + 1 == len(micro_batches),
            )


@dataclass(frozen=True, slots=True)
class _Raised:
    error: Exception


class _End:
    pass


class Ahead(Generic[T]):
    """Iterates over `items`, of which another thread prepares up to `depth` in advance; 0 uses no thread.

    The order is that of `items`. An exception of `items` is raised in place of the next item. Leaving the context ends
    the thread, also if items remain.
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
            # A further call gets the same result instead of an endless wait.
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
