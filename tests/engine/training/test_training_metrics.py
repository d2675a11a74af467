"""Metrics of a step in addition to its loss: times, rates, memory, MFU; sums over ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from engine_support import save_tiny_model
from torch import Tensor
from training_support import full_tensor

from wrpo_engine.config import Runtime, TrainParams
from wrpo_engine.training.backends.base import TensorKind
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.flops import ModelCost, needed_training_step
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.models.model import load_config
from wrpo_engine.training.monitoring.metrics import CLOCK_FIELDS, RankReport, StepSums, StepTotals, read_rows
from wrpo_engine.training.monitoring.step_timer import StepPhase, StepTimer
from wrpo_engine.training.monitoring.throughput import Speedometer, make_speedometer, peak_memory_bytes
from wrpo_engine.training.objectives.tasks import RowTerms

TOTALS = StepTotals(
    loss=0.5, means={}, num_rows=8, num_tokens=400, num_bad_rows=0, should_stop=False, peak_memory=1 << 20
)
ROWS = [TokenRow("a", (1, 2, 3), ((4,), (5, 6), (7,)))]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_timer_splits_a_step_and_resets() -> None:
    clock = Clock()
    timer = StepTimer(clock, on_gpu=False)
    for _ in range(2):
        with timer.phase(StepPhase.DATA):
            clock.now += 1.0
        with timer.phase(StepPhase.FORWARD):
            clock.now += 2.0
        with timer.phase(StepPhase.BACKWARD):
            clock.now += 4.0
        clock.now += 100.0
    with timer.phase(StepPhase.OPTIMIZER):
        clock.now += 0.5
    expected = {"data_seconds": 2.0, "forward_seconds": 4.0, "backward_seconds": 8.0, "optimizer_seconds": 0.5}
    assert timer.take(StepPhase.DATA, StepPhase.FORWARD, StepPhase.BACKWARD, StepPhase.OPTIMIZER) == expected
    assert set(timer.take(*StepPhase).values()) == {0.0}


def test_what_raises_is_not_counted() -> None:
    clock = Clock()
    timer = StepTimer(clock, on_gpu=False)

    def fail() -> None:
        with timer.phase(StepPhase.DATA):
            clock.now += 1.0
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert timer.take(StepPhase.DATA) == {"data_seconds": 0.0}


def test_rates_are_of_all_ranks_and_mfu_of_all_devices() -> None:
    cost = ModelCost(body_weights=10, head_weights=100, attention_width=1)
    row = Speedometer(devices=2, cost=cost, peak_flops=1000.0).row(2.0, TOTALS, {"data_seconds": 0.1}, lambda: ROWS)
    assert row["tokens_per_second"] == 200.0
    assert row["triples_per_second"] == 4.0
    assert row["peak_memory_bytes"] == 1 << 20
    assert row["mfu"] == pytest.approx(needed_training_step(cost, ROWS) / (2.0 * 2 * 1000.0))
    assert set(row) <= set(CLOCK_FIELDS)


def test_without_a_known_peak_nothing_is_counted() -> None:
    def rows() -> list[TokenRow]:
        raise AssertionError("rows are not needed")

    assert "mfu" not in Speedometer().row(2.0, TOTALS, {}, rows)


def test_adapters_need_no_gradients_of_frozen_weights(tmp_path: Any) -> None:
    config = load_config(save_tiny_model(tmp_path), trust_remote_code=False)
    runtime = Runtime(peak_flops=1e12)
    full = {"model": {"name": "m"}, "precision": "float32"}
    meters = [
        make_speedometer(config, TrainParams.model_validate({**full, **more}), runtime, world_size=4)
        for more in ({}, {"lora": {"rank": 4}})
    ]
    assert meters[0].cost == meters[1].cost
    assert meters[0].devices == 4
    mfu = [meter.row(1.0, TOTALS, {}, lambda: ROWS)["mfu"] for meter in meters]
    assert mfu[1] == pytest.approx(mfu[0] * 2 / 3)
    assert make_speedometer(config, TrainParams.model_validate(full), Runtime(), world_size=1).cost is None


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory_bytes()
    held = torch.ones(1 << 26)
    assert held.sum() == 1 << 26
    assert peak_memory_bytes() >= before
    assert peak_memory_bytes() > 1 << 28


@dataclass
class FakeGroup:
    """Sums what all of its ranks gave, in the order in which they gave it."""

    rank: int
    world_size: int
    others: list[Tensor] = field(default_factory=list)

    def sum(self, values: Tensor) -> Tensor:
        self.others.append(values)
        return torch.stack(self.others).sum(dim=0)


def test_totals_weigh_every_row_the_same_and_know_the_fullest_rank() -> None:
    given: list[Tensor] = []
    totals = None
    for rank, (margins, memory) in enumerate((([1.0, 2.0, 3.0], 500), ([10.0], 900))):
        sums = StepSums(["margin"])
        margin = torch.tensor(margins)
        sums.add(RowTerms(margin / 2, {"margin": margin}), [f"{rank}-{index}" for index in range(len(margins))], 10)
        group: Any = FakeGroup(rank, 2, given)
        totals = sums.reduced(
            group, RankReport(stop=rank == 1, peak_memory=memory, attention_fallback=rank == 0), denominator=4.0
        )
    assert totals is not None
    assert totals.attention_fallbacks == 1
    assert totals.means == {"margin": 4.0}
    assert totals.loss == pytest.approx(2.0)
    assert (totals.num_rows, totals.num_tokens, totals.peak_memory) == (4, 20, 900)
    assert totals.should_stop


def test_a_slow_rank_shows_in_the_maximum_of_its_phase() -> None:
    given: list[Tensor] = []
    totals = None
    for rank, forward_s in enumerate((1.0, 1.5, 6.5)):
        group: Any = FakeGroup(rank, 3, given)
        phases = {"data_seconds": 0.25, "forward_seconds": forward_s}
        totals = StepSums([]).reduced(group, RankReport(peak_memory=rank, phases=phases), denominator=1.0)
    assert totals is not None
    assert totals.phases == {
        "data_seconds": 0.25,
        "data_seconds_max": 0.25,
        "forward_seconds": 3.0,
        "forward_seconds_max": 6.5,
    }
    assert totals.peak_memory == 2


def test_the_time_of_a_reference_in_memory_is_a_separate_phase(local_run: Any) -> None:
    run = local_run()
    run.run()
    rows = [row for row, _ in read_rows(run.directory / "metrics.jsonl")]
    for phase in (StepPhase.DATA, StepPhase.REFERENCE, StepPhase.FORWARD, StepPhase.BACKWARD):
        # One rank is its own mean and the slowest of all.
        assert all(row[f"{phase}_seconds"] == row[f"{phase}_seconds_max"] for row in rows)
    assert all(row["reference_seconds"] > 0 for row in rows)
    assert all(
        set(row) & {f"{phase}_seconds" for phase in StepPhase} == {f"{phase}_seconds" for phase in StepPhase}
        for row in rows
    )


def test_a_run_logs_where_its_time_went(local_run: Any) -> None:
    run = local_run()
    run.run()
    for row, _ in read_rows(run.directory / "metrics.jsonl"):
        assert row["forward_seconds"] > 0
        assert row["backward_seconds"] > 0
        assert row["optimizer_seconds"] > 0
        assert row["data_seconds"] >= 0
        assert row["peak_memory_bytes"] > 1 << 27


def test_entropies_are_per_token_and_response(local_run: Any) -> None:
    run = local_run()
    run.run()
    kinds = ("source_chosen", "target_chosen", "rejected")
    ceiling = math.log(full_tensor(run.backend(), "lm_head.weight", TensorKind.WEIGHT).shape[0])
    first = run.metrics()[0]
    for kind in kinds:
        # Random weights of a tiny model are close to knowing nothing.
        assert 0.9 * ceiling < first[f"entropy_{kind}"] <= ceiling
    batch = collate([TokenRow("a", (1, 2), ((3,), (4, 5), (6, 7))), TokenRow("b", (1,), ((2,), (3,), (4,)))])
    entropies = run.task().entropies(batch, torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]))
    assert {name: values.tolist() for name, values in entropies.items()} == {
        "entropy_source_chosen": [1.0, 8.0],
        "entropy_target_chosen": [1.0, 16.0],
        "entropy_rejected": [2.0, 32.0],
    }


def test_a_micro_batch_is_added_without_reading_from_its_device() -> None:
    """Tensors of the meta device have no values: reading one raises."""
    sums = StepSums(["margin"])
    for _ in range(2):
        margin = torch.ones(3, device="meta")
        sums.add(RowTerms(margin / 2, {"margin": margin}), ["a", "b", "c"], 10)
    assert (sums.num_rows, sums.num_tokens) == (6, 20)


def test_rows_whose_loss_is_not_finite_are_named_across_micro_batches() -> None:
    sums = StepSums([])
    sums.add(RowTerms(torch.tensor([1.0, math.nan]), {}), ["a", "b"], 7)
    sums.add(RowTerms(torch.tensor([math.inf, 2.0]), {}), ["c", "d"], 7)
    totals = sums.reduced(Group(), RankReport(), denominator=2.0)
    assert totals.num_bad_rows == 2
    assert sums.bad_rows == ["b", "c"]


def test_a_rank_of_fillers_adds_nothing() -> None:
    group: Any = FakeGroup(0, 1, [torch.tensor([3.0, 2.0, 5.0, 0.0, 0.0, 0.0, 8.0, 0.0], dtype=torch.float64)])
    totals = StepSums(["margin"]).reduced(group, RankReport(), denominator=2.0)
    assert (totals.loss, totals.num_rows, totals.means) == (1.5, 2, {"margin": 4.0})


def test_one_rank_is_its_own_sum() -> None:
    sums = StepSums([])
    sums.add(RowTerms(torch.tensor([0.25, 0.75]), {}), ["a", "b"], 7)
    totals = sums.reduced(Group(), RankReport(peak_memory=3), denominator=2.0)
    assert (totals.loss, totals.num_rows, totals.num_tokens, totals.peak_memory) == (0.5, 2, 7, 3)
