"""The training benchmarks compare like with like: same rows, same losses, operation counts that PyTorch confirms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import readme
from benchmarks.common.machine import Machine
from benchmarks.common.process import run_worker
from benchmarks.common.results import save_result
from benchmarks.common.summary import Summary
from benchmarks.training import compare, growth, ours, padded, scaling, vocabulary
from benchmarks.training.bound import model_cost, needed_operations, padded_operations, trl_operations
from benchmarks.training.cases import Level, large_vocabulary, shapes
from benchmarks.training.measure import Comparison, DisagreementError, Measured, require_same_losses, typical_step
from benchmarks.training.workload import Case, Lengths, ModelSize, Plan, Row, llama, make_rows, save_model
from wrpo_engine.training.batch.flops import ModelCost

TINY = ModelSize(2, 64, 96, 4, 2, 500)
TRIPLES = Case("tiny", TINY, Lengths(40, 0.4, 8, 80), Lengths(20, 0.5, 4, 40), triples_per_step=4, triples_per_pass=2)
PAIRS = replace(TRIPLES, num_responses=2)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("benchmark-model")
    save_model(directory, TINY)
    return str(directory)


def specification(case: Case, model_dir: str, *, memory: bool = False) -> dict[str, Any]:
    return {"plan": Plan(case, model_dir, warmup_steps=1, timed_steps=2, measure_memory=memory).to_json()}


@pytest.mark.parametrize("case", [TRIPLES, PAIRS], ids=["triples", "pairs"])
def test_both_sides_report_the_same_losses_step_by_step(case: Case, model_dir: str) -> None:
    own = ours.work(specification(case, model_dir, memory=True))
    peer = padded.work(specification(case, model_dir, memory=True))
    assert own["layout"] == "shared-prefix"
    assert len(own["losses"]) == len(peer["losses"]) == 3
    assert own["losses"][0] == pytest.approx(0.6931472, abs=1e-6)
    assert own["losses"][2] != pytest.approx(own["losses"][0], abs=1e-4)
    assert own["losses"] == pytest.approx(peer["losses"], rel=1e-5)
    for side in (own, peer):
        assert len(side["step_seconds"]) == 2
        assert min(side["step_seconds"]) > 0
        assert side["step_memory"] > 0


@pytest.mark.slow
def test_trl_reports_the_same_losses(model_dir: str) -> None:
    own = ours.work(specification(PAIRS, model_dir))
    one = specification(PAIRS, model_dir, memory=True)
    both = run_worker("benchmarks.training.trl_peer", {"each": [one, {**one, "precompute": True}]}, threads=1)["each"]
    assert len(both) == 2
    for peer in both:
        assert own["losses"] == pytest.approx(peer["losses"], rel=1e-5)
        assert len(peer["step_seconds"]) == 2
        assert peer["step_memory"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("side", [ours, padded], ids=["ours", "padded"])
def test_two_processes_report_the_losses_of_one(side: Any, model_dir: str) -> None:
    """The one process is this one, without DeepSpeed."""
    one = specification(TRIPLES, model_dir)
    (two,) = run_worker(side.__name__, {"each": [one]}, threads=1, world_size=2)["each"]
    assert side.work(one)["losses"] == pytest.approx(two["losses"], rel=1e-5)


def test_rows_come_of_the_seed_and_pairs_are_triples_without_their_source() -> None:
    triples, pairs = make_rows(TRIPLES, 5), make_rows(PAIRS, 5)
    assert triples == make_rows(TRIPLES, 5)
    assert [row.responses[1:] for row in triples] == [row.responses for row in pairs]
    assert [row.prompt for row in triples] == [row.prompt for row in pairs]
    assert len({len(row.prompt) for row in triples}) > 1


@given(st.integers(1, 400), st.floats(0, 2), st.integers(0, 99))
def test_lengths_stay_within_their_bounds(median: int, spread: float, seed: int) -> None:
    import random

    lengths = Lengths(median, spread, 5, 300)
    drawn = lengths.draw(random.Random(seed))
    assert drawn == median if spread == 0 else 5 <= drawn <= 300


def test_a_case_survives_json() -> None:
    plan = Plan(TRIPLES, "somewhere", 1, 2, measure_memory=True)
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.num_steps == 5


def without_attention(cost: ModelCost) -> ModelCost:
    return replace(cost, attention_width=0)


def test_the_peers_operations_are_what_pytorch_counts() -> None:
    rows = make_rows(TRIPLES, 2)
    model = llama(TINY)
    ids, mask, labels = padded.pad(rows, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        padded.response_logps(model, ids, mask, labels).sum().backward()
        with torch.no_grad():
            padded.response_logps(model, ids, mask, labels)
    products = counter.get_flop_counts()["Global"]
    counted = sum(count for name, count in products.items() if name in {torch.ops.aten.mm, torch.ops.aten.addmm})
    expected = padded_operations(without_attention(model_cost(TINY)), rows, triples_per_pass=2)
    assert counted == pytest.approx(expected, rel=5e-3)


def test_counts_by_hand() -> None:
    cost = ModelCost(body_weights=10, head_weights=100, attention_width=0)
    rows = [Row((1, 2, 3), ((4,), (5, 6), (7,))), Row((1,), ((2,), (3,), (4, 5, 6)))]
    width = 5
    assert padded_operations(cost, rows, triples_per_pass=2) == 4 * 2 * 6 * width * 110
    assert trl_operations(cost, rows, triples_per_pass=2, precomputed=True) == 3 * (2 * 10 * 6 * width + 2 * 100 * 9)
    assert trl_operations(cost, rows, triples_per_pass=2, precomputed=False) == 4 * (2 * 10 * 6 * width + 2 * 100 * 9)
    assert needed_operations(cost, rows) == 3 * (2 * 10 * (3 + 1 + 1 + 2) + 2 * 100 * 9)


def measured(seconds: float, losses: tuple[float, ...] = (0.6931,), memory: int = 100) -> Measured:
    return Measured(Summary.of([seconds]), losses, memory, "somewhere", reference_seconds=0.5)


def test_sides_that_compute_different_things_are_not_compared() -> None:
    assert require_same_losses("case", {"a": measured(1, (0.69, 0.68)), "b": measured(1, (0.69, 0.6801))}) < 2e-4
    with pytest.raises(DisagreementError, match=r"at step 2 a has the loss 0\.680000 and b 0\.700000"):
        require_same_losses("case", {"a": measured(1, (0.69, 0.68)), "b": measured(1, (0.69, 0.70))})
    with pytest.raises(DisagreementError):
        require_same_losses("case", {"a": measured(1, (float("nan"),)), "b": measured(1, (0.69,))})


def comparison() -> Comparison:
    return Comparison("long", "prompt 4", "padded", 2, measured(2.0, memory=50), measured(6.0, memory=200), 4.0)


def test_a_typical_step_compares_the_same_rows() -> None:
    assert typical_step([[1.0, 10.0], [3.0, 30.0], [2.0, 20.0]]) == Summary(11.0, 1.0, 30.0, 6)
    assert typical_step([[4.0]]) == Summary(4.0, 4.0, 4.0, 1)


def test_a_comparison_counts_the_reference_pass_too() -> None:
    figures = comparison().to_json()
    assert figures["speed_up"] == pytest.approx(3.0)
    assert figures["share"] == pytest.approx(0.75)
    assert figures["speed_up_with_reference"] == pytest.approx(6.0 / 2.5)
    assert figures["memory_ratio"] == pytest.approx(0.25)
    assert figures["triples_per_second"] == [pytest.approx(1.0), pytest.approx(2 / 6)]


def test_the_readme_has_a_section_for_every_benchmark_and_takes_its_figures_from_the_results(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(readme.README.read_text())
    machine = Machine("a cpu", 2, 24.0, None, "3.11", {}, "2026-01-01 12:00 UTC", 0.25)
    row = comparison().to_json()
    scaled = {
        "side": "wrpo",
        "step_seconds": [[4, 4, 4], [2.5, 2, 3]],
        "triples_per_second": [1, 1.6],
        "efficiency": 0.8,
    }
    figures: dict[str, dict[str, Any]] = {
        compare.NAME: {"triples": [row], "pairs": [row]},
        vocabulary.NAME: {"triples": [row]},
        growth.NAME: {"triples": [row]},
        scaling.NAME: {"case": "mixed", "rows": [scaled]},
    }
    for name, content in figures.items():
        measured = {"level": "standard", "clock": "wall clock", **content}
        save_result(name, machine, measured, directory=tmp_path)
    assert set(readme.render(page, tmp_path)) == set(figures)
    text = page.read_text()
    where = "2026-01-01 12:00 UTC, a cpu, 2 cores, 24 GiB, load average at the start 0.25"
    assert text.count(f"{where}; standard shapes, wall clock.") == 4
    assert "| long | padded | 1 (1..1) | 0.333 (0.333..0.333) | 3.00x | 4.00x | 75% | 2.40x |" in text
    assert "| wrpo | 1 (1..1) | 1.6 (1.33..2) | 80% |" in text


@pytest.mark.parametrize("level", list(Level))
def test_cases_of_one_measurement_share_a_model(level: Level) -> None:
    from benchmarks.training.cases import growth as growth_cases

    for cases in (shapes(level), large_vocabulary(level), growth_cases(level)):
        assert len({case.model for case in cases}) == 1
        assert all(case.triples_per_step % case.triples_per_pass == 0 for case in cases)
