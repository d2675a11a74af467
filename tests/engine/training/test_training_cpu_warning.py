"""A large model that is trained without a GPU is warned of, in the log and in the metrics, and trained all the same."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from training_support import FAST_ON_IDS, plain_backend

from wrpo_engine.loading.files import TensorFact
from wrpo_engine.training import session
from wrpo_engine.training.api import train_triples
from wrpo_engine.training.monitoring import cpu_training
from wrpo_engine.training.monitoring.cpu_training import LARGE_PARAMETERS, METRIC, parameters_of, warn_of_cpu


def test_parameters_are_counted_from_the_shapes() -> None:
    facts = {"a": TensorFact((3, 4), "BF16", "f"), "b": TensorFact((5,), "F32", "f"), "c": TensorFact((), "F32", "g")}
    assert parameters_of(facts) == 18


def test_a_large_model_on_the_cpu_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="wrpo_engine"):
        assert warn_of_cpu(8_030_261_248, on_gpu=False, name="org/m") == {METRIC: 1.0}
    (line,) = caplog.messages
    assert line == (
        "WARNING: org/m has 8.0 billion parameters and is trained on the CPU, because this pod has no GPU. "
        "That takes days to months. Set training.gpusPerNode if you did not intend it."
    )


@pytest.mark.parametrize(
    ("parameters", "on_gpu"), [(LARGE_PARAMETERS - 1, False), (LARGE_PARAMETERS, True), (0, False)]
)
def test_a_small_model_and_a_gpu_are_no_reason_for_a_warning(
    parameters: int, on_gpu: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert warn_of_cpu(parameters, on_gpu=on_gpu, name="org/m") == {}
    assert caplog.messages == []


def test_the_metrics_of_a_run_say_it(
    training_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "make_backend", plain_backend)
    monkeypatch.setattr(cpu_training, "LARGE_PARAMETERS", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row = {"prompt_ids": [10, 11], "source_chosen_ids": [20, 2], "target_chosen_ids": [30, 2], "rejected_ids": [40, 2]}
    with caplog.at_level(logging.WARNING, logger="wrpo_engine"):
        trained = train_triples(training_model_dir, [row] * 2, tmp_path, **FAST_ON_IDS)
    assert trained.metrics[METRIC] == 1.0
    assert sum(line.startswith(f"WARNING: {training_model_dir}") for line in caplog.messages) == 1
