"""Packed batches of decoder rows, without padding; a prompt that several responses share is computed once.

Rows that begin with the same tokens form a group: first their common tokens, then each row's own. In attention a row's
own tokens see the common ones and themselves, causally, so every hidden state is the one that the row alone would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from wrpo_engine.training.batch.layout import Family

MIN_SHARED_TOKENS = 8
"""Fewer common tokens than this are not worth a separate segment."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows (indices) whose first `shared` tokens are the same."""

    rows: tuple[int, ...]
    shared: int
    tokens: int
    """Tokens that are computed for it."""


@dataclass(frozen=True, slots=True)
class Packing:
    """A packed row of T tokens."""

    ids: list[int]
    positions: list[int]
    """[T], each token's position in its own row."""
    families: tuple[Family, ...]
    """Who sees whom."""
    places: list[tuple[int, int, int]]
    """For each row in turn: where its shared tokens begin, how many there are, where its own begin."""

    def place(self, row: int, position: int) -> int:
        """Return where in the packed row a row's token is."""
        shared_start, shared, own_start = self.places[row]
        return shared_start + position if position < shared else own_start + position - shared


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens all rows have in common, leaving each row at least one own token."""
    limit = min(len(row) for row in rows) - 1
    first = rows[0]
    for position in range(limit):
        token = first[position]
        if any(row[position] != token for row in rows[1:]):
            return position
    return max(limit, 0)


def group_rows(rows: Sequence[Sequence[int]], keys: Sequence[object], budget: int) -> list[Group]:
    """Group neighbours of one key (the prompt) by the tokens with which they all begin.

    A group of more than `budget` tokens is split, each piece with the common tokens again.
    """
    groups: list[Group] = []
    start = 0
    while start < len(rows):
        end = start + 1
        while end < len(rows) and keys[end] == keys[start]:
            end += 1
        members = rows[start:end]
        shared = shared_prefix(members) if end - start > 1 else 0
        if shared >= MIN_SHARED_TOKENS:
            groups.extend(_split(rows, range(start, end), shared, budget))
        else:
            groups.extend(Group((index,), 0, len(rows[index])) for index in range(start, end))
        start = end
    return groups


def _split(rows: Sequence[Sequence[int]], members: Iterable[int], shared: int, budget: int) -> Iterator[Group]:
    piece: list[int] = []
    tokens = shared
    for index in members:
        own = len(rows[index]) - shared
        if piece and tokens + own > budget:
            yield Group(tuple(piece), shared, tokens)
            piece, tokens = [], shared
        piece.append(index)
        tokens += own
    yield Group(tuple(piece), shared, tokens)


def group_batches(groups: Sequence[Group], budget: int) -> Iterator[list[Group]]:
    """Fill batches of at most `budget` tokens in order, largest groups first; a larger group is its own batch."""
    order = sorted(range(len(groups)), key=lambda index: (-groups[index].tokens, index))
    batch: list[Group] = []
    used = 0
    for index in order:
        group = groups[index]
        if batch and used + group.tokens > budget:
            yield batch
            batch, used = [], 0
        batch.append(group)
        used += group.tokens
    if batch:
        yield batch


def pack(rows: Sequence[Sequence[int]], groups: Sequence[Group]) -> Packing:
    """Lay the groups' rows out; `places` follows the order of the rows in the groups."""
    ids: list[int] = []
    positions: list[int] = []
    families: list[Family] = []
    places: list[tuple[int, int, int]] = []
    for group in groups:
        start = len(ids)
        if not group.shared:
            row = rows[group.rows[0]]
            ids.extend(row)
            positions.extend(range(len(row)))
            families.append(Family((start, len(ids))))
            places.append((start, 0, start))
            continue
        ids.extend(rows[group.rows[0]][: group.shared])
        positions.extend(range(group.shared))
        prefix = (start, len(ids))
        branches = []
        for index in group.rows:
            own_start = len(ids)
            ids.extend(rows[index][group.shared :])
            positions.extend(range(group.shared, len(rows[index])))
            branches.append((own_start, len(ids)))
            places.append((start, group.shared, own_start))
        families.append(Family(prefix, tuple(branches)))
    return Packing(ids, positions, tuple(families), places)
