"""Whole tensors on the host, assembled from the parts that ranks hold, with all ranks working at the same time.

Each rank receives a share of the tensors. Its share is a row of elements, cut into buckets. One collective moves the
next bucket of *every* rank: each rank sends to each other one what it holds of that one's bucket, and nothing else. So
the number of collectives depends on bytes and not on tensors, and no rank receives what it does not keep. On a GPU a
bucket is copied to the host while the next one is exchanged. The copy goes through one of two pinned buffers, which
are used again for every bucket and every checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from wrpo_engine.training.backends.base import Item
from wrpo_engine.training.distributed.collectives import Group, peer_errors

BUCKET = 2**25
"""Elements that a rank receives by one collective: 128 MiB in fp32."""

Span = tuple[int, int]
"""[start, stop) of a flattened tensor."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements [start, stop) of a flattened tensor."""

    item: Item
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    def within(self, spans: Mapping[str, Span]) -> list[Piece]:
        """Return the part that a rank with these spans of the parameters holds; empty if it holds none."""
        first, last = spans.get(self.item.name, (0, 0))
        start, stop = max(self.start, first), min(self.stop, last)
        return [Piece(self.item, start, stop)] if start < stop else []


def bucket_of(share: Iterable[tuple[Item, int]], first: int, last: int) -> list[Piece]:
    """Return the pieces between two elements of a row of tensors, which are given with their numbers of elements."""
    pieces = []
    begin = 0
    for item, size in share:
        start, stop = max(first - begin, 0), min(last - begin, size)
        if start < stop:
            pieces.append(Piece(item, start, stop))
        begin += size
    return pieces


class PartialState(Protocol):
    """What one rank holds of weights and moments."""

    def size(self, name: str) -> int:
        """Return the number of elements of a whole parameter."""
        ...

    def spans(self) -> Mapping[str, Span]:
        """Return the elements of each parameter that this rank holds; the same ones of its moments."""
        ...

    def read(self, piece: Piece) -> Tensor:
        """Return elements within this rank's span, flat; they may be a view."""
        ...


class Staging:
    """Copies from the device to the host, through two pinned buffers in turn."""

    def __init__(self) -> None:
        self._buffers = [torch.empty(0), torch.empty(0)]
        self._turn = 0

    def copy(self, values: Tensor) -> Callable[[], Tensor]:
        """Start a copy and return the function that waits for it; its result is valid until the next but one copy."""
        if not values.is_cuda:
            return lambda: values
        self._turn = 1 - self._turn
        buffer = self._buffer(values)
        stream = torch.cuda.Stream(values.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(stream):
            buffer.copy_(values, non_blocking=True)
        values.record_stream(stream)

        def wait() -> Tensor:
            stream.synchronize()
            return buffer

        return wait

    def _buffer(self, values: Tensor) -> Tensor:
        """Return room in the buffer whose turn it is; a larger bucket than before, or another dtype, replaces it."""
        kept = self._buffers[self._turn]
        if kept.numel() < values.numel() or kept.dtype != values.dtype:
            kept = self._buffers[self._turn] = torch.empty(values.numel(), dtype=values.dtype, pin_memory=True)
        return kept[: values.numel()]


@dataclass
class Gatherer:
    """Assembles tensors for the ranks of a group, or, with a group of one rank, copies those of this process."""

    state: PartialState
    group: Group
    device: torch.device
    """Where ranks exchange."""
    bucket: int = BUCKET
    _spans: list[Mapping[str, Span]] = field(default_factory=list, init=False)
    _staging: Staging = field(default_factory=Staging, init=False)

    def gather(self, shares: Sequence[Sequence[Item]], host: Mapping[Item, Tensor]) -> None:
        """Fill this rank's tensors `host` on the CPU; `shares` has every rank's items, the same on all ranks.

        All ranks call this together.
        """
        if not self._spans:
            self._spans = self.group.gather(self.state.spans())
        rows = [[(item, self.state.size(item.name)) for item in share] for share in shares]
        longest = max((sum(size for _, size in row) for row in rows), default=0)
        flat = {item: tensor.view(-1) for item, tensor in host.items()}
        before: Callable[[], None] | None = None
        for index in range(math.ceil(longest / self.bucket)):
            wanted = [bucket_of(row, index * self.bucket, (index + 1) * self.bucket) for row in rows]
            received, values = self._exchange(wanted)
            unpack = _unpacking(received, self._staging.copy(values), flat)
            # The copy of this bucket runs while the one before it is unpacked.
            if before is not None:
                before()
            before = unpack
        if before is not None:
            before()

    def _exchange(self, wanted: Sequence[Sequence[Piece]]) -> tuple[list[Piece], Tensor]:
        """Return the pieces that this rank receives, in order, and their elements."""
        rank = self.group.rank
        outgoing = [[part for piece in pieces for part in piece.within(self._spans[rank])] for pieces in wanted]
        incoming = [[part for piece in wanted[rank] for part in piece.within(spans)] for spans in self._spans]
        sent = [self.state.read(piece) for pieces in outgoing for piece in pieces]
        received = [piece for pieces in incoming for piece in pieces]
        if self.group.world_size == 1:
            return received, torch.cat(sent) if sent else torch.empty(0)
        values = torch.cat([tensor.to(self.device) for tensor in sent]) if sent else torch.empty(0, device=self.device)
        sizes_out, sizes_in = (
            [sum(piece.size for piece in pieces) for pieces in side] for side in (outgoing, incoming)
        )
        result = torch.empty(sum(sizes_in), dtype=torch.float32, device=self.device)
        with peer_errors():
            dist.all_to_all_single(result, values, sizes_in, sizes_out)
        return received, result


def _unpacking(
    pieces: Sequence[Piece], values: Callable[[], Tensor], flat: Mapping[Item, Tensor]
) -> Callable[[], None]:
    def unpack() -> None:
        row = values()
        begin = 0
        for piece in pieces:
            flat[piece.item][piece.start : piece.stop] = row[begin : begin + piece.size]
            begin += piece.size

    return unpack
