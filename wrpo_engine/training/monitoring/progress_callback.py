"""How far the run has come, for the termination message of an attempt that fails or is stopped."""

from __future__ import annotations

from wrpo_engine.stage import Reached
from wrpo_engine.training.monitoring.callbacks import Observer, RunStart, StepEnd


class ReachedStep(Observer):
    """Keeps the number of completed optimizer steps where the stage's outermost frame finds it."""

    def __init__(self, reached: Reached) -> None:
        self._reached = reached

    def on_start(self, start: RunStart) -> None:
        self._reached.step = start.steps_done

    def on_step(self, end: StepEnd) -> None:
        self._reached.step = end.step
