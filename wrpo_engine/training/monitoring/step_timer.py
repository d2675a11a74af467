"""Timer of a step's phases: data, reference, forward, backward, optimizer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

import torch


class StepPhase(StrEnum):
    """A part of a step, in the order of the log. The rest of a step is communication and bookkeeping."""

    DATA = "data"
    """Waiting for a micro-batch and moving it to the device."""
    REFERENCE = "reference"
    """The frozen model's forward pass with an in-memory reference, otherwise the lookup of cached log-probabilities."""
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


class StepTimer:
    """Sums the seconds of each phase over a step; costs two clock readings per phase, microseconds.

    A GPU works asynchronously. There the times are those between CUDA events in its stream, read once after the step,
    when the GPU has finished anyway: measuring adds no synchronisation.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.perf_counter, *, on_gpu: bool = torch.cuda.is_available()
    ) -> None:
        self._monotonic = monotonic
        self._on_gpu = on_gpu
        self._seconds: dict[StepPhase, float] = dict.fromkeys(StepPhase, 0.0)
        self._events: list[tuple[StepPhase, Any, Any]] = []

    @contextlib.contextmanager
    def phase(self, phase: StepPhase) -> Iterator[None]:
        """Add the time of the block to `phase`; a block that raises is not counted."""
        if self._on_gpu and phase is not StepPhase.DATA:
            make_event: Callable[..., Any] = torch.cuda.Event
            begin, end = make_event(enable_timing=True), make_event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((phase, begin, end))
            return
        started = self._monotonic()
        yield
        self._seconds[phase] += self._monotonic() - started

    def take(self, *phases: StepPhase) -> dict[str, float]:
        """Return `<phase>_seconds` of the given phases and reset all; call it when the phases' work has ended."""
        if self._events:
            self._events[-1][2].synchronize()
        for phase, begin, end in self._events:
            self._seconds[phase] += begin.elapsed_time(end) / 1000
        taken = {f"{phase}_seconds": self._seconds[phase] for phase in phases}
        self._seconds = dict.fromkeys(StepPhase, 0.0)
        self._events.clear()
        return taken
