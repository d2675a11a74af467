"""Trackers: real TensorBoard files, W&B and MLflow at the boundary of their packages, failures that stop nothing."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from engine_support import EXPERIMENT_HASH, NOON

from wrpo_engine.artifacts import VolumeStore
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError, TemporaryError
from wrpo_engine.training.monitoring.callbacks import RunStart, StepEnd
from wrpo_engine.training.monitoring.trackers import (
    EventFilePublisher,
    TensorBoardTracker,
    TrackerObserver,
    event_directory,
    make_trackers,
    require_packages,
    tag_of,
)

SETTINGS = {"learning_rate": 1e-3, "objective": "WRPO-DPO"}


def step_end(step: int, loss: float) -> StepEnd:
    row = {"step": step, "loss": loss, "rewards_rejected": -loss, "accuracy_source_over_target": 0.5}
    return StepEnd(step, 4, row, 0.25, {"step_seconds": 0.25, "mfu": 0.4})


def read_scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_files_hold_every_step_under_its_group(tmp_path: Path) -> None:
    observer = TrackerObserver([TensorBoardTracker(tmp_path)], SETTINGS)
    observer.on_start(RunStart(4, 0, 8))
    for step in (1, 2):
        observer.on_step(step_end(step, 1.0 / step))
    observer.on_evaluation(2, {"step": 2, "loss": 0.75})
    observer.close()
    assert read_scalars(tmp_path) == {
        "train/loss": [(1, 1.0), (2, 0.5)],
        "rewards/rejected": [(1, -1.0), (2, -0.5)],
        "accuracy/source_over_target": [(1, 0.5), (2, 0.5)],
        "speed/step_seconds": [(1, 0.25), (2, 0.25)],
        "speed/mfu": [(1, pytest.approx(0.4)), (2, pytest.approx(0.4))],
        "eval/loss": [(2, 0.75)],
    }


def test_a_resumed_run_replaces_what_it_logs_again(tmp_path: Path) -> None:
    first = TrackerObserver([TensorBoardTracker(tmp_path)], SETTINGS)
    first.on_start(RunStart(4, 0, 8))
    for step, loss in ((1, 1.0), (2, 2.0), (3, 3.0)):
        first.on_step(step_end(step, loss))
    first.close()
    second = TrackerObserver([TensorBoardTracker(tmp_path)], SETTINGS)
    second.on_start(RunStart(4, 1, 8))
    for step, loss in ((2, 20.0), (3, 30.0)):
        second.on_step(step_end(step, loss))
    second.close()
    assert read_scalars(tmp_path)["train/loss"] == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_names_are_grouped() -> None:
    assert tag_of("logps_source_chosen") == "logps/source_chosen"
    assert tag_of("margin") == "train/margin"
    assert tag_of("margin_source") == "margin/source"
    assert tag_of("peak_memory_bytes") == "speed/peak_memory_bytes"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_without_its_package_is_refused_before_any_work(name: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        require_packages(["tensorboard", name])
    assert caught.value.code == "TrackerMissing"
    assert caught.value.field == "training.trackers"
    assert f"pip install {name}" in (caught.value.hint or "")


def fake_package(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    # Accelerate, when first imported, looks for the packages it knows by their specs.
    module.__spec__ = ModuleSpec(name, None)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def drive(names: list[Any], directory: Path) -> None:
    observer = TrackerObserver(make_trackers(names, directory, experiment="ns-name", run="train-0123"), SETTINGS)
    observer.on_start(RunStart(4, 0, 8))
    observer.on_step(step_end(1, 0.5))
    observer.close()


def test_wandb_gets_one_run_per_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append(("log", (step, values["train/loss"]))),
        finish=lambda: calls.append(("finish", None)),
    )

    def init(**arguments: Any) -> Any:
        calls.append(("init", arguments))
        return run

    config = types.SimpleNamespace(update=lambda values, **_: calls.append(("config", values)))
    fake_package(monkeypatch, "wandb", init=init, config=config)
    drive(["wandb"], tmp_path)
    assert calls == [
        ("init", {"project": "ns-name", "name": "train-0123", "id": "train-0123", "resume": "allow"}),
        ("config", SETTINGS),
        ("log", (1, 0.5)),
        ("finish", None),
    ]


def test_mlflow_gets_parameters_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    limits = types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=100, MAX_PARAMS_TAGS_PER_BATCH=100)
    fake_package(
        monkeypatch,
        "mlflow",
        search_experiments=lambda **_: [],
        create_experiment=lambda **arguments: calls.append(("experiment", arguments["name"])) or "1",
        start_run=lambda **arguments: calls.append(("run", (arguments["experiment_id"], arguments["run_name"]))),
        log_params=lambda values: calls.append(("params", values)),
        log_metrics=lambda values, step: calls.append(("metrics", (step, values["train/loss"]))),
        end_run=lambda: calls.append(("end", None)),
        utils=types.SimpleNamespace(validation=limits),
    )
    drive(["mlflow"], tmp_path)
    assert calls == [
        ("experiment", "ns-name"),
        ("run", ("1", "train-0123")),
        ("params", SETTINGS),
        ("metrics", (1, 0.5)),
        ("end", None),
    ]


class Failing:
    def __init__(self, *, at: str) -> None:
        self._at = at

    def _act(self, name: str) -> None:
        if name == self._at:
            raise ConnectionError("no route")

    def start(self, settings: Mapping[str, Any], first_step: int) -> None:
        self._act("start")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._act("log")

    def flush(self) -> None:
        self._act("flush")

    def finish(self) -> None:
        self._act("finish")


@pytest.mark.parametrize("at", ["start", "log", "flush", "finish"])
def test_a_tracker_that_fails_is_disabled_and_the_others_continue(
    at: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    observer = TrackerObserver([Failing(at=at), TensorBoardTracker(tmp_path)], SETTINGS)
    with caplog.at_level(logging.WARNING):
        observer.on_start(RunStart(4, 0, 8))
        observer.on_step(step_end(1, 0.5))
        observer.before_checkpoint(1)
        observer.on_step(step_end(2, 0.25))
        observer.close()
    assert caplog.text.count("Failing is disabled for the rest of this attempt: ConnectionError: no route") == 1
    assert read_scalars(tmp_path)["train/loss"] == [(1, 0.5), (2, 0.25)]


def make_writer(root: Path) -> Any:
    store = VolumeStore(root, lambda: NOON)
    return store.writer(ArtifactRef(stage="train", hash=EXPERIMENT_HASH), config={}, inputs={})


class CachedWriter:
    """A writer whose directory is only a cache: published files are stored elsewhere."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "cache"
        self.store = root / "store"
        self.fails = False

    def publish(self, name: str, write: Any, *, replace: bool = False) -> Path:
        if self.fails:
            raise TemporaryError("away")
        target = self.store / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target)
        return target


def test_on_a_volume_event_files_grow_where_they_stay(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    assert event_directory(writer) == writer.directory / "tensorboard"


def test_elsewhere_event_files_are_published_with_every_checkpoint(tmp_path: Path) -> None:
    writer: Any = CachedWriter(tmp_path)
    trackers = TrackerObserver([TensorBoardTracker(event_directory(writer))], SETTINGS)
    publisher = EventFilePublisher(writer)
    trackers.on_start(RunStart(4, 0, 8))
    trackers.on_step(step_end(1, 0.5))
    trackers.before_checkpoint(1)
    publisher.before_checkpoint(1)
    assert read_scalars(writer.store / "tensorboard")["train/loss"] == [(1, 0.5)]
    trackers.on_step(step_end(2, 0.25))
    writer.fails = True
    trackers.before_checkpoint(2)
    publisher.before_checkpoint(2)
    writer.fails = False
    trackers.close()
    publisher.close()
    assert read_scalars(writer.store / "tensorboard")["train/loss"] == [(1, 0.5), (2, 0.25)]
