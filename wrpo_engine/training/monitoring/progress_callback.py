"""Progress callback: completed steps for the termination message of an attempt that fails or is stopped."""

from __future__ import annotations

from wrpo_engine.stage import Reached
from wrpo_engine.training.monitoring.callbacks import Observer, RunStart, StepEnd


class ReachedStep(Observer):
    """Writes the number of completed optimizer steps to the object that the stage's entry point reads."""

    def __init__(self, reached: Reached) -> None:
        self._reached = reached

    def on_start(self, start: RunStart) -> None:
        self._reached.step = start.steps_done

    def on_step(self, end: StepEnd) -> None:
        self._reached.step = end.step
