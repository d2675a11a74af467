"""Twenty random kills of real DeepSpeed ranks: weights equal to an undisturbed run, bit for bit."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.patience import LIMIT_S
from support.stopping import SLICE_S
from training_support import Experiment, Gang, freeze_when, make_experiment, run_ranks, start_ranks

NUM_KILLS = 20
SETTINGS = {"stage": "train", "beta": 0.1, "epochs": 30, "zero_stage": 3, "learning_rate": 1e-4}
NUM_STEPS = 90
"""Enough for the kills: each is a few steps after what the one before left."""
RUNTIME = {"checkpoint_every_steps": 2, "keep_checkpoints": 2}
ENDED = {-signal.SIGKILL, -signal.SIGTERM, 75, 143}
"""Killed; stopped before it could listen; lost its peer; stopped with a checkpoint."""


def num_rows(experiment: Experiment) -> int:
    path = experiment.output("train") / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def is_writing_a_checkpoint(experiment: Experiment) -> bool:
    """Some shard is there or under way, and the marker that would complete it is not."""
    directories = (experiment.output("train") / "checkpoints").glob("step-*")
    return any(any(one.iterdir()) and not (one / "checkpoint.json").exists() for one in directories)


def has_reference_part(experiment: Experiment) -> bool:
    return any((experiment.output("train") / "reference").rglob("*part-*"))


def _moments(experiment: Experiment, target: int, slices: int) -> dict[str, Callable[[], bool]]:
    looks = itertools.count()
    return {
        "start": lambda: next(looks) >= slices,
        "reference": lambda: has_reference_part(experiment),
        "step": lambda: num_rows(experiment) > target,
        "checkpoint": lambda: is_writing_a_checkpoint(experiment),
    }


def end(gang: Gang, patience_s: float = 8) -> list[int]:
    """Wait for all ranks; a rank that waits in the rendezvous for a killed one is killed too."""
    deadline = time.monotonic() + patience_s
    codes = []
    for rank in gang.processes:
        try:
            codes.append(rank.wait(max(0.05, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            rank.kill()
            codes.append(rank.wait(LIMIT_S))
    return codes


@pytest.mark.slow
def test_twenty_random_kills_change_no_bit_of_the_weights(tmp_path: Path) -> None:
    whole, broken = make_experiment(tmp_path / "whole"), make_experiment(tmp_path / "broken")
    run_ranks(whole, whole.config(SETTINGS, RUNTIME), world_size=2)
    config = broken.config(SETTINGS, RUNTIME)
    chance = random.Random(20261123)
    moments: Counter[str] = Counter()
    for kill in range(NUM_KILLS):
        gang = start_ranks(broken, config, world_size=2)
        moment = "start" if kill < 2 else "reference" if kill < 5 else chance.choice(["step", "step", "checkpoint"])
        target = num_rows(broken) + chance.randint(0, 3)
        reached = _moments(broken, target, slices=chance.randint(5, 50))[moment]
        # Stopped ranks do not finish the rest while this process waits for the processor.
        freeze_when(gang, moment, reached, slice_s=chance.uniform(0.01, SLICE_S))
        number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        ranks = chance.choice([(0,), (1,), (0, 1)])
        gang.send(number, ranks=ranks)
        gang.send(signal.SIGCONT)
        codes = end(gang)
        assert set(codes) <= ENDED, (codes, gang.text())
        moments[moment] += 1
    assert set(moments) == {"start", "reference", "step", "checkpoint"}
    assert num_rows(broken) < NUM_STEPS
    again = run_ranks(broken, config, world_size=2)
    assert "continuing after step" in again.text()
    expected = whole.weights("train")
    for name, tensor in broken.weights("train").items():
        assert torch.equal(tensor, expected[name]), name
    assert broken.deterministic_metrics("train") == whole.deterministic_metrics("train")
