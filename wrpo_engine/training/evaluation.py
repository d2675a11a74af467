"""Evaluation on held-out rows during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wrpo_engine.training.backends.base import Backend
from wrpo_engine.training.batch.batching import BatchPlan
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.checks import held_out_loss_not_finite
from wrpo_engine.training.data.holdout import EvaluationHistory, EvaluationLog
from wrpo_engine.training.data.prefetch import Ahead, prepared_micro_batches
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.monitoring.callbacks import Observer
from wrpo_engine.training.monitoring.metrics import RankReport, StepSums
from wrpo_engine.training.objectives.tasks import Task
from wrpo_engine.training.reference.log_probs import Reference


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation of a run on held-out rows, and the results so far."""

    task: Task
    backend: Backend
    group: Group
    rows: Sequence[TokenRow]
    plan: BatchPlan
    """One epoch over the held-out rows, in their order."""
    reference: Reference | None
    history: EvaluationHistory
    log: EvaluationLog
    prefetch: int = 2
    """Micro-batches collated ahead by another thread."""
    results: dict[int, dict[str, float]] = field(default_factory=dict)
    """Rows of eval.jsonl by step; those of earlier attempts are on rank 0 only."""


def evaluate(
    evaluation: Evaluation,
    *,
    done: int,
    observer: Observer,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Return the row of eval.jsonl after `done` optimizer steps: means over the held-out rows of all ranks.

    Return None if any rank was asked to stop meanwhile. All ranks then stop after the same micro-batch and discard the
    partial result, because completing it could take most of a pod's grace period. Raise DataError for rows whose loss
    is not finite.

    The loss is the training objective with the settings at the end of the run (alpha at its maximum). Evaluations can
    therefore be compared with each other, independent of the schedule.
    """
    task, group = evaluation.task, evaluation.group
    settings = task.evaluation_settings()
    sums = StepSums(task.statistic_names())
    plan, rows = evaluation.plan, evaluation.rows
    items = prepared_micro_batches(task, rows, plan, rank=group.rank, steps=range(plan.num_steps))
    with Ahead(items, evaluation.prefetch) as ahead:
        for item in ahead:
            if group.any(should_stop()):
                return None
            batch = item.batch.to(evaluation.backend.device)
            logps_S = evaluation.backend.frozen_sequence_logps(batch)
            known = evaluation.reference
            reference_S = None if known is None else known.logps(batch, item.micro_batch.rows)
            if not item.micro_batch.is_filler:
                sums.add(task.terms(batch, logps_S, reference_S, settings), batch.row_ids, item.num_tokens)
            observer.on_held_out_micro_batch(done, batch.row_ids)
    totals = sums.reduced(group, RankReport(), denominator=task.denominator(rows))
    if totals.num_bad_rows:
        raise held_out_loss_not_finite(done, [row for found in group.gather(sums.bad_rows) for row in found])
    return {
        "step": done,
        "loss": totals.loss,
        **settings,
        **totals.means,
        "num_rows": len(rows),
        "num_tokens": totals.num_tokens,
    }
