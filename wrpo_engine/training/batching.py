"""Which rows form which step, rank and micro-batch: pure functions of the lengths, the seed and the world size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wrpo_engine.training.rows import TokenRow


@dataclass(frozen=True, slots=True)
class RowCost:
    """What a row costs, known without its tokens."""

    longest: int
    """Tokens of its longest sequence."""
    num_sequences: int

    @classmethod
    def of(cls, row: TokenRow) -> RowCost:
        return cls(max(row.sequence_lengths), len(row.responses))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one forward pass of one rank."""

    rows: tuple[int, ...]
    is_filler: bool = False
    """True: computed only because the other ranks still compute (collectives need all ranks); weighs nothing."""


@dataclass(frozen=True)
class BatchPlan:
    """The whole run's data order.

    Every epoch is a permutation of all rows that depends on (seed, epoch) alone, cut into steps of `global_batch_size`;
    the last step of an epoch takes what is left. If there are fewer rows than a global batch, each epoch is one step.
    """

    costs: Sequence[RowCost]
    global_batch_size: int
    epochs: int
    seed: int
    world_size: int
    micro_batch_tokens: int
    """Bound of the padded tokens of a forward pass; a single row may exceed it."""
    micro_batch_rows: int | None = None
    """Fixed number of rows instead of the token bound."""
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not self.costs:
            raise ValueError("a plan needs at least one row")

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.costs) // self.global_batch_size)

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def epoch_order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.costs)))
        # PCG64 through SeedSequence is stable over numpy versions; Generator.permutation is not promised to be,
        # sorting random keys depends on the raw stream only.
        keys = np.random.PCG64(np.random.SeedSequence([self.seed, epoch])).random_raw(len(self.costs))
        return [int(index) for index in np.argsort(keys, kind="stable")]

    def step_rows(self, step: int) -> list[int]:
        """Return the rows of a step's global batch, step counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch_size
        return self.epoch_order(epoch)[start : start + self.global_batch_size]

    def micro_batches(self, step: int) -> list[list[MicroBatch]]:
        """Return for every rank its micro-batches of the step: every rank has as many as every other."""
        return plan_step(
            self.step_rows(step),
            self.costs,
            world_size=self.world_size,
            micro_batch_tokens=self.micro_batch_tokens,
            micro_batch_rows=self.micro_batch_rows,
        )


def balance(rows: Sequence[int], costs: Sequence[RowCost], world_size: int) -> list[list[int]]:
    """Give every rank about the same work: longest rows first, each to the rank with the least so far."""
    loads = [0] * world_size
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for row in sorted(rows, key=lambda index: (-costs[index].longest * costs[index].num_sequences, index)):
        rank = min(range(world_size), key=lambda candidate: (loads[candidate], len(shares[candidate]), candidate))
        loads[rank] += costs[row].longest * costs[row].num_sequences
        shares[rank].append(row)
    return shares


def pack(rows: Sequence[int], costs: Sequence[RowCost], *, max_tokens: int, max_rows: int | None) -> list[list[int]]:
    """Cut rows, ordered by length, into micro-batches whose padded size stays within the bound."""
    packed: list[list[int]] = []
    width = sequences = 0
    for row in rows:
        cost = costs[row]
        wider, more = max(width, cost.longest), sequences + cost.num_sequences
        fits = wider * more <= max_tokens if max_rows is None else bool(packed) and len(packed[-1]) < max_rows
        if packed and fits:
            packed[-1].append(row)
            width, sequences = wider, more
        else:
            packed.append([row])
            width, sequences = cost.longest, cost.num_sequences
    return packed


def plan_step(
    rows: Sequence[int],
    costs: Sequence[RowCost],
    *,
    world_size: int,
    micro_batch_tokens: int,
    micro_batch_rows: int | None = None,
) -> list[list[MicroBatch]]:
    """Return every rank's micro-batches; ranks with fewer get fillers of the cheapest row."""
    packed = [
        pack(share, costs, max_tokens=micro_batch_tokens, max_rows=micro_batch_rows)
        for share in balance(rows, costs, world_size)
    ]
    count = max(len(batches) for batches in packed)
    cheapest = min(rows, key=lambda index: (costs[index].longest * costs[index].num_sequences, index))
    filler = MicroBatch((cheapest,), is_filler=True)
    return [[MicroBatch(tuple(batch)) for batch in batches] + [filler] * (count - len(batches)) for batches in packed]
