"""The training loop of SFT and of preference optimisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from wrpo_engine.config import OptimizerParams
from wrpo_engine.errors import DataError, Interrupted
from wrpo_engine.progress import Progress
from wrpo_engine.training.backend import Backend
from wrpo_engine.training.batching import BatchPlan, MicroBatch
from wrpo_engine.training.checkpoint import CheckpointStore
from wrpo_engine.training.collate import collate
from wrpo_engine.training.collectives import Group
from wrpo_engine.training.metrics import Disagreement, MetricsLog, StepSums, StepTotals
from wrpo_engine.training.observers import Observer, RunStart, StepEnd
from wrpo_engine.training.reference import ReferenceLogps
from wrpo_engine.training.rows import TokenRow
from wrpo_engine.training.schedule import learning_rate_at
from wrpo_engine.training.tasks import Task

_NAMES_SHOWN = 10
_PER_TOKEN_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Of a log-probability computed twice: exactly 0 in the same micro-batches, rounding in others (another world size)."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """All that a run needs; nothing in it changes while it runs but the backend's weights."""

    task: Task
    params: OptimizerParams
    rows: Sequence[TokenRow]
    plan: BatchPlan
    backend: Backend
    group: Group
    reference: ReferenceLogps | None
    checkpoints: CheckpointStore
    checkpoint_every_steps: int
    log: MetricsLog
    progress: Progress
    should_stop: Callable[[], bool]
    monotonic: Callable[[], float]
    observer: Observer = field(default_factory=Observer)


@dataclass(frozen=True)
class TrainingOutcome:
    """How the run ended."""

    num_steps: int
    last_row: dict[str, float]
    """The deterministic part of the last row of metrics, on rank 0 also if nothing was left to do."""


def train(run: TrainingRun, *, steps_done: int = 0) -> TrainingOutcome:
    """Train from `steps_done` to the end.

    A step is: forward and backward over this rank's micro-batches; one all-reduce of losses, statistics and flags; a
    check that every loss is finite, before any weight moves; the optimizer step; the row of metrics; a checkpoint if
    one is due or somebody was asked to stop.
    """
    last_row = run.log.cut(steps_done)
    num_steps = run.plan.num_steps
    run.observer.on_start(RunStart(num_steps, steps_done, len(run.rows)))
    for step in range(steps_done, num_steps):
        started_s = run.monotonic()
        torch.manual_seed(hash((run.params.seed, step, run.group.rank)) & 0x7FFFFFFF)
        settings = run.task.settings(step, num_steps)
        learning_rate = learning_rate_at(step, num_steps, run.params)

        totals = _accumulate(run, step, settings)
        grad_norm = run.backend.optimizer_step(learning_rate)
        _require_finite_gradient(grad_norm, step)

        last_row = {
            "step": step + 1,
            "loss": totals.loss,
            **settings,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            **totals.means,
            "num_tokens": totals.num_tokens,
        }
        elapsed_s = max(run.monotonic() - started_s, 1e-9)
        run.log.write(last_row, elapsed_s=elapsed_s, num_tokens=totals.num_tokens)
        done = step + 1
        _report(run, done, last_row)
        run.observer.on_step(StepEnd(done, num_steps, last_row, elapsed_s))

        if totals.should_stop or (done % run.checkpoint_every_steps == 0 and done < num_steps):
            run.checkpoints.save(done, run.backend)
            run.observer.on_checkpoint(done)
        if totals.should_stop:
            raise Interrupted(f"stopped on request after step {done} of {num_steps}; the next attempt continues there")
    return TrainingOutcome(num_steps, last_row)


def _accumulate(run: TrainingRun, step: int, settings: dict[str, float]) -> StepTotals:
    """Run this rank's micro-batches and return the step's totals over all ranks; raise before damage is done."""
    denominator = run.task.denominator([run.rows[index] for index in run.plan.step_rows(step)])
    sums = StepSums(run.task.statistic_names())
    micro_batches = run.plan.micro_batches(step)[run.group.rank]
    for position, micro_batch in enumerate(micro_batches):
        _micro_step(run, step, micro_batch, sums, settings, denominator, is_last=position + 1 == len(micro_batches))
    totals = sums.reduced(run.group, stop=run.should_stop(), denominator=denominator)
    if totals.num_bad_rows:
        _raise_not_finite(step, [row for rows in run.group.gather(sums.bad_rows) for row in rows])
    if step == 0 and run.reference is not None:
        _require_agreement(run, max(run.group.gather(sums.disagreement)))
    return totals


def _micro_step(
    run: TrainingRun,
    step: int,
    micro_batch: MicroBatch,
    sums: StepSums,
    settings: dict[str, float],
    denominator: float,
    *,
    is_last: bool,
) -> None:
    rows = [run.rows[index] for index in micro_batch.rows]
    batch = collate(rows, run.plan.layout).to(run.backend.device)
    reference_S = None if run.reference is None else run.reference.batch(micro_batch.rows, run.backend.device)
    logps_S = run.backend.sequence_logps(batch)
    terms = run.task.terms(batch, logps_S, reference_S, settings)
    weight = 0.0 if micro_batch.is_filler else 1.0 / denominator
    run.backend.backward(terms.numerators.sum() * weight, is_last=is_last)
    if not micro_batch.is_filler:
        sums.add(terms, batch.row_ids, sum(row.num_tokens for row in rows))
        if step == 0 and reference_S is not None:
            sums.compare(batch, logps_S, reference_S)
    run.observer.on_micro_batch(step, batch.row_ids)


def _raise_not_finite(step: int, row_ids: Sequence[str]) -> None:
    shown = ", ".join(row_ids[:_NAMES_SHOWN]) + (", ..." if len(row_ids) > _NAMES_SHOWN else "")
    raise DataError(
        f"the loss is not finite at step {step + 1} for {len(row_ids)} rows: {shown}. "
        "Training stopped before the optimizer step; no weight has been changed by it",
        code="LossNotFinite",
        field="training.learningRate",
        hint="Lower the learning rate, or look at these rows in the input artifact.",
    )


def _require_finite_gradient(grad_norm: float, step: int) -> None:
    if not grad_norm < float("inf"):
        raise DataError(
            f"the gradient norm is {grad_norm} at step {step + 1} though every loss is finite; the step is not kept",
            code="GradientNotFinite",
            field="training.learningRate",
            hint="Lower the learning rate, or train in float32; the last checkpoint is from before this step.",
        )


def _require_agreement(run: TrainingRun, disagreement: Disagreement) -> None:
    """Before the first step the policy is the reference; if the numbers say otherwise, they are of another model."""
    limit = _PER_TOKEN_TOLERANCE[run.params.precision]
    if disagreement.per_token > limit:
        raise DataError(
            f"at step 0 policy and reference differ by {disagreement.per_token:.3g} per token on row "
            f"{disagreement.row_id}, where they must agree (tolerance {limit:g})",
            code="ReferenceMismatch",
            hint="Remove the stage's `reference` directory, so that it is computed anew, and try again.",
        )


def _report(run: TrainingRun, done: int, row: dict[str, float]) -> None:
    shown: dict[str, float] = {name: row[name] for name in ("loss", "alpha", "margin") if name in row}
    run.progress.update(done, run.plan.num_steps, metrics=shown, message=f"step {done}")
