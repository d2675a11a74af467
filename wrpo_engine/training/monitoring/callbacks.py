"""What else looks on while a model is trained: trackers, watchdog, console, progress.

Observers are called on every rank, in the order in which they are given, with values that the loop has anyway; they
never change what is computed. Whoever writes files does so on rank 0 only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunStart:
    """The run as it begins or continues."""

    num_steps: int
    steps_done: int
    """Steps that earlier attempts completed."""
    num_rows: int


@dataclass(frozen=True, slots=True)
class StepEnd:
    """An optimizer step that all ranks have completed."""

    step: int
    """Optimizer steps completed, this one included."""
    num_steps: int
    row: Mapping[str, float]
    """The deterministic part of the step's row of metrics.jsonl."""
    elapsed_s: float
    clock: Mapping[str, float] = field(default_factory=dict)
    """The rest of it: times, rates and memory."""


class Observer:
    """Base class: every hook does nothing."""

    def on_start(self, start: RunStart) -> None:
        """Before the first step of this attempt."""

    def on_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:
        """After the forward and backward pass of one micro-batch of this rank; `step` counts completed steps."""

    def on_held_out_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:
        """After the forward pass of one micro-batch of held-out rows of this rank."""

    def on_step(self, end: StepEnd) -> None:
        """After an optimizer step and its metrics."""

    def on_evaluation(self, step: int, row: Mapping[str, float]) -> None:
        """After an evaluation on held-out rows; `row` is that of eval.jsonl."""

    def before_checkpoint(self, step: int) -> None:
        """Before a checkpoint is begun: files that must not be older than it are to be made durable now."""

    def on_checkpoint(self, step: int) -> None:
        """After a checkpoint was begun; it is written in the background."""

    def close(self) -> None:
        """At the end of the attempt, however it ends; must not raise."""


@dataclass(frozen=True, slots=True)
class Observers(Observer):
    """Several as one."""

    members: tuple[Observer, ...] = ()

    @classmethod
    def of(cls, members: Iterable[Observer]) -> Observers:
        return cls(tuple(members))

    def on_start(self, start: RunStart) -> None:
        for member in self.members:
            member.on_start(start)

    def on_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:
        for member in self.members:
            member.on_micro_batch(step, row_ids)

    def on_held_out_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:
        for member in self.members:
            member.on_held_out_micro_batch(step, row_ids)

    def on_step(self, end: StepEnd) -> None:
        for member in self.members:
            member.on_step(end)

    def on_evaluation(self, step: int, row: Mapping[str, float]) -> None:
        for member in self.members:
            member.on_evaluation(step, row)

    def before_checkpoint(self, step: int) -> None:
        for member in self.members:
            member.before_checkpoint(step)

    def on_checkpoint(self, step: int) -> None:
        for member in self.members:
            member.on_checkpoint(step)

    def close(self) -> None:
        for member in self.members:
            member.close()
