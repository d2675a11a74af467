"""Batches hold every row once, within the budget and almost without padding; packed rows lose nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.scoring.batching import MAX_PADDING_SHARE, prefetched, token_batches
from wrpo_engine.scoring.packed import MIN_SHARED_TOKENS, group_batches, group_rows, pack

LENGTHS = st.lists(st.integers(1, 300), max_size=60)
ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=12)), min_size=1, max_size=12
)


@given(lengths=LENGTHS, budget=st.integers(1, 2000))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(token_batches(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


@given(lengths=LENGTHS, budget=st.integers(1, 2000))
def test_at_most_a_tenth_is_padding(lengths: list[int], budget: int) -> None:
    for batch in token_batches(lengths, budget):
        padded = len(batch) * max(lengths[index] for index in batch)
        real = sum(lengths[index] for index in batch)
        assert padded - real <= MAX_PADDING_SHARE * padded + 1e-9


def test_rows_of_one_length_fill_the_budget() -> None:
    assert [len(batch) for batch in token_batches([10] * 25, 100)] == [10, 10, 5]


@given(drawn=ROWS, budget=st.integers(1, 60))
def test_packed_rows_can_be_read_back_token_by_token(drawn: list[tuple[int, list[int]]], budget: int) -> None:
    drawn = sorted(drawn, key=lambda item: item[0])
    prefixes = {key: [key] * (MIN_SHARED_TOKENS + key) for key in range(4)}
    rows = [prefixes[key] + tail for key, tail in drawn]
    groups = group_rows(rows, [key for key, _ in drawn], budget)
    seen: list[int] = []
    for batch in group_batches(groups, budget):
        packing = pack(rows, batch)
        assert len(batch) == len(batch[0].rows) == 1 or len(packing.ids) <= budget
        assert packing.families[-1].stop == len(packing.ids)
        indices = [index for group in batch for index in group.rows]
        seen += indices
        for place, index in enumerate(indices):
            where = [packing.place(place, position) for position in range(len(rows[index]))]
            assert [packing.ids[at] for at in where] == rows[index]
            assert [packing.positions[at] for at in where] == list(range(len(rows[index])))
    assert sorted(seen) == list(range(len(rows)))


def test_five_responses_to_one_prompt_compute_it_once() -> None:
    rows = [[1] * 100 + [10 + index] * 20 for index in range(5)]
    (group,) = group_rows(rows, ["p"] * 5, 1000)
    assert (group.shared, group.tokens) == (100, 100 + 5 * 20)
    packing = pack(rows, [group])
    assert packing.families[0].prefix == (0, 100)
    assert packing.families[0].branches == ((100, 120), (120, 140), (140, 160), (160, 180), (180, 200))


def test_a_prompt_with_more_responses_than_the_budget_holds_is_split() -> None:
    rows = [[1] * 100 + [10 + index] * 20 for index in range(5)]
    groups = group_rows(rows, ["p"] * 5, 150)
    assert [group.rows for group in groups] == [(0, 1), (2, 3), (4,)]
    assert [group.tokens for group in groups] == [140, 140, 120]


def test_prompts_that_only_look_alike_share_nothing() -> None:
    rows = [[1] * 50, [1] * 50]
    assert [group.shared for group in group_rows(rows, ["p", "q"], 1000)] == [0, 0]


def test_what_fails_in_the_preparing_thread_is_raised_where_it_is_used() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("third row")

    items = prefetched(broken, 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="third row"):
        next(items)


def test_an_abandoned_consumer_ends_the_preparing_thread() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 0

    items = prefetched(endless, 2)
    assert next(items) == 0
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
