"""One attempt of a training stage, on as many ranks as torchrun started: the order in which everything happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

from wrpo_engine.artifacts.volume import address
from wrpo_engine.config import SftParams, TrainParams
from wrpo_engine.errors import Interrupted
from wrpo_engine.hub.model_digest import model_digest
from wrpo_engine.hub.models import ResolvedModel, resolve_model
from wrpo_engine.loading.rotary import require_own_positions
from wrpo_engine.stage import StageContext, StageResult
from wrpo_engine.training.backends.base import Backend
from wrpo_engine.training.batch.batching import BatchPlan, RowCost
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.checkpoint.format import Checkpoint
from wrpo_engine.training.checkpoint.manager import CheckpointStore
from wrpo_engine.training.checks import require_same_model
from wrpo_engine.training.data.holdout import EVALUATION_FILE, PREFIX, EvaluationHistory, EvaluationLog, split_rows
from wrpo_engine.training.data.planning import make_plan
from wrpo_engine.training.distributed.collectives import Group, open_group
from wrpo_engine.training.evaluation import Evaluation
from wrpo_engine.training.export.export import gather_weights
from wrpo_engine.training.export.publishing import publish_model
from wrpo_engine.training.loop import TrainingOutcome, TrainingRun, train
from wrpo_engine.training.models.model import load_config
from wrpo_engine.training.models.policy import load_frozen, load_policy
from wrpo_engine.training.monitoring.callbacks import Observer, Observers
from wrpo_engine.training.monitoring.journals import JournalPublisher, fetch_journals
from wrpo_engine.training.monitoring.metrics import METRICS_FILE, MetricsLog
from wrpo_engine.training.monitoring.progress_callback import StepProgressObserver
from wrpo_engine.training.monitoring.throughput import make_speedometer
from wrpo_engine.training.monitoring.trackers import require_packages, tracker_observers
from wrpo_engine.training.monitoring.watchdog import Watchdog, make_watchdog
from wrpo_engine.training.objectives.divergence import RewardDivergence
from wrpo_engine.training.objectives.tasks import Task
from wrpo_engine.training.paths import MODEL_FIELD
from wrpo_engine.training.preflight import check_start
from wrpo_engine.training.reference.log_probs import Reference
from wrpo_engine.training.reference.self_check import require_plain_results
from wrpo_engine.training.reference.source import reference_logps
from wrpo_engine.training.sources import RowSource, exported_tokenizer, token_rows

log = logging.getLogger("wrpo_engine")


def make_backend(
    ctx: StageContext,
    params: SftParams | TrainParams,
    base: ResolvedModel,
    group: Group,
    layout: Layout,
    *,
    needs_frozen: bool,
) -> Backend:
    """Load the policy, and the reference beside it if it is asked for, and give both to DeepSpeed."""
    from wrpo_engine.training.backends.deepspeed import DeepSpeedBackend, check_settings, partitioned_loading

    runtime = ctx.config.runtime
    check_settings(params, runtime, layout)
    with partitioned_loading(params, runtime, group.world_size):
        model = load_policy(base, params, layout)
        if group.is_main:
            kept = "what torch.compile decides" if runtime.torch_compile else model.kept_activations
            log.info("kept by layers for the backward pass: %s", kept)
        frozen = load_frozen(base, params, layout) if needs_frozen else None
    return DeepSpeedBackend(model, params, runtime, group, frozen)


def make_observers(ctx: StageContext, group: Group) -> Sequence[Observer]:
    """Return what looks on beside metrics.jsonl and the progress posts."""
    journals = JournalPublisher(ctx.output, group, (METRICS_FILE, EVALUATION_FILE))
    return (StepProgressObserver(ctx.step_progress), journals, *tracker_observers(ctx, group))


def run_training(ctx: StageContext, params: SftParams | TrainParams, task: Task, source: RowSource) -> StageResult:
    """Tokens, model, checkpoint, reference, loop, export, commit; what is done already is not done again."""
    runtime = ctx.config.runtime
    require_packages(runtime.trackers)
    with open_group(ctx.environ, timeout_s=runtime.collective_timeout_seconds) as group:
        base = group.on_each_node(lambda: resolve_model(params.model, ctx, field=f"{MODEL_FIELD}.model"))
        group.on_main(lambda: check_start(ctx, params, base, exported_tokenizer(source, base)))
        model = _model_digest(params, task, base, group)
        tokenized = token_rows(ctx, params, source, base, group)
        rows, held_out = _split(params, tokenized.rows)
        config = load_config(base.path, trust_remote_code=base.trust_remote_code)
        lengths = (length for row in tokenized.rows for length in row.sequence_lengths)
        require_own_positions(config, lengths, field="training.maxLength")
        plan = make_plan(params, runtime, rows, group, config)
        checkpoints = CheckpointStore(ctx.output, group, runtime.keep_checkpoints)
        checkpoint = checkpoints.latest()
        fetch_journals(ctx.output, group, (METRICS_FILE, EVALUATION_FILE))

        needs_frozen = task.needs_reference and runtime.reference == "in-memory" and params.lora is None
        backend = make_backend(ctx, params, base, group, plan.layout, needs_frozen=needs_frozen)
        if not runtime.torch_compile:
            require_plain_results(backend, rows[0], plan.layout, precision=params.precision, model=config.model_type)
        if any(group.gather(ctx.stop.requested)):
            raise Interrupted
        with ExitStack() as stack:
            watchdog = stack.enter_context(closing(make_watchdog(ctx, group).start()))
            find_reference = partial(_reference, ctx, params, task, model, backend, group, watchdog)
            reference = find_reference(rows, plan)
            steps_done = checkpoint.step if checkpoint is not None else 0
            is_due = checkpoint is not None and bool(checkpoint.state.get("evaluation_due"))
            evaluation = _evaluation(ctx, params, held_out, plan, group, steps_done - is_due, find_reference)
            divergence = RewardDivergence(params) if isinstance(params, TrainParams) else None
            if checkpoint is not None:
                artifact = address(ctx.config.output)
                require_same_model(
                    checkpoint.step, checkpoint.state.get("model"), model, place=str(base.path), artifact=artifact
                )
                _restore(checkpoint, checkpoints, backend, evaluation, divergence)
                if group.is_main:
                    log.info("continuing after step %d of %d", checkpoint.step, plan.num_steps)

            observers = stack.enter_context(closing(Observers.of((watchdog, *make_observers(ctx, group)))))
            run = TrainingRun(
                task=task,
                params=params,
                rows=rows,
                plan=plan,
                backend=backend,
                group=group,
                reference=reference,
                checkpoints=checkpoints,
                checkpoint_every_steps=runtime.checkpoint_every_steps,
                log=MetricsLog(ctx.output.directory / METRICS_FILE, group),
                progress=ctx.progress,
                should_stop=lambda: ctx.stop.requested,
                monotonic=time.monotonic,
                observer=observers,
                evaluation=evaluation,
                evaluation_due=is_due,
                divergence=divergence,
                model=model,
                speedometer=make_speedometer(config, params, runtime, world_size=group.world_size),
                prefetch=runtime.prefetch_batches,
            )
            outcome = train(run, steps_done=steps_done)
        exported_step = _take_best(run, outcome)
        weights = gather_weights(backend, group, "float32" if params.lora is not None else params.precision)
        metrics = final_metrics(outcome, evaluation, exported_step)
        metrics["changed_rows"] = float(tokenized.changed.total())

        def publish() -> None:
            assert weights is not None
            publish_model(
                ctx,
                params,
                base,
                tokenized,
                tokenizer=exported_tokenizer(source, base),
                num_steps=outcome.num_steps,
                exported_step=exported_step,
                held_out_rows=len(held_out),
                metrics=metrics,
                weights=weights,
            )

        group.on_main(publish)
        return StageResult(rows=len(tokenized.rows), metrics=metrics, step=outcome.num_steps)


def _split(params: SftParams | TrainParams, rows: Sequence[TokenRow]) -> tuple[Sequence[TokenRow], Sequence[TokenRow]]:
    """Return (rows to train on, held-out rows)."""
    if params.holdout is None:
        return rows, ()
    trained, held_out = split_rows(len(rows), params.holdout, params.seed)
    return [rows[index] for index in trained], [rows[index] for index in held_out]


def _model_digest(params: SftParams | TrainParams, task: Task, base: ResolvedModel, group: Group) -> str | None:
    """Return the digest of the model if the run needs it beside the weights that it trains, as reference or as base."""
    if not task.needs_reference and params.lora is None:
        return None
    return group.on_main(lambda: model_digest(base.path))


def _reference(
    ctx: StageContext,
    params: SftParams | TrainParams,
    task: Task,
    model: str | None,
    backend: Backend,
    group: Group,
    watchdog: Watchdog,
    rows: Sequence[TokenRow],
    plan: BatchPlan,
) -> Reference | None:
    if model is None or not task.needs_reference:
        return None
    return reference_logps(ctx, params, model, rows, plan, backend, group, on_micro_batch=watchdog.beat)


def _restore(
    checkpoint: Checkpoint,
    checkpoints: CheckpointStore,
    backend: Backend,
    evaluation: Evaluation | None,
    divergence: RewardDivergence | None,
) -> None:
    """Put everything back as it was after the checkpoint's step."""
    backend.restore(checkpoint.step, checkpoint.read)
    state = checkpoint.state
    if divergence is not None and state.get("divergence") is not None:
        divergence.restore(state["divergence"])
    if evaluation is None or state.get("evaluations") is None:
        return
    evaluation.history.restore(state["evaluations"])
    best_step = evaluation.history.best_step
    if not evaluation.history.params.keep_best or best_step is None:
        return
    if best_step == checkpoint.step:
        checkpoints.mark_best(best_step)
        return
    best = checkpoints.best()
    if best is not None and best.step == checkpoint.step and state.get("evaluation_due"):
        # An attempt that was killed later made up for this step's evaluation, as this one will, and found it better.
        return
    if best is None or best.step != best_step:
        log.warning("the checkpoint of step %d, the best so far, is lost; only later ones can be the best", best_step)
        evaluation.history.forget_best()


def _evaluation(
    ctx: StageContext,
    params: SftParams | TrainParams,
    held_out: Sequence[TokenRow],
    plan: BatchPlan,
    group: Group,
    steps_evaluated: int,
    find_reference: partial[Reference | None],
) -> Evaluation | None:
    if params.holdout is None:
        return None
    costs = [RowCost.of(row) for row in held_out]
    own_plan = replace(plan, costs=costs, epochs=1, shuffle=False)
    records = EvaluationLog(ctx.output.directory / EVALUATION_FILE, group.is_main)
    return Evaluation(
        rows=held_out,
        plan=own_plan,
        reference=find_reference(held_out, own_plan),
        history=EvaluationHistory(params.holdout),
        log=records,
        results={int(row["step"]): row for row in records.cut(steps_evaluated)},
    )


def _take_best(run: TrainingRun, outcome: TrainingOutcome) -> int:
    """Put the best checkpoint's weights into the backend if they are to be exported; return the exported step."""
    evaluation = run.evaluation
    if evaluation is None or not evaluation.history.params.keep_best:
        return outcome.num_steps
    best_step = evaluation.history.best_step
    if best_step is None or best_step == outcome.num_steps:
        return outcome.num_steps
    best = run.checkpoints.best()
    if best is None or best.step != best_step:
        if run.group.is_main:
            log.warning("the checkpoint of step %d, the best one, is lost; the last weights are exported", best_step)
        return outcome.num_steps
    run.backend.restore(best.step, best.read)
    if run.group.is_main:
        log.info("exporting the weights after step %d, which had the lowest held-out loss", best_step)
    return best_step


def final_metrics(outcome: TrainingOutcome, evaluation: Evaluation | None, exported_step: int) -> dict[str, float]:
    """Return the last step's metrics and, as eval_*, those of the last evaluation of the exported weights."""
    metrics = {name: float(value) for name, value in outcome.last_row.items() if name != "step"}
    if evaluation is not None:
        result = evaluation.results.get(exported_step, {})
        metrics.update({PREFIX + name: float(value) for name, value in result.items()})
    return metrics
