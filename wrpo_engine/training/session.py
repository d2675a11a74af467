"""One attempt of a training stage, on as many ranks as torchrun started: the order in which everything happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace

import torch

from wrpo_engine.artifacts.volume import address
from wrpo_engine.config import SftParams, TrainParams
from wrpo_engine.errors import Interrupted
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.stage import StageContext, StageResult
from wrpo_engine.training.attempt import Attempt, Workload, prepare_workload
from wrpo_engine.training.backends.base import Backend
from wrpo_engine.training.batch.batching import BatchPlan, RowCost
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.checkpoint.format import Checkpoint
from wrpo_engine.training.checkpoint.manager import CheckpointStore
from wrpo_engine.training.checks import require_same_model
from wrpo_engine.training.data.holdout import EVALUATION_FILE, PREFIX, EvaluationHistory, EvaluationLog
from wrpo_engine.training.distributed.collectives import Group, computing_device, open_group
from wrpo_engine.training.distributed.network import report_network
from wrpo_engine.training.evaluation import Evaluation
from wrpo_engine.training.export.export import gather_weights
from wrpo_engine.training.loop import TrainingOutcome, TrainingRun, train
from wrpo_engine.training.models.attention_choice import AttentionShape, Trial, choose_attention, implementation
from wrpo_engine.training.models.policy import load_frozen, load_policy
from wrpo_engine.training.monitoring.callbacks import Observer, Observers
from wrpo_engine.training.monitoring.cpu_training import parameters_of, warn_of_cpu
from wrpo_engine.training.monitoring.journals import JournalPublisher, fetch_journals
from wrpo_engine.training.monitoring.metrics import METRICS_FILE, MetricsLog
from wrpo_engine.training.monitoring.progress_callback import StepProgressObserver
from wrpo_engine.training.monitoring.throughput import make_speedometer
from wrpo_engine.training.monitoring.trackers import require_packages, tracker_observers
from wrpo_engine.training.monitoring.watchdog import Watchdog, make_watchdog
from wrpo_engine.training.objectives.divergence import RewardDivergence
from wrpo_engine.training.objectives.tasks import Task
from wrpo_engine.training.publishing import TrainingResult, publish_model
from wrpo_engine.training.reference.log_probs import Reference, ReferencePass
from wrpo_engine.training.reference.self_check import require_plain_results
from wrpo_engine.training.reference_choice import reference_logps
from wrpo_engine.training.resuming import restore_run, take_best
from wrpo_engine.training.sources import RowSource, exported_tokenizer

log = logging.getLogger("wrpo_engine")


def run_training(ctx: StageContext, params: SftParams | TrainParams, task: Task, source: RowSource) -> StageResult:
    """Prepare, resume, train, export and commit; skip what an earlier attempt has done."""
    runtime = ctx.config.runtime
    require_packages(runtime.trackers)
    with open_group(ctx.environ, timeout_s=runtime.collective_timeout_seconds) as group:
        report_network(group, computing_device())
        session = TrainingSession.prepare(Attempt(ctx=ctx, params=params, task=task, source=source, group=group))
        with ExitStack() as stack:
            run = session.resume(stack)
            outcome = train(run, steps_done=session.steps_done)
        return session.finish(run, outcome)


def make_backend(attempt: Attempt, base: ResolvedModel, layout: Layout, *, needs_frozen: bool) -> Backend:
    """Load the policy, and the reference beside it if it is asked for, and give both to DeepSpeed."""
    from wrpo_engine.training.backends.deepspeed import DeepSpeedBackend, check_settings, partitioned_loading

    params, runtime, group = attempt.params, attempt.runtime, attempt.group
    check_settings(params, runtime, layout)
    with partitioned_loading(params, runtime, group.world_size):
        attention = implementation(runtime.attention)
        model = load_policy(base, params, layout, implementation=attention)
        if group.is_main:
            kept = "what torch.compile decides" if runtime.torch_compile else model.kept_activations
            log.info("kept by layers for the backward pass: %s", kept)
        frozen = load_frozen(base, params, layout, implementation=attention) if needs_frozen else None
    return DeepSpeedBackend(model, params, runtime, group, frozen)


def make_observers(ctx: StageContext, group: Group) -> Sequence[Observer]:
    """Return what looks on beside metrics.jsonl and the progress posts."""
    journals = JournalPublisher(ctx.output, group, (METRICS_FILE, EVALUATION_FILE))
    return (StepProgressObserver(ctx.step_progress), journals, *tracker_observers(ctx, group))


@dataclass(frozen=True, kw_only=True)
class TrainingSession:
    """The phases of an attempt around its training loop; each is called on all ranks together."""

    attempt: Attempt
    workload: Workload
    backend: Backend
    checkpoints: CheckpointStore
    checkpoint: Checkpoint | None
    """The last complete one of earlier attempts."""
    warnings: Mapping[str, float] = field(default_factory=dict)
    """Metrics that say what is suspicious about the run."""

    @classmethod
    def prepare(cls, attempt: Attempt) -> TrainingSession:
        """Prepare model, rows and plan, find the last checkpoint, load the backend and check its results."""
        ctx, params, runtime, group = attempt.ctx, attempt.params, attempt.runtime, attempt.group
        workload = prepare_workload(attempt)
        parameters = parameters_of(workload.base.directory.tensor_facts()) if group.is_main else 0
        warnings = warn_of_cpu(parameters, on_gpu=torch.cuda.is_available(), name=workload.base.identity)
        checkpoints = CheckpointStore(ctx.output, group, runtime.keep_checkpoints)
        checkpoint = checkpoints.latest()
        fetch_journals(ctx.output, group, (METRICS_FILE, EVALUATION_FILE))
        layout = workload.plan.layout
        shape = AttentionShape.of(workload.config, getattr(torch, params.precision))
        choose_attention(runtime.attention, layout, Trial(shape, computing_device()), group)
        needs_frozen = attempt.task.needs_reference and runtime.reference == "in-memory" and params.lora is None
        backend = make_backend(attempt, workload.base, layout, needs_frozen=needs_frozen)
        if not runtime.torch_compile:
            model_type = workload.config.model_type
            require_plain_results(backend, workload.rows[0], layout, precision=params.precision, model=model_type)
        if any(group.gather(ctx.stop.requested)):
            raise Interrupted
        return cls(
            attempt=attempt,
            workload=workload,
            backend=backend,
            checkpoints=checkpoints,
            checkpoint=checkpoint,
            warnings=warnings,
        )

    @property
    def steps_done(self) -> int:
        """Optimizer steps that earlier attempts have completed."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    @property
    def evaluation_due(self) -> bool:
        """True if the last attempt was stopped before the evaluation of its last step was complete."""
        return self.checkpoint is not None and bool(self.checkpoint.state.get("evaluation_due"))

    def resume(self, stack: ExitStack) -> TrainingRun:
        """Compute the reference, restore the last checkpoint and return what the loop needs.

        The reference needs the untrained policy, so it comes first. Watchdog and observers are closed by `stack`.
        """
        ctx, params, runtime, group = self.attempt.ctx, self.attempt.params, self.attempt.runtime, self.attempt.group
        workload = self.workload
        watchdog = stack.enter_context(closing(make_watchdog(ctx, group).start()))
        reference = self._reference(workload.rows, workload.plan, watchdog)
        evaluation = self._evaluation(watchdog)
        divergence = RewardDivergence(params) if isinstance(params, TrainParams) else None
        self._restore(evaluation, divergence)
        observers = stack.enter_context(closing(Observers.of((watchdog, *make_observers(ctx, group)))))
        return TrainingRun(
            task=self.attempt.task,
            params=params,
            rows=workload.rows,
            plan=workload.plan,
            backend=self.backend,
            group=group,
            reference=reference,
            checkpoints=self.checkpoints,
            checkpoint_every_steps=runtime.checkpoint_every_steps,
            log=MetricsLog(ctx.output.directory / METRICS_FILE, group),
            progress=ctx.progress,
            should_stop=lambda: ctx.stop.requested,
            monotonic=time.monotonic,
            observer=observers,
            evaluation=evaluation,
            evaluation_due=self.evaluation_due,
            divergence=divergence,
            model=workload.model,
            speedometer=make_speedometer(workload.config, params, runtime, world_size=group.world_size),
            prefetch=runtime.prefetch_batches,
        )

    def finish(self, run: TrainingRun, outcome: TrainingOutcome) -> StageResult:
        """Export the last or the best weights and commit the artifact."""
        ctx, params, group = self.attempt.ctx, self.attempt.params, self.attempt.group
        workload = self.workload
        exported_step = take_best(run, outcome)
        weights = gather_weights(self.backend, group, "float32" if params.lora is not None else params.precision)
        metrics = {**final_metrics(outcome, run.evaluation, exported_step), **self.warnings}
        metrics["changed_rows"] = float(workload.tokenized.changed.total())

        def publish() -> None:
            assert weights is not None
            tokenizer = exported_tokenizer(self.attempt.source, workload.base)
            result = TrainingResult(
                tokenizer=tokenizer,
                num_steps=outcome.num_steps,
                exported_step=exported_step,
                metrics=metrics,
                weights=weights,
            )
            publish_model(ctx, params, workload, result)

        group.on_main(publish)
        return StageResult(rows=len(workload.tokenized.rows), metrics=metrics, step=outcome.num_steps)

    def _reference(self, rows: Sequence[TokenRow], plan: BatchPlan, watchdog: Watchdog) -> Reference | None:
        if self.workload.model is None or not self.attempt.task.needs_reference:
            return None
        forward = ReferencePass(self.backend, rows, plan, self.attempt.group, on_micro_batch=watchdog.beat)
        return reference_logps(self.attempt, self.workload.model, forward)

    def _evaluation(self, watchdog: Watchdog) -> Evaluation | None:
        holdout, rows = self.attempt.params.holdout, self.workload.held_out
        if holdout is None:
            return None
        plan = replace(self.workload.plan, costs=[RowCost.of(row) for row in rows], epochs=1, shuffle=False)
        records = EvaluationLog(self.attempt.ctx.output.directory / EVALUATION_FILE, self.attempt.group.is_main)
        steps_evaluated = self.steps_done - self.evaluation_due
        return Evaluation(
            task=self.attempt.task,
            backend=self.backend,
            group=self.attempt.group,
            rows=rows,
            plan=plan,
            reference=self._reference(rows, plan, watchdog),
            history=EvaluationHistory(holdout),
            log=records,
            prefetch=self.attempt.runtime.prefetch_batches,
            results={int(row["step"]): row for row in records.cut(steps_evaluated)},
        )

    def _restore(self, evaluation: Evaluation | None, divergence: RewardDivergence | None) -> None:
        """Restore the last checkpoint, if there is one, after a check that it belongs to the same model."""
        checkpoint, workload = self.checkpoint, self.workload
        if checkpoint is None:
            return
        artifact = address(self.attempt.ctx.config.output)
        saved = checkpoint.state.get("model")
        require_same_model(checkpoint.step, saved, workload.model, place=str(workload.base.path), artifact=artifact)
        restore_run(checkpoint, self.checkpoints, self.backend, evaluation, divergence)
        if self.attempt.group.is_main:
            log.info("continuing after step %d of %d", checkpoint.step, workload.plan.num_steps)


def final_metrics(outcome: TrainingOutcome, evaluation: Evaluation | None, exported_step: int) -> dict[str, float]:
    """Return the last step's metrics and, as eval_*, those of the last evaluation of the exported weights."""
    metrics = {name: float(value) for name, value in outcome.last_row.items() if name != "step"}
    if evaluation is not None:
        result = evaluation.results.get(exported_step, {})
        metrics.update({PREFIX + name: float(value) for name, value in result.items()})
    return metrics
