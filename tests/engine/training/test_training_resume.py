"""Real kills of real distributed runs: the resumed run equals the uninterrupted one."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.patience import wait_until
from training_support import Experiment, freeze_when, make_experiment, run_ranks, start_nodes, start_ranks

from wrpo_engine.training.launch import exit_code_of

LONG = {"stage": "train", "beta": 0.1, "epochs": 8}
"""24 steps: long enough to be hit in the middle."""
NUM_STEPS = 24


def num_rows(experiment: Experiment) -> int:
    path = experiment.output("train") / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def assert_bit_equal(ours: Experiment, theirs: Experiment) -> None:
    weights = theirs.weights("train")
    for name, tensor in ours.weights("train").items():
        assert torch.equal(tensor, weights[name]), name
    assert ours.deterministic_metrics("train") == theirs.deterministic_metrics("train")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Experiment]:
    done: dict[int, Experiment] = {}

    def make(zero_stage: int) -> Experiment:
        if zero_stage not in done:
            done[zero_stage] = make_experiment(tmp_path_factory.mktemp(f"zero-{zero_stage}"))
            config = done[zero_stage].config({**LONG, "zero_stage": zero_stage})
            run_ranks(done[zero_stage], config, world_size=2)
        return done[zero_stage]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_sigterm_to_one_rank_saves_on_all_and_resuming_is_bit_exact(
    zero_stage: int, uninterrupted: Callable[[int], Experiment], tmp_path: Path
) -> None:
    experiment = make_experiment(tmp_path)
    config = experiment.config({**LONG, "zero_stage": zero_stage}, {"checkpoint_every_steps": 1000})
    gang = start_ranks(experiment, config, world_size=2)
    hit = random.Random(zero_stage).randint(2, 12)
    freeze_when(gang, f"it has trained {hit} steps", lambda: num_rows(experiment) >= hit)
    gang.send(signal.SIGTERM, ranks=[1])
    gang.send(signal.SIGCONT)
    assert gang.wait() == [143, 143], gang.text()
    stopped_at = num_rows(experiment)
    assert hit <= stopped_at < NUM_STEPS
    again = run_ranks(experiment, config, world_size=2)
    assert f"continuing after step {stopped_at} of {NUM_STEPS}" in again.text()
    assert_bit_equal(experiment, uninterrupted(zero_stage))


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_bfloat16_resumes_with_its_fp32_master_weights(zero_stage: int, tmp_path: Path) -> None:
    settings = {**LONG, "zero_stage": zero_stage, "precision": "bfloat16"}
    whole, broken = make_experiment(tmp_path / "whole"), make_experiment(tmp_path / "broken")
    run_ranks(whole, whole.config(settings), world_size=2)
    config = broken.config(settings, {"checkpoint_every_steps": 1000})
    gang = start_ranks(broken, config, world_size=2)
    freeze_when(gang, "it has trained 3 steps", lambda: num_rows(broken) >= 3)
    gang.send(signal.SIGTERM, ranks=[0])
    gang.send(signal.SIGCONT)
    assert gang.wait() == [143, 143], gang.text()
    run_ranks(broken, config, world_size=2)
    assert_bit_equal(broken, whole)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2])
def test_kill_9_of_one_rank_ends_the_other_quickly_and_resuming_is_bit_exact(
    zero_stage: int, uninterrupted: Callable[[int], Experiment], tmp_path: Path
) -> None:
    experiment = make_experiment(tmp_path)
    config = experiment.config({**LONG, "zero_stage": zero_stage}, {"checkpoint_every_steps": 5})
    gang = start_ranks(experiment, config, world_size=2)
    freeze_when(gang, "it has trained 8 steps", lambda: num_rows(experiment) >= 8)
    gang.send(signal.SIGKILL, ranks=[1])
    gang.send(signal.SIGCONT, ranks=[0])
    codes = gang.wait()
    assert codes == [75, -9], gang.text()
    assert "another process of this training run is gone" in gang.text()
    again = run_ranks(experiment, config, world_size=2)
    assert "continuing after step" in again.text()
    assert_bit_equal(experiment, uninterrupted(zero_stage))


CHANGES = {
    "stage 3 on two processes, then 1 on one": ((3, 2, "none"), (1, 1, "none")),
    "stage 0 on one, then 3 on two with all offloaded": ((0, 1, "none"), (3, 2, "optimizer-and-parameters")),
    "stage 2 on two with the optimizer offloaded, then 0 on one": ((2, 2, "optimizer"), (0, 1, "none")),
}
"""(ZeRO stage, processes, offload) before and after."""


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), CHANGES.values(), ids=CHANGES.keys())
def test_a_run_continues_with_other_processes_zero_stage_and_offload(
    first: tuple[int, int, str],
    second: tuple[int, int, str],
    uninterrupted: Callable[[int], Experiment],
    tmp_path: Path,
) -> None:
    """The state goes over exactly; sums over ranks in another order differ by rounding."""
    experiment = make_experiment(tmp_path)
    runtime = {"checkpoint_every_steps": 1000, "offload": first[2]}
    gang = start_ranks(experiment, experiment.config({**LONG, "zero_stage": first[0]}, runtime), world_size=first[1])
    freeze_when(gang, "it has trained 6 steps", lambda: num_rows(experiment) >= 6)
    gang.send(signal.SIGTERM, ranks=[0])
    gang.send(signal.SIGCONT)
    assert gang.wait() == [143] * first[1], gang.text()
    told = json.loads(experiment.termination_message(0).read_text())
    assert (told["outcome"], told["step"], told["exit_code"]) == ("Interrupted", num_rows(experiment), 143)
    config = experiment.config({**LONG, "zero_stage": second[0]}, {"offload": second[2]})
    again = run_ranks(experiment, config, world_size=second[1])
    assert "continuing after step" in again.text()
    expected = uninterrupted(3).weights("train")
    for name, tensor in experiment.weights("train").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_launcher_ends_with_its_workers_exit_code(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    config = experiment.config({"stage": "train", "objective": "DPO", "gamma": 0.5})
    gang = start_nodes(experiment, config)
    assert gang.wait() == [78, 78], gang.text()
    assert "training.gamma is 0.5: it has no effect with objective DPO" in gang.text()


@pytest.mark.slow
def test_sigterm_to_one_nodes_launcher_stops_both_nodes_with_143(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    # More steps than it does until it is stopped, on the slowest machine.
    gang = start_nodes(experiment, experiment.config({**LONG, "epochs": 1000, "zero_stage": 0}))
    wait_until("it has trained 3 steps", lambda: num_rows(experiment) >= 3, every_s=0.01)
    gang.send(signal.SIGTERM, ranks=[0])
    assert gang.wait() == [143, 143], gang.text()
    checkpoints = sorted((experiment.output("train") / "checkpoints").glob("step-*"))
    assert json.loads((checkpoints[-1] / "checkpoint.json").read_text())["step"] == num_rows(experiment)


EXIT_CODES = {
    "a configuration error": ([78], 78),
    "the cause counts, not the peer that was lost by it": ([75, 65], 65),
    "a lost peer on another node": ([75], 75),
    "killed for memory": ([-9, 75], 137),
}


@pytest.mark.parametrize(("codes", "expected"), EXIT_CODES.values(), ids=EXIT_CODES.keys())
def test_a_nodes_exit_code_is_that_of_the_first_cause(codes: list[int], expected: int) -> None:
    assert exit_code_of(codes) == expected
