"""The data order: every row once per epoch, equal numbers of steps, balanced ranks, for any lengths."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.training.batch.batching import BatchPlan, MicroBatch, RowCost, StepSplit, WorkModel, permutation
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow

ROW_SHARING = (Layout.SHARED_PREFIX, Layout.PACKED)


def plan(num_rows: int, **changes: object) -> BatchPlan:
    costs = [RowCost(5, (3, 5 + index * 7 % 30, 2), 10) for index in range(num_rows)]
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
    assert made.epoch_order(0) == again.epoch_order(0) == (4, 8, 10, 1, 9, 3, 6, 0, 7, 2, 5)


def test_an_epoch_is_shuffled_once_for_all_of_its_steps() -> None:
    permutation.cache_clear()
    made = plan(11, epochs=3, global_batch_size=2)
    steps = [made.step_rows(step) for step in range(made.num_steps)]
    assert permutation.cache_info().misses == 3
    assert steps == [made.step_rows(step) for step in range(made.num_steps)]
    other = plan(11, epochs=3, global_batch_size=2, seed=made.seed + 1)
    assert other.step_rows(0) != steps[0]
    for epoch in range(9):
        made.epoch_order(epoch)
    assert permutation.cache_info().currsize == permutation.cache_info().maxsize == 4


def test_without_shuffling_rows_keep_their_order() -> None:
    made = plan(6, shuffle=False, global_batch_size=3)
    assert [made.step_rows(0), made.step_rows(1)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("layout", Layout)
def test_a_rank_without_rows_computes_a_filler_of_no_weight(layout: Layout) -> None:
    costs = [RowCost(10, (4, 4, 4), 12), RowCost(4, (2, 2, 2), 6)]
    first, second, third = StepSplit(world_size=3, micro_batch_tokens=100, layout=layout).of([0, 1], costs)
    assert (first, second) == ([MicroBatch((0,))], [MicroBatch((1,))])
    assert third == [MicroBatch((1,), is_filler=True)]


def single(*lengths: int) -> list[RowCost]:
    """Rows of one response, so many tokens computed each."""
    return [RowCost(length, (1,), 1) for length in lengths]


def test_padded_micro_batches_bound_padded_tokens_not_real_ones() -> None:
    (made,) = StepSplit(world_size=1, micro_batch_tokens=200).of([0, 1, 2], single(100, 10, 10))
    assert made == [MicroBatch((0, 1)), MicroBatch((2,))]


def test_packed_micro_batches_bound_the_tokens_of_their_layout() -> None:
    (made,) = StepSplit(world_size=1, micro_batch_tokens=200, layout=Layout.PACKED).of([0, 1, 2], single(100, 50, 50))
    assert made == [MicroBatch((0, 1, 2))]


def test_a_shared_prompt_counts_once_against_the_bound() -> None:
    cost = RowCost(100, (11, 21, 31), 63)
    assert [cost.tokens(layout) for layout in Layout] == [160, 360, 390]


def test_padded_rows_are_split_further_where_that_spares_a_rank_a_filler() -> None:
    made = StepSplit(world_size=2, micro_batch_tokens=1000).of([0, 1, 2, 3], single(9, 8, 7, 6))
    assert made == [[MicroBatch((0, 1))], [MicroBatch((2, 3))]]


@pytest.mark.parametrize("layout", Layout)
def test_a_row_above_the_bound_is_computed_alone(layout: Layout) -> None:
    (made,) = StepSplit(world_size=1, micro_batch_tokens=200, layout=layout).of([0, 1], single(500, 10))
    assert made == [MicroBatch((0,)), MicroBatch((1,))]


@pytest.mark.parametrize("layout", Layout)
def test_a_fixed_number_of_rows_replaces_the_token_bound(layout: Layout) -> None:
    costs = single(500, 400, 300, 20, 10)
    (made,) = StepSplit(world_size=1, micro_batch_tokens=1, micro_batch_rows=2, layout=layout).of(range(5), costs)
    assert sorted(len(one.rows) for one in made) == [1, 2, 2]
    ranks = StepSplit(world_size=2, micro_batch_tokens=1, micro_batch_rows=2, layout=layout).of(range(5), costs)
    assert ranks == [[MicroBatch((0,)), MicroBatch((2,))], [MicroBatch((1,)), MicroBatch((3, 4))]]


@pytest.mark.parametrize("layout", Layout)
def test_the_tokens_that_are_planned_are_those_that_are_computed(layout: Layout) -> None:
    row = TokenRow("a", (5, 6, 7), ((8, 9, 1), (1,), (8, 1)))
    assert collate([row], layout).num_computed_tokens == RowCost.of(row).tokens(layout)


def test_attended_pairs_count_what_each_layout_computes() -> None:
    cost = RowCost(2, (3, 2), 5)
    # Causal over 2; 2 x (1 + 2) and 1 x 2 towards the prefix with the causal pairs of 2 and 1 tokens. Whole sequences:
    # causal over 4 and 3. Padded: twice 4.
    assert [cost.attended_pairs(layout) for layout in Layout] == [3 + 4 + 3 + 2 + 1, 10 + 6, 20]


def test_work_weighs_attention_and_logits_by_the_models_sizes() -> None:
    config = SimpleNamespace(hidden_size=100, num_hidden_layers=10, vocab_size=24000)
    work = WorkModel.of_config(config)
    assert work == WorkModel(pairs_per_token=600.0, loss_token=2.0)
    cost = RowCost(600, (1,), 3)
    assert work.of_row(cost, Layout.PACKED) == pytest.approx(600 + 601 / 2 + 6)
    assert WorkModel.of_config(SimpleNamespace()) == WorkModel()


row_costs = st.lists(
    st.builds(
        lambda prompt, responses: RowCost(prompt, tuple(responses), sum(responses)),
        st.integers(1, 300),
        st.lists(st.integers(1, 300), min_size=3, max_size=3),
    ),
    min_size=1,
    max_size=40,
)


@given(
    costs=row_costs,
    world_size=st.integers(1, 6),
    batch=st.integers(1, 16),
    tokens=st.integers(1, 4000),
    seed=st.integers(0, 5),
    layout=st.sampled_from(Layout),
    fixed=st.none() | st.integers(1, 5),
)
def test_every_row_is_trained_once_an_epoch_and_ranks_take_equally_many_micro_steps(
    costs: list[RowCost], world_size: int, batch: int, tokens: int, seed: int, layout: Layout, fixed: int | None
) -> None:
    made = BatchPlan(costs, batch, 2, seed, world_size, tokens, micro_batch_rows=fixed, layout=layout)
    seen: Counter[int] = Counter()
    for step in range(made.num_steps):
        ranks = made.micro_batches(step)
        assert len({len(batches) for batches in ranks}) == 1
        real = [one for batches in ranks for one in batches if not one.is_filler]
        rows = [row for one in real for row in one.rows]
        assert sorted(rows) == sorted(made.step_rows(step))
        seen.update(rows)
        for one in (one for one in real if len(one.rows) > 1):
            assert _is_within_bound([costs[row] for row in one.rows], layout, tokens, fixed)
        assert made.micro_batches(step) == ranks
    assert seen == dict.fromkeys(range(len(costs)), 2)


def _is_within_bound(costs: list[RowCost], layout: Layout, tokens: int, fixed: int | None) -> bool:
    if fixed is not None:
        return len(costs) <= fixed
    if layout is Layout.PADDED:
        return max(cost.longest for cost in costs) * 3 * len(costs) <= tokens
    return sum(cost.tokens(layout) for cost in costs) <= tokens


@given(
    costs=row_costs,
    world_size=st.integers(1, 6),
    tokens=st.integers(1, 4000),
    layout=st.sampled_from(ROW_SHARING),
)
def test_ranks_and_micro_steps_differ_by_no_more_than_the_costliest_row(
    costs: list[RowCost], world_size: int, tokens: int, layout: Layout
) -> None:
    work = WorkModel(pairs_per_token=600.0, loss_token=1.0)
    split = StepSplit(world_size=world_size, micro_batch_tokens=tokens, layout=layout, work=work)
    ranks = split.of(range(len(costs)), costs)

    def load(one: MicroBatch) -> float:
        return 0.0 if one.is_filler else sum(work.of_row(costs[row], layout) for row in one.rows)

    bound = max(work.of_row(cost, layout) for cost in costs) * (1 + 1e-9)
    of_ranks = [sum(map(load, batches)) for batches in ranks]
    assert max(of_ranks) - min(of_ranks) <= bound
    for micro_step in zip(*ranks, strict=True):
        assert max(map(load, micro_step)) - min(map(load, micro_step)) <= bound


def test_the_published_batch_of_mixed_lengths_leaves_ranks_evenly_loaded_and_micro_batches_full() -> None:
    """128 triples, eight ranks, 8,192 tokens a forward pass; lengths fall off as those of chat data do."""
    costs = [
        RowCost(30 + (index * 37) % 400, (50 + (index * 53) % 700, 40 + (index * 71) % 600, 60 + (index * 29) % 500))
        for index in range(128)
    ]
    ranks = StepSplit(world_size=8, micro_batch_tokens=8192, layout=Layout.SHARED_PREFIX).of(range(128), costs)
    loads = [sum(costs[row].tokens(Layout.SHARED_PREFIX) for one in batches for row in one.rows) for batches in ranks]
    assert max(loads) / (sum(loads) / 8) < 1.02
    assert len(ranks[0]) == -(-sum(loads) // (8192 * 8))


def test_rows_are_dealt_by_work_where_tokens_and_work_disagree() -> None:
    """Equal tokens; what differs is how many of them need logits."""
    costs = [RowCost(100, (10,), loss_tokens) for loss_tokens in (10_000, 4_000, 3_000, 3_000)]
    work = WorkModel(pairs_per_token=1e9, loss_token=1.0)
    ranks = StepSplit(world_size=2, micro_batch_tokens=4096, layout=Layout.PACKED, work=work).of(range(4), costs)
    assert sorted(one.rows for rank in ranks for one in rank) == [(0,), (1, 2, 3)]


def test_rows_that_do_not_fit_together_are_dealt_to_more_micro_batches() -> None:
    (made,) = StepSplit(world_size=1, micro_batch_tokens=300, layout=Layout.PACKED).of(range(3), single(200, 200, 200))
    assert [one.rows for one in made] == [(0,), (1,), (2,)]


def test_micro_batches_are_as_few_as_the_bound_allows_and_keep_it() -> None:
    (made,) = StepSplit(world_size=1, micro_batch_tokens=300, layout=Layout.PACKED).of(range(8), single(*[100] * 8))
    assert sorted(len(one.rows) for one in made) == [2, 3, 3]


def test_a_plan_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a plan needs at least one row$"):
        plan(0)


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_work_without_one_of_the_sizes_is_that_of_the_defaults(missing: str) -> None:
    sizes = {"hidden_size": 100, "num_hidden_layers": 10, "vocab_size": 24000, missing: None}
    assert WorkModel.of_config(SimpleNamespace(**sizes)) == WorkModel()


def test_the_default_attention_of_work_is_that_of_a_hidden_size_of_4096() -> None:
    config = SimpleNamespace(hidden_size=4096, num_hidden_layers=32, vocab_size=128256)
    assert WorkModel().pairs_per_token == WorkModel.of_config(config).pairs_per_token == 24576.0


def test_a_fixed_number_of_rows_is_lowered_where_that_spares_ranks_a_filler() -> None:
    ranks = StepSplit(world_size=4, micro_batch_tokens=1, micro_batch_rows=2).of(range(10), single(*[9] * 10))
    assert not any(one.is_filler for batches in ranks for one in batches)
    assert sorted(len(one.rows) for batches in ranks for one in batches) == [1, 1, 1, 1, 1, 1, 2, 2]


def test_a_row_without_loss_costs_no_logits_and_one_with_loss_those_of_an_8b_model() -> None:
    without, with_loss = RowCost(10, (5,)), RowCost(10, (5,), 100)
    assert without.loss_tokens == 0
    apart = WorkModel().of_row(with_loss, Layout.PACKED) - WorkModel().of_row(without, Layout.PACKED)
    assert apart == pytest.approx(6.0)


def test_attended_pairs_of_very_long_rows_are_exact() -> None:
    tokens = 2**28
    assert RowCost(tokens, (1,)).attended_pairs(Layout.PACKED) == 2**55 + 2**27
    assert isinstance(RowCost(3, (1,)).attended_pairs(Layout.PADDED), int)


def test_the_micro_batch_of_most_rows_is_split_beside_one_that_cannot_be() -> None:
    costs = single(100, *[10] * 6)
    (first, second, third) = StepSplit(world_size=3, micro_batch_tokens=100).of(range(7), costs)
    batches = [*first, *second, *third]
    assert sorted(len(batch.rows) for batch in batches) == [1, 3, 3]
    assert not any(batch.is_filler for batch in batches)
