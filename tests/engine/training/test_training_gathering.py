"""Gathering of whole tensors: every element arrives once, by few collectives, for any partitions."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support.patience import LIMIT_S
from torch import Tensor

from wrpo_engine.training.backends import gathering
from wrpo_engine.training.backends.base import Item, TensorKind
from wrpo_engine.training.backends.gathering import Gatherer, Piece, Span

CPU = torch.device("cpu")


@dataclass
class Ranks:
    """Ranks as threads that exchange what they send when all have sent it."""

    world_size: int
    collectives: int = 0
    elements_sent: list[int] = field(default_factory=list)
    _sent: dict[int, Any] = field(default_factory=dict)
    _errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._barrier = threading.Barrier(self.world_size, timeout=LIMIT_S)
        self._rank = threading.local()
        self.elements_sent = [0] * self.world_size

    def all(self, value: Any) -> list[Any]:
        self._sent[self._rank.number] = value
        self._barrier.wait()
        values = [self._sent[rank] for rank in range(self.world_size)]
        self._barrier.wait()
        return values

    def all_to_all_single(self, result: Tensor, values: Tensor, into: list[int], out_of: list[int]) -> None:
        rank = self._rank.number
        assert (sum(into), sum(out_of)) == (result.numel(), values.numel())
        self.collectives += rank == 0
        self.elements_sent[rank] += values.numel()
        parts = [parts[rank] for parts in self.all(values.split(out_of))]
        assert [part.numel() for part in parts] == into
        result.copy_(torch.cat(parts))

    def run(self, function: Any) -> None:
        def work(rank: int) -> None:
            self._rank.number = rank
            try:
                function(rank)
            except BaseException as error:  # noqa: BLE001 (raised in the test's thread)
                self._errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]


@dataclass(frozen=True)
class FakeGroup:
    rank: int
    world_size: int
    ranks: Ranks

    def gather(self, value: Any) -> list[Any]:
        return self.ranks.all(value)


@dataclass
class FakeState:
    """The part of known tensors that one rank holds."""

    tensors: Mapping[Item, Tensor]
    own: Mapping[str, Span]

    def size(self, name: str) -> int:
        return self.tensors[Item(name, TensorKind.WEIGHT)].numel()

    def spans(self) -> Mapping[str, Span]:
        return self.own

    def read(self, piece: Piece) -> Tensor:
        start, stop = self.own[piece.item.name]
        assert start <= piece.start < piece.stop <= stop, "a rank reads only what it holds"
        return self.tensors[piece.item].view(-1)[piece.start : piece.stop]


def tensors_of(shapes: Sequence[tuple[int, ...]]) -> dict[Item, Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return {
        Item(f"p{index}", kind): torch.randn(shape, generator=generator)
        for index, shape in enumerate(shapes)
        for kind in TensorKind
    }


def cut_each(sizes: Sequence[int], world_size: int) -> list[dict[str, Span]]:
    """As ZeRO 3: each parameter in equal slices, the last ones short or empty."""
    spans = []
    for rank in range(world_size):
        bounds = [
            (min(math.ceil(n / world_size) * rank, n), min(math.ceil(n / world_size) * (rank + 1), n)) for n in sizes
        ]
        spans.append({f"p{index}": bound for index, bound in enumerate(bounds)})
    return spans


def cut_row(sizes: Sequence[int], world_size: int) -> list[dict[str, Span]]:
    """As ZeRO 1 and 2: the row of all parameters in equal slices, which cut through parameters."""
    width = math.ceil(sum(sizes) / world_size)
    spans: list[dict[str, Span]] = [{} for _ in range(world_size)]
    begin = 0
    for index, size in enumerate(sizes):
        for rank in range(world_size):
            start, stop = max(rank * width - begin, 0), min((rank + 1) * width - begin, size)
            if start < stop:
                spans[rank][f"p{index}"] = (start, stop)
        begin += size
    return spans


def gather_all(
    shapes: Sequence[tuple[int, ...]], world_size: int, bucket: int, cut: Any, monkeypatch: pytest.MonkeyPatch
) -> Ranks:
    tensors, ranks = tensors_of(shapes), Ranks(world_size)
    spans = cut([math.prod(shape) for shape in shapes], world_size)
    items = list(tensors)
    shares = [items[rank::world_size] for rank in range(world_size)]
    monkeypatch.setattr(gathering.dist, "all_to_all_single", ranks.all_to_all_single)

    def work(rank: int) -> None:
        group: Any = FakeGroup(rank, world_size, ranks)
        gatherer = Gatherer(FakeState(tensors, spans[rank]), group, CPU, bucket)
        for _ in range(2):
            host = {item: torch.full_like(tensors[item], torch.nan) for item in shares[rank]}
            gatherer.gather(shares, host)
            assert all(torch.equal(tensor, tensors[item]) for item, tensor in host.items())

    ranks.run(work)
    return ranks


@pytest.mark.parametrize("cut", [cut_each, cut_row])
@pytest.mark.parametrize("seed", range(12))
def test_every_element_arrives_on_the_rank_that_keeps_it(seed: int, cut: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    shapes = [tuple(draw.randint(1, 9) for _ in range(draw.randint(1, 3))) for _ in range(draw.randint(1, 8))]
    world_size = draw.randint(1, 5)
    ranks = gather_all(shapes, world_size, draw.choice([1, 7, 64, 10**6]), cut, monkeypatch)
    # No rank sends more than what it holds, three tensors of each parameter, twice.
    held = [sum(stop - start for start, stop in spans.values()) for spans in cut([*map(math.prod, shapes)], world_size)]
    assert ranks.elements_sent == ([6 * count for count in held] if world_size > 1 else [0])


def test_collectives_grow_with_bytes_and_not_with_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 tensors, one at a time took 300 collectives, each of which every rank received whole."""
    ranks = gather_all([(10,)] * 100, 4, 250, cut_each, monkeypatch)
    # Each of four ranks keeps 750 of 3,000 elements: three buckets, gathered twice.
    assert ranks.collectives == 2 * 3
    assert sum(ranks.elements_sent) == 2 * 3000
    assert gather_all([(1000,)], 4, 250, cut_row, monkeypatch).collectives == 2 * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_buckets_come_through_two_pinned_buffers_that_are_used_again() -> None:
    staging = gathering.Staging()
    places = []
    for index, count in enumerate((1000, 1000, 700, 1000, 3)):
        row = staging.copy(torch.full((count,), float(index), device="cuda"))()
        assert row.is_pinned()
        assert row.tolist() == [float(index)] * count
        places.append(row.data_ptr())
    assert places[0] == places[2] == places[4]
    assert places[1] == places[3] != places[0]
