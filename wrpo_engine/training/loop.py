"""The training loop of SFT and of preference optimisation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch

from wrpo_engine.config import REWARD_DIVERGENCE, OptimizerParams
from wrpo_engine.errors import Interrupted
from wrpo_engine.process.progress import Progress
from wrpo_engine.seeds import seed_of
from wrpo_engine.training.backends.base import Backend
from wrpo_engine.training.backends.schedule import learning_rate_at
from wrpo_engine.training.batch.batching import BatchPlan
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.checkpoint.manager import CheckpointStore
from wrpo_engine.training.checks import loss_not_finite, require_finite_gradient
from wrpo_engine.training.data.prefetch import Ahead, Prepared, prepared_micro_batches
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.evaluation import Evaluation, evaluate
from wrpo_engine.training.models.attention_flex import uses_segments
from wrpo_engine.training.monitoring.callbacks import Observer, RunStart, StepEnd
from wrpo_engine.training.monitoring.metrics import MetricsLog, RankReport, StepSums, StepTotals
from wrpo_engine.training.monitoring.step_timer import StepPhase, StepTimer
from wrpo_engine.training.monitoring.throughput import Speedometer, peak_memory_bytes
from wrpo_engine.training.objectives.divergence import RewardDivergence
from wrpo_engine.training.objectives.tasks import Task
from wrpo_engine.training.reference.agreement import require_agreement
from wrpo_engine.training.reference.log_probs import Reference

log = logging.getLogger("wrpo_engine")


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Everything that a run needs. The backend's weights, `evaluation` and `divergence` change during the run."""

    task: Task
    params: OptimizerParams
    rows: Sequence[TokenRow]
    plan: BatchPlan
    backend: Backend
    group: Group
    reference: Reference | None
    """None if the task needs no reference."""
    checkpoints: CheckpointStore
    checkpoint_every_steps: int
    log: MetricsLog
    progress: Progress
    should_stop: Callable[[], bool]
    monotonic: Callable[[], float]
    observer: Observer = field(default_factory=Observer)
    evaluation: Evaluation | None = None
    evaluation_due: bool = False
    """True if the previous attempt was stopped before the evaluation after its last step was complete."""
    divergence: RewardDivergence | None = None
    model: str | None = None
    """Digest of the model that the run started from; None if the run needs only its trained weights."""
    timer: StepTimer = field(default_factory=StepTimer)
    speedometer: Speedometer = field(default_factory=Speedometer)
    prefetch: int = 2
    """Micro-batches collated ahead by another thread."""

    @property
    def ends_early(self) -> bool:
        """True once the held-out loss has triggered early stopping."""
        return self.evaluation is not None and self.evaluation.history.ends_training

    def state(self, *, evaluation_due: bool) -> dict[str, Any]:
        """Return the state of a checkpoint in addition to weights and optimizer, as JSON values."""
        return {
            "model": self.model,
            "evaluation_due": evaluation_due,
            "evaluations": None if self.evaluation is None else self.evaluation.history.state(),
            "divergence": None if self.divergence is None else self.divergence.state(),
        }


@dataclass(frozen=True)
class TrainingOutcome:
    """The result of a completed run."""

    num_steps: int
    """Optimizer steps completed; with early stopping fewer than planned."""
    last_row: dict[str, float]
    """The deterministic part of the last row of metrics; on rank 0 also if no step remained."""


def train(run: TrainingRun, *, steps_done: int = 0) -> TrainingOutcome:
    """Train from `steps_done` to the end, on all ranks together.

    A step consists of:

    - forward and backward over this rank's micro-batches;
    - one all-reduce of losses, statistics and flags;
    - a check that every loss is finite, before any weight changes;
    - the optimizer step and the row of metrics;
    - an evaluation on held-out rows if it is due;
    - a checkpoint if it is due or any rank was asked to stop.

    A stop does not wait for an evaluation: the next attempt starts with it. Raise Interrupted after a stop and
    DataError for a loss or gradient that is not finite.
    """
    last_row = run.log.cut(steps_done)
    num_steps = run.plan.num_steps
    run.observer.on_start(RunStart(num_steps, steps_done, len(run.rows)))
    if run.evaluation_due:
        _due_evaluation(run, steps_done)
    items = prepared_micro_batches(
        run.task, run.rows, run.plan, rank=run.group.rank, steps=range(steps_done, num_steps)
    )
    done = steps_done
    with Ahead(items, run.prefetch) as ahead:
        while done < num_steps and not run.ends_early:
            started_s = run.monotonic()
            last_row, totals = _step(run, done, ahead)
            done += 1
            elapsed_s = max(run.monotonic() - started_s, 1e-9)
            clock = _clock(run, done - 1, elapsed_s, totals)
            run.log.write(last_row, clock)
            run.observer.on_step(StepEnd(done, num_steps, last_row, elapsed_s, clock))
            evaluated = _evaluate(run, done, stopping=totals.should_stop)
            _report(run, done, last_row, clock)
            _checkpoint(run, done, evaluated, stopping=totals.should_stop)
            if totals.should_stop or evaluated is Evaluated.NOT_YET:
                run.checkpoints.finish()
                raise _interrupted(done, num_steps)
    run.checkpoints.close()
    if done < num_steps and run.group.is_main:
        log.info("stopped early after step %d of %d: the held-out loss has not improved", done, num_steps)
    return TrainingOutcome(done, last_row)


def _step(run: TrainingRun, step: int, items: Iterator[Prepared]) -> tuple[dict[str, float], StepTotals]:
    """Take the optimizer step that follows `step` completed ones; return its deterministic row of metrics."""
    torch.manual_seed(seed_of(run.params.seed, step, run.group.rank))
    num_steps = run.plan.num_steps
    settings = run.task.settings(step, num_steps)
    learning_rate = learning_rate_at(step, num_steps, run.params)

    totals = _accumulate(run, step, settings, items)
    with run.timer.phase(StepPhase.OPTIMIZER):
        grad_norm = run.backend.optimizer_step(learning_rate)
    require_finite_gradient(grad_norm, step)
    row = {
        "step": step + 1,
        "loss": totals.loss,
        **settings,
        "learning_rate": learning_rate,
        "grad_norm": grad_norm,
        **totals.means,
        "num_tokens": totals.num_tokens,
    }
    if run.divergence is not None:
        known = run.divergence.diverged
        row[REWARD_DIVERGENCE] = run.divergence.observe(row)
        if run.divergence.diverged and not known and run.group.is_main:
            log.warning("%s", run.divergence.warning(step + 1))
    return row, totals


def _accumulate(run: TrainingRun, step: int, settings: dict[str, float], items: Iterator[Prepared]) -> StepTotals:
    """Run this rank's micro-batches and return the step's totals over all ranks; raise before any weight changes."""
    sums = StepSums([*run.task.statistic_names(), *run.task.entropy_names()])
    while True:
        with run.timer.phase(StepPhase.DATA):
            item = next(items)
        _micro_step(run, item, sums, settings)
        if item.is_last:
            break
    totals = sums.reduced(
        run.group,
        RankReport(
            stop=run.should_stop(),
            peak_memory=peak_memory_bytes(),
            attention_fallback=uses_segments(),
            phases=run.timer.take(StepPhase.DATA, StepPhase.REFERENCE, StepPhase.FORWARD, StepPhase.BACKWARD),
        ),
        denominator=item.denominator,
    )
    if totals.num_bad_rows:
        raise loss_not_finite(step, [row for rows in run.group.gather(sums.bad_rows) for row in rows])
    if step == 0 and run.reference is not None:
        require_agreement(max(run.group.gather(sums.disagreement)), run.params.precision)
    return totals


def _micro_step(run: TrainingRun, item: Prepared, sums: StepSums, settings: dict[str, float]) -> None:
    with run.timer.phase(StepPhase.DATA):
        batch = item.batch.to(run.backend.device)
    with run.timer.phase(StepPhase.REFERENCE):
        reference_S = None if run.reference is None else run.reference.logps(batch, item.micro_batch.rows)
    with run.timer.phase(StepPhase.FORWARD):
        logps_S, entropies_S = run.backend.sequence_logps_and_entropies(batch)
        terms = run.task.terms(batch, logps_S, reference_S, settings)
    weight = 0.0 if item.micro_batch.is_filler else 1.0 / item.denominator
    with run.timer.phase(StepPhase.BACKWARD):
        run.backend.backward(terms.numerators.sum() * weight, is_last=item.is_last)
    if not item.micro_batch.is_filler:
        terms.statistics.update(run.task.entropies(batch, entropies_S))
        sums.add(terms, batch.row_ids, item.num_tokens)
        if item.step == 0 and reference_S is not None:
            sums.compare(batch, logps_S, reference_S)
    run.observer.on_micro_batch(item.step, batch.row_ids)


def _clock(run: TrainingRun, step: int, elapsed_s: float, totals: StepTotals) -> dict[str, float]:
    """Return the step's times, rates and memory; {} on other ranks than 0, because only rank 0 writes them."""
    phases = {**totals.phases, **run.timer.take(StepPhase.OPTIMIZER)}
    if not run.group.is_main:
        return {}
    return run.speedometer.row(
        elapsed_s, totals, phases, lambda: [run.rows[index] for index in run.plan.step_rows(step)]
    )


class Evaluated(Enum):
    """Outcome of the evaluation after a step."""

    NOT_DUE = auto()
    NOT_YET = auto()
    """It is due, but a rank was asked to stop before it was complete."""
    BEST = auto()
    """The loss is the lowest so far."""
    NOT_BEST = auto()


def _evaluate(run: TrainingRun, done: int, *, stopping: bool = False) -> Evaluated:
    """Evaluate if it is due."""
    evaluation = run.evaluation
    if evaluation is None or not evaluation.history.is_due(done, run.plan.num_steps):
        return Evaluated.NOT_DUE
    result = evaluate(
        evaluation,
        done=done,
        observer=run.observer,
        should_stop=lambda: stopping or run.should_stop(),
    )
    if result is None:
        return Evaluated.NOT_YET
    evaluation.log.write(result)
    evaluation.results[done] = result
    run.observer.on_evaluation(done, result)
    return Evaluated.BEST if evaluation.history.add(done, result["loss"]) else Evaluated.NOT_BEST


def _due_evaluation(run: TrainingRun, done: int) -> None:
    """Evaluate the checkpoint from which the run resumes, because it may be the best."""
    evaluated = _evaluate(run, done)
    if evaluated is Evaluated.NOT_YET:
        raise _interrupted(done, run.plan.num_steps)
    if _is_kept(run, evaluated):
        run.checkpoints.mark_best(done)


def _is_kept(run: TrainingRun, evaluated: Evaluated) -> bool:
    return evaluated is Evaluated.BEST and run.evaluation is not None and run.evaluation.history.params.keep_best


def _interrupted(done: int, num_steps: int) -> Interrupted:
    return Interrupted(f"stopped on request after step {done} of {num_steps}; the next attempt resumes there")


def _checkpoint(run: TrainingRun, done: int, evaluated: Evaluated, *, stopping: bool) -> None:
    """Save a checkpoint if it is due. The weights after the last step need none, because they are exported."""
    run.checkpoints.poll()
    ends = done == run.plan.num_steps or run.ends_early
    is_due = evaluated is Evaluated.NOT_YET
    keep = _is_kept(run, evaluated)
    if not (stopping or is_due or (not ends and (keep or done % run.checkpoint_every_steps == 0))):
        return
    run.observer.before_checkpoint(done)
    run.checkpoints.save(done, run.backend, run.state(evaluation_due=is_due))
    if keep:
        run.checkpoints.mark_best(done)
    run.observer.on_checkpoint(done)


def _report(run: TrainingRun, done: int, row: dict[str, float], clock: Mapping[str, float]) -> None:
    shown: dict[str, float] = {
        name: row[name] for name in ("loss", "alpha", "margin", REWARD_DIVERGENCE) if name in row
    }
    if "attention_fallback" in clock:
        shown["attention_fallback"] = clock["attention_fallback"]
    if run.evaluation is not None and run.evaluation.results:
        shown["eval_loss"] = run.evaluation.results[max(run.evaluation.results)]["loss"]
    rate = f", {clock['triples_per_second']:.3g} rows/s" if clock else ""
    run.progress.update(done, run.plan.num_steps, metrics=shown, message=f"step {done}{rate}")
