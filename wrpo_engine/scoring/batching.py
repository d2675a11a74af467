"""Batches by a budget of tokens, and the thread that prepares them ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

MAX_PADDING_SHARE = 0.1
"""Of the tokens of a batch, padding included."""

T = TypeVar("T")


def token_batches(
    lengths: Sequence[int], budget: int, max_padding_share: float = MAX_PADDING_SHARE
) -> Iterator[list[int]]:
    """Group indices by length, longest first, so that the padded rows of a batch hold at most `budget` tokens.

    A batch ends early where the next row would raise the share of padding in it above `max_padding_share`, so the
    share over all batches is below it too. A row longer than the budget is a separate batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        width = lengths[order[start]]
        end, tokens = start + 1, width
        while end < len(order):
            padded = (end + 1 - start) * width
            longer = tokens + lengths[order[end]]
            if padded > budget or padded - longer > max_padding_share * padded:
                break
            end, tokens = end + 1, longer
        yield order[start:end]
        start = end


_END = object()


def prefetched(make: Callable[[], Iterator[T]], depth: int) -> Generator[T]:
    """Yield what `make()` yields, made up to `depth` items ahead by another thread; its errors are raised here."""
    ready: queue.Queue[object] = queue.Queue(maxsize=max(1, depth))
    stopped = threading.Event()
    errors: list[BaseException] = []

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in make():
                if not put(item):
                    return
        except BaseException as error:  # noqa: BLE001 (handed to the consumer, which raises it)
            errors.append(error)
        put(_END)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            yield item  # type: ignore[misc]
        if errors:
            raise errors[0]
    finally:
        stopped.set()
        thread.join()
