"""Prefetching: the same micro-batches in order, and no thread left over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from support.patience import LIMIT_S
from torch import Tensor

from wrpo_engine.training.batch.collate import Batch
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.data.prefetch import Ahead, prepared_micro_batches

DEPTHS = [0, 1, 2, 7]


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_items_come_in_their_order_and_end_once(depth: int) -> None:
    with Ahead(iter(range(20)), depth) as ahead:
        assert list(ahead) == list(range(20))
        assert list(ahead) == []
    assert prefetch_threads() == []


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_exception_surfaces_where_its_item_would_have_been_taken(depth: int) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("row 7")

    with Ahead(items(), depth) as ahead:
        assert next(ahead) == 1
        with pytest.raises(KeyError, match="row 7"):
            next(ahead)
    assert prefetch_threads() == []


def test_leaving_early_ends_the_thread_though_the_queue_is_full() -> None:
    made: list[int] = []
    full = threading.Event()

    def items() -> Iterator[int]:
        for index in range(1000):
            made.append(index)
            if index == 3:
                full.set()
            yield index

    with Ahead(items(), 2) as ahead:
        assert next(ahead) == 0
        assert full.wait(LIMIT_S)
    assert prefetch_threads() == []
    assert len(made) == 4, "one taken, two waiting, one in hand"


def test_training_is_the_same_however_much_is_made_ahead(local_run: Any) -> None:
    runs = [local_run(f"depth-{depth}", run={"prefetch": depth}) for depth in (0, 3)]
    for run in runs:
        run.run()
    assert runs[0].metrics() == runs[1].metrics()


@pytest.mark.parametrize("layout", Layout)
def test_with_a_gpu_all_that_it_needs_is_pinned_ahead_and_comes_by_copies_that_wait_for_nothing(
    layout: Layout, local_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = local_run(run={"layout": layout})
    pinned: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    batch = next(prepared_micro_batches(run.task(), run.token_rows(), run.plan(), rank=0, steps=range(1))).batch
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in tensors_of(batch)}
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in tensors_of(moved)} == {"meta"}
    assert len(tensors_of(moved)) == len(pinned) == (5 if layout is Layout.PADDED else 7)


def tensors_of(batch: Batch) -> list[Tensor]:
    values = [getattr(batch, entry.name) for entry in fields(batch)]
    if batch.plan is not None:
        values += [batch.plan.positions_T, batch.plan.owners()]
    return [value for value in values if isinstance(value, Tensor)]


def test_the_stream_of_a_resumed_run_is_the_rest_of_the_whole_runs(local_run: Any) -> None:
    run = local_run()
    plan, task, rows = run.plan(), run.task(), run.token_rows()

    def stream(first: int) -> list[tuple[Any, ...]]:
        items = prepared_micro_batches(task, rows, plan, rank=0, steps=range(first, plan.num_steps))
        return [(item.step, item.micro_batch, item.batch.row_ids, item.denominator, item.is_last) for item in items]

    assert stream(2) == [entry for entry in stream(0) if entry[0] >= 2]
