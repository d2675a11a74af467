"""The data order: every row once an epoch, all ranks in step, whatever the lengths."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.training.batching import BatchPlan, MicroBatch, RowCost, pack, plan_step


def plan(num_rows: int, **changes: object) -> BatchPlan:
    costs = [RowCost(10 + index * 7 % 30, 3) for index in range(num_rows)]
    settings: dict[str, object] = {
        "costs": costs,
        "global_batch_size": 4,
        "epochs": 1,
        "seed": 42,
        "world_size": 2,
        "micro_batch_tokens": 200,
    }
    return BatchPlan(**{**settings, **changes})  # type: ignore[arg-type]


def test_the_last_step_of_an_epoch_takes_what_is_left() -> None:
    made = plan(11, epochs=2)
    assert [len(made.step_rows(step)) for step in range(made.num_steps)] == [4, 4, 3, 4, 4, 3]


def test_fewer_rows_than_a_global_batch_are_one_step_an_epoch() -> None:
    made = plan(3, global_batch_size=128, epochs=2)
    assert made.num_steps == 2
    assert sorted(made.step_rows(0)) == sorted(made.step_rows(1)) == [0, 1, 2]


def test_epochs_are_shuffled_differently_and_the_same_in_every_run() -> None:
    made, again = plan(11, epochs=2), plan(11, epochs=2, world_size=5, micro_batch_tokens=1)
    assert made.epoch_order(0) != made.epoch_order(1)
    assert made.epoch_order(0) == again.epoch_order(0) == [4, 8, 10, 1, 9, 3, 6, 0, 7, 2, 5]


def test_without_shuffling_rows_keep_their_order() -> None:
    made = plan(6, shuffle=False, global_batch_size=3)
    assert [made.step_rows(0), made.step_rows(1)] == [[0, 1, 2], [3, 4, 5]]


def test_a_rank_without_rows_computes_a_filler_of_no_weight() -> None:
    costs = [RowCost(10, 3), RowCost(4, 3)]
    first, second, third = plan_step([0, 1], costs, world_size=3, micro_batch_tokens=100)
    assert (first, second) == ([MicroBatch((0,))], [MicroBatch((1,))])
    assert third == [MicroBatch((1,), is_filler=True)]


def test_micro_batches_bound_padded_tokens_not_real_ones() -> None:
    costs = [RowCost(100, 1), RowCost(10, 1), RowCost(10, 1)]
    assert pack([0, 1, 2], costs, max_tokens=200, max_rows=None) == [[0, 1], [2]]


def test_a_row_above_the_bound_is_computed_alone() -> None:
    costs = [RowCost(500, 3), RowCost(10, 3)]
    assert pack([0, 1], costs, max_tokens=200, max_rows=None) == [[0], [1]]


def test_a_fixed_number_of_rows_replaces_the_token_bound() -> None:
    costs = [RowCost(500, 3)] * 5
    assert pack([0, 1, 2, 3, 4], costs, max_tokens=1, max_rows=2) == [[0, 1], [2, 3], [4]]


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    world_size=st.integers(1, 6),
    batch=st.integers(1, 16),
    tokens=st.integers(1, 2000),
    seed=st.integers(0, 5),
)
def test_every_row_is_trained_once_an_epoch_and_ranks_take_equally_many_micro_steps(
    lengths: list[int], world_size: int, batch: int, tokens: int, seed: int
) -> None:
    made = BatchPlan([RowCost(length, 3) for length in lengths], batch, 2, seed, world_size, tokens)
    assert made.num_steps >= 2
    seen: Counter[int] = Counter()
    for step in range(made.num_steps):
        ranks = made.micro_batches(step)
        assert len({len(batches) for batches in ranks}) == 1
        real = [row for batches in ranks for one in batches if not one.is_filler for row in one.rows]
        assert sorted(real) == sorted(made.step_rows(step))
        for one in (one for batches in ranks for one in batches if len(one.rows) > 1):
            assert max(lengths[row] for row in one.rows) * 3 * len(one.rows) <= tokens
        seen.update(real)
    assert seen == dict.fromkeys(range(len(lengths)), 2)
