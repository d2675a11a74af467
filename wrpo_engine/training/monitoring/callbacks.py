"""Training callbacks: the hooks of trackers, watchdog, console and progress.

Every rank calls its observers in the order of the list, with values that the loop has computed anyway. Observers never
change what is computed. Observers that write files do so on rank 0 only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from typing_extensions import override


@dataclass(frozen=True, slots=True)
class RunStart:
    """The run at the start of an attempt, whether it starts at step 0 or resumes."""

    num_steps: int
    steps_done: int
    """Steps that earlier attempts completed."""
    num_rows: int
    """Training rows, without the held-out ones."""


@dataclass(frozen=True, slots=True)
class StepEnd:
    """An optimizer step that all ranks have completed."""

    step: int
    """Optimizer steps completed, this one included."""
    num_steps: int
    row: Mapping[str, float]
    """The deterministic part of the step's row of metrics.jsonl."""
    elapsed_s: float
    """Seconds of the step, at least 1e-9."""
    clock: Mapping[str, float] = field(default_factory=dict)
    """The other fields of the row: times, rates and memory."""


class Observer:
    """Base class of the callbacks; every hook does nothing."""

    def on_start(self, start: RunStart) -> None:
        """Run before the first step of this attempt."""

    def on_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:
        """Run after forward and backward of one micro-batch of this rank; `step` counts completed optimizer steps."""

    def on_held_out_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:
        """Run after the forward pass of one micro-batch of held-out rows of this rank."""

    def on_step(self, end: StepEnd) -> None:
        """Run after an optimizer step and its metrics."""

    def on_evaluation(self, step: int, row: Mapping[str, float]) -> None:
        """Run after an evaluation on held-out rows; `row` is the row of eval.jsonl."""

    def before_checkpoint(self, step: int) -> None:
        """Run before a checkpoint starts: publish files that must not be older than the checkpoint."""

    def on_checkpoint(self, step: int) -> None:
        """Run after a checkpoint has started; a background thread writes it."""

    def close(self) -> None:
        """Run at the end of the attempt, also after an error; must not raise."""


@dataclass(frozen=True, slots=True)
class Observers(Observer):
    """Several observers as one; every hook calls the members in order."""

    members: tuple[Observer, ...] = ()

    @classmethod
    def of(cls, members: Iterable[Observer]) -> Observers:
        """Return the given observers as one."""
        return cls(tuple(members))

    @override
    def on_start(self, start: RunStart) -> None:
        for member in self.members:
            member.on_start(start)

    @override
    def on_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:
        for member in self.members:
            member.on_micro_batch(step, row_ids)

    @override
    def on_held_out_micro_batch(self, step: int, row_ids: Sequence[str]) -> None:
        for member in self.members:
            member.on_held_out_micro_batch(step, row_ids)

    @override
    def on_step(self, end: StepEnd) -> None:
        for member in self.members:
            member.on_step(end)

    @override
    def on_evaluation(self, step: int, row: Mapping[str, float]) -> None:
        for member in self.members:
            member.on_evaluation(step, row)

    @override
    def before_checkpoint(self, step: int) -> None:
        for member in self.members:
            member.before_checkpoint(step)

    @override
    def on_checkpoint(self, step: int) -> None:
        for member in self.members:
            member.on_checkpoint(step)

    @override
    def close(self) -> None:
        for member in self.members:
            member.close()
