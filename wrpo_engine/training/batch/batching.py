"""Batch plan: the rows of every step, rank and micro-batch, as pure functions of lengths, seed and world size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapreplace
from itertools import pairwise
from typing import Any

import numpy as np

from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow


@dataclass(frozen=True, slots=True)
class RowCost:
    """The lengths of a row, which determine its cost."""

    prompt: int
    """Tokens of the prompt."""
    responses: tuple[int, ...]
    """Tokens of every response."""
    loss_tokens: int = 0
    """Tokens with loss in all sequences."""

    @classmethod
    def of(cls, row: TokenRow) -> RowCost:
        """Return the lengths of a row."""
        return cls(len(row.prompt), tuple(len(response) for response in row.responses), row.num_loss_tokens)

    @property
    def longest(self) -> int:
        """Computed tokens of the longest sequence; the last token of a response predicts nothing."""
        return self.prompt + max(self.responses) - 1

    def tokens(self, layout: Layout) -> int:
        """Return the tokens that a forward pass computes for this row alone."""
        match layout:
            case Layout.SHARED_PREFIX:
                return self.prompt + sum(self.responses) - len(self.responses)
            case Layout.PACKED:
                return (self.prompt - 1) * len(self.responses) + sum(self.responses)
            case Layout.PADDED:
                return self.longest * len(self.responses)

    def attended_pairs(self, layout: Layout) -> int:
        """Return the number of (query, key) pairs that attention computes for this row alone."""
        branches = [response - 1 for response in self.responses]
        match layout:
            case Layout.SHARED_PREFIX:
                return _causal(self.prompt) + sum(self.prompt * branch + _causal(branch) for branch in branches)
            case Layout.PACKED:
                return sum(_causal(self.prompt + branch) for branch in branches)
            case Layout.PADDED:
                return len(branches) * _causal(self.longest)


def _causal(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


@dataclass(frozen=True, slots=True)
class WorkModel:
    """The cost of a row, in units of one token's forward pass through the decoder's linear layers.

    It is only as exact as balancing needs: ranks and micro-steps of equal cost wait little for each other.
    """

    pairs_per_token: float = 24576.0
    """Attended pairs that cost as much as one token: 6 hidden sizes. A token takes 24 D^2 operations in attention's
    projections and a gated feed-forward of 8/3 D, a pair takes 4 D."""
    loss_token: float = 0.06
    """Cost of a token's logits: the head's weights over the decoder's. The defaults are those of an 8B model."""

    @classmethod
    def of_config(cls, config: Any) -> WorkModel:
        """Return the model of a Hugging Face config's sizes; the defaults if the config lacks one of them."""
        hidden, layers, vocabulary = (
            getattr(config, name, None) or 0 for name in ("hidden_size", "num_hidden_layers", "vocab_size")
        )
        if not (hidden and layers and vocabulary):
            return cls()
        return cls(pairs_per_token=6.0 * hidden, loss_token=vocabulary / (12.0 * hidden * layers))

    def of_row(self, cost: RowCost, layout: Layout) -> float:
        """Return the cost of a row in the given layout."""
        return (
            cost.tokens(layout)
            + cost.attended_pairs(layout) / self.pairs_per_token
            + cost.loss_tokens * self.loss_token
        )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward pass of one rank."""

    rows: tuple[int, ...]
    """Indices of the rows."""
    is_filler: bool = False
    """True if it is computed only because collectives need all ranks; its weight is 0."""


@dataclass(frozen=True)
class BatchPlan:
    """The data order of a whole run.

    Every epoch is a permutation of all rows that depends on (seed, epoch) alone. It is split into steps of
    `global_batch_size`; the last step of an epoch takes the remaining rows. With fewer rows than a global batch, each
    epoch is one step.
    """

    costs: Sequence[RowCost]
    global_batch_size: int
    epochs: int
    seed: int
    world_size: int
    micro_batch_tokens: int
    """Maximum tokens of a forward pass, padding included; a single row may exceed it."""
    micro_batch_rows: int | None = None
    """Fixed number of rows instead of the maximum tokens."""
    shuffle: bool = True
    layout: Layout = Layout.PADDED
    work: WorkModel = WorkModel()

    def __post_init__(self) -> None:
        if not self.costs:
            raise ValueError("a plan needs at least one row")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return -(-len(self.costs) // self.global_batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.steps_per_epoch * self.epochs

    def epoch_order(self, epoch: int) -> Sequence[int]:
        """Return the indices of all rows in the order of an epoch, counted from 0."""
        return permutation(self.seed, epoch, len(self.costs)) if self.shuffle else range(len(self.costs))

    def step_rows(self, step: int) -> list[int]:
        """Return the indices of the rows of a step's global batch; steps are counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch_size
        return list(self.epoch_order(epoch)[start : start + self.global_batch_size])

    def micro_batches(self, step: int) -> list[list[MicroBatch]]:
        """Return the micro-batches of the step by rank; all ranks have the same number."""
        split = StepSplit(
            world_size=self.world_size,
            micro_batch_tokens=self.micro_batch_tokens,
            micro_batch_rows=self.micro_batch_rows,
            layout=self.layout,
            work=self.work,
        )
        return split.of(self.step_rows(step), self.costs)


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_rows: int) -> tuple[int, ...]:
    """Return an epoch's order; it is cached, because each of its steps takes a slice of it.

    The prefetching thread may be one epoch ahead of the loop.
    """
    # numpy keeps PCG64 with SeedSequence stable over versions, but not Generator.permutation. Sorting random keys
    # depends on the raw stream only.
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_rows)
    return tuple(np.argsort(keys, kind="stable").tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSplit:
    """How a step's rows are split among ranks and micro-batches; see `BatchPlan` for the fields."""

    world_size: int
    micro_batch_tokens: int
    micro_batch_rows: int | None = None
    layout: Layout = Layout.PADDED
    work: WorkModel = WorkModel()

    def of(self, rows: Sequence[int], costs: Sequence[RowCost]) -> list[list[MicroBatch]]:
        """Return every rank's micro-batches, the costliest first; ranks with fewer get fillers of the cheapest row.

        Micro-batches are ordered by work and assigned to the ranks in turn. So the ranks' micro-batches at the same
        position differ little in work, as do the ranks' sums: at most as much as the costliest and the cheapest one.
        """
        works = {row: self.work.of_row(costs[row], self.layout) for row in rows}
        costliest_first = sorted(rows, key=lambda row: (-works[row], row))
        if self.micro_batch_rows is not None:
            made = _by_count(costliest_first, self.micro_batch_rows, self.world_size)
        elif self.layout is Layout.PADDED:
            made = _by_width(rows, costs, self.micro_batch_tokens, self.world_size)
        else:
            tokens = {row: costs[row].tokens(self.layout) for row in rows}
            made = _by_work(
                costliest_first, works, tokens, max_tokens=self.micro_batch_tokens, multiple=self.world_size
            )
        made.sort(key=lambda batch: (-sum(works[row] for row in batch), batch))
        batches = [MicroBatch(tuple(sorted(batch))) for batch in made]
        filler = MicroBatch((costliest_first[-1],), is_filler=True)
        batches += [filler] * (-len(batches) % self.world_size)
        return [batches[rank :: self.world_size] for rank in range(self.world_size)]


def _by_work(
    costliest_first: Sequence[int],
    works: dict[int, float],
    tokens: dict[int, int],
    *,
    max_tokens: int,
    multiple: int,
) -> list[list[int]]:
    """Return as few micro-batches as `max_tokens` allows, with work that differs by at most the costliest row's.

    Every row is assigned to the micro-batch with the least work so far. If its tokens do not fit there, all rows are
    redistributed to more micro-batches, instead of adding this row to a fuller one. That keeps the difference within
    one row.
    """
    enough_for_all = -(-len(costliest_first) // multiple)
    count = multiple * min(enough_for_all, max(1, -(-sum(tokens.values()) // (max_tokens * multiple))))
    while True:
        batches: list[list[int]] = [[] for _ in range(count)]
        heap = [(0.0, place, 0) for place in range(count)]
        for row in costliest_first:
            load, place, used = heap[0]
            if batches[place] and used + tokens[row] > max_tokens:
                break
            batches[place].append(row)
            heapreplace(heap, (load + works[row], place, used + tokens[row]))
        else:
            return [batch for batch in batches if batch]
        count += multiple


def _by_count(costliest_first: Sequence[int], size: int, multiple: int) -> list[list[int]]:
    """Return micro-batches of `size` rows of similar work, or of fewer rows if that avoids fillers."""
    count = -(-len(costliest_first) // size)
    count = min(count + -count % multiple, len(costliest_first))
    bounds = [len(costliest_first) * place // count for place in range(count + 1)]
    return [list(costliest_first[start:stop]) for start, stop in pairwise(bounds)]


def _by_width(rows: Sequence[int], costs: Sequence[RowCost], max_tokens: int, multiple: int) -> list[list[int]]:
    """Split rows, ordered by length, into micro-batches of at most `max_tokens` with padding."""
    longest_first = sorted(rows, key=lambda row: (-costs[row].longest, row))
    packed: list[list[int]] = []
    sequences = 0
    for row in longest_first:
        more = sequences + len(costs[row].responses)
        if packed and costs[packed[-1][0]].longest * more <= max_tokens:
            packed[-1].append(row)
            sequences = more
        else:
            packed.append([row])
            sequences = len(costs[row].responses)
    while len(packed) % multiple and max(map(len, packed)) > 1:
        widest = max(packed, key=lambda batch: (len(batch), batch))
        packed.remove(widest)
        packed += [widest[: len(widest) // 2], widest[len(widest) // 2 :]]
    return packed
