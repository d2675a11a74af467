"""Experiment trackers: TensorBoard, Weights & Biases, MLflow.

Rank 0 writes. No tracker can change or stop a run that has started.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from typing_extensions import override

from wrpo_engine.artifacts import ArtifactWriter
from wrpo_engine.artifacts.volume import VolumeWriter
from wrpo_engine.errors import ConfigError, WrpoError
from wrpo_engine.stage import StageContext
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.monitoring.callbacks import Observer, RunStart, StepEnd
from wrpo_engine.training.monitoring.metrics import CLOCK_FIELDS

log = logging.getLogger("wrpo_engine")

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
TENSORBOARD_DIRECTORY = "tensorboard"
_LOCAL_EVENTS = "tensorboard-local"
_GROUPS = ("rewards", "logps", "lengths", "entropy", "margin", "accuracy")
_UNTRACKED = frozenset({"step"})


def tag_of(name: str) -> str:
    """Return a metric's name in trackers.

    rewards_rejected is rewards/rejected, step_seconds is speed/step_seconds, loss is train/loss.
    """
    if name in CLOCK_FIELDS:
        return f"speed/{name}"
    for group in _GROUPS:
        if name.startswith(f"{group}_"):
            return f"{group}/{name.removeprefix(f'{group}_')}"
    return f"train/{name}"


class Tracker(Protocol):
    """A destination of scalars; any method may raise."""

    def start(self, settings: Mapping[str, Any], first_step: int) -> None:
        """Open the run; `settings` are its parameters, `first_step` is the first step that will be logged."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars by name; `step` counts completed optimizer steps."""
        ...

    def flush(self) -> None:
        """Write buffered values, so that they are not older than the checkpoint that follows."""
        ...

    def finish(self) -> None:
        """Close the run; no other method is called afterwards."""
        ...


class TensorBoardTracker(Tracker):
    """Event files in a directory, a new one for every attempt.

    Steps that an earlier attempt logged after its last checkpoint are logged again. TensorBoard drops the older values.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    @override
    def start(self, settings: Mapping[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        make_writer: Callable[..., Any] = SummaryWriter
        self._writer = make_writer(str(self._directory), purge_step=first_step)
        lines = (f"    {name}: {value}" for name, value in sorted(settings.items()))
        self._writer.add_text("settings", "\n".join(lines), global_step=first_step)

    @override
    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    @override
    def flush(self) -> None:
        self._writer.flush()

    @override
    def finish(self) -> None:
        self._writer.close()


class AccelerateTracker(Tracker):
    """W&B or MLflow behind Accelerate's interface; keys and servers come from their own environment variables."""

    def __init__(self, name: Literal["wandb", "mlflow"], experiment: str, run: str) -> None:
        self._name = name
        self._experiment = experiment
        self._run = run
        self._tracker: Any = None

    @override
    def start(self, settings: Mapping[str, Any], first_step: int) -> None:
        import torch
        from accelerate import PartialState, tracking

        PartialState(cpu=not torch.cuda.is_available())
        if self._name == "wandb":
            # The id keeps attempts of one artifact in one run.
            self._tracker = tracking.WandBTracker(self._experiment, name=self._run, id=self._run, resume="allow")
        else:
            self._tracker = tracking.MLflowTracker(experiment_name=self._experiment, run_name=self._run)
        self._tracker.start()
        self._tracker.store_init_configuration(dict(settings))

    @override
    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    @override
    def flush(self) -> None:
        """Do nothing: both services send in the background."""

    @override
    def finish(self) -> None:
        self._tracker.finish()


def require_packages(names: Sequence[TrackerName]) -> None:
    """Raise ConfigError for a tracker whose package is not installed; call it before any work is done."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                "training.trackers",
                name,
                f"the Python package {name} is not installed in this image",
                f"Build the trainer image with `pip install {name}`, or leave {name} out of training.trackers.",
                code="TrackerMissing",
            )


def make_trackers(names: Sequence[TrackerName], events: Path, *, experiment: str, run: str) -> list[Tracker]:
    """Return one tracker per distinct name.

    `experiment` groups runs, `run` names this artifact, `events` is the directory of TensorBoard's event files.
    """
    trackers: list[Tracker] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            trackers.append(TensorBoardTracker(events))
        else:
            trackers.append(AccelerateTracker(name, experiment, run))
    return trackers


class TrackerObserver(Observer):
    """Passes each step to the trackers. A tracker that fails is removed with a warning and training continues."""

    def __init__(self, trackers: Sequence[Tracker], settings: Mapping[str, Any]) -> None:
        self._trackers = list(trackers)
        self._settings = settings

    @override
    def on_start(self, start: RunStart) -> None:
        self._each(lambda tracker: tracker.start(self._settings, start.steps_done + 1))

    @override
    def on_step(self, end: StepEnd) -> None:
        values = {tag_of(name): float(value) for name, value in end.row.items() if name not in _UNTRACKED}
        values |= {tag_of(name): float(value) for name, value in end.clock.items()}
        self._each(lambda tracker: tracker.log(values, end.step))

    @override
    def on_evaluation(self, step: int, row: Mapping[str, float]) -> None:
        values = {f"eval/{name}": float(value) for name, value in row.items() if name not in _UNTRACKED}
        self._each(lambda tracker: tracker.log(values, step))

    @override
    def before_checkpoint(self, step: int) -> None:
        self._each(lambda tracker: tracker.flush())

    @override
    def close(self) -> None:
        self._each(lambda tracker: tracker.finish())
        self._trackers.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                act(tracker)
            except Exception as error:  # noqa: BLE001 (services raise arbitrary errors, and none may stop a run)
                self._trackers.remove(tracker)
                log.warning(
                    "%s is disabled for the rest of this attempt: %s: %s",
                    type(tracker).__name__,
                    type(error).__name__,
                    error,
                )
                with contextlib.suppress(Exception):
                    tracker.finish()


def tracker_observers(ctx: StageContext, group: Group) -> tuple[Observer, ...]:
    """Return the observers that write to the stage's trackers; none on other ranks than 0."""
    names = ctx.config.runtime.trackers
    if not group.is_main or not names:
        return ()
    trackers = make_trackers(
        names,
        event_directory(ctx.output),
        experiment=ctx.config.experiment.replace("/", "-"),
        run=f"{ctx.config.output.stage}-{ctx.config.output.hash}".replace("/", "-"),
    )
    settings = ctx.config.params.model_dump(mode="json")
    # The publisher comes last: the trackers have written and closed their files when it reads them.
    return (TrackerObserver(trackers, settings), EventFilePublisher(ctx.output))


def event_directory(output: ArtifactWriter) -> Path:
    """Return the directory in which event files grow: the final one on a volume, otherwise one that is published.

    Publishing replaces the local file of the same name. A writer that has the old file open would then write to a
    deleted file, so copies from a second directory are published.
    """
    is_final = isinstance(output, VolumeWriter)
    return output.directory / (TENSORBOARD_DIRECTORY if is_final else _LOCAL_EVENTS)


class EventFilePublisher(Observer):
    """Publishes event files with every checkpoint and at the end, where the artifact's directory is only a cache.

    No stage reads them, so the manifest does not list them.
    """

    def __init__(self, output: ArtifactWriter) -> None:
        self._output = output
        self._sizes: dict[str, int] = {}

    @override
    def before_checkpoint(self, step: int) -> None:
        self._publish()

    @override
    def close(self) -> None:
        self._publish()

    def _publish(self) -> None:
        directory = self._output.directory / _LOCAL_EVENTS
        for path in sorted(directory.glob("events.*")):
            content = path.read_bytes()
            if self._sizes.get(path.name) == len(content):
                continue
            try:
                self._output.publish(f"{TENSORBOARD_DIRECTORY}/{path.name}", partial(_write, content), replace=True)
            except (OSError, WrpoError) as error:
                log.warning("the TensorBoard event file %s could not be published: %s", path.name, error)
                continue
            self._sizes[path.name] = len(content)


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)
