"""Progress callback: completed steps for the termination message of an attempt that fails or is stopped."""

from __future__ import annotations

from typing_extensions import override

from wrpo_engine.stage import StepProgress
from wrpo_engine.training.monitoring.callbacks import Observer, RunStart, StepEnd


class StepProgressObserver(Observer):
    """Writes the number of completed optimizer steps to the object that the stage's entry point reads."""

    def __init__(self, progress: StepProgress) -> None:
        self._progress = progress

    @override
    def on_start(self, start: RunStart) -> None:
        self._progress.step = start.steps_done

    @override
    def on_step(self, end: StepEnd) -> None:
        self._progress.step = end.step
