"""One attempt of a training stage, on as many ranks as torchrun started: the order in which everything happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from wrpo_engine.config import SftParams, TrainParams
from wrpo_engine.errors import Interrupted
from wrpo_engine.models import resolve_model
from wrpo_engine.stage import StageContext, StageResult
from wrpo_engine.training.backend import Backend
from wrpo_engine.training.checkpoint import CheckpointStore
from wrpo_engine.training.collectives import Group, open_group
from wrpo_engine.training.export import gather_weights
from wrpo_engine.training.loop import TrainingOutcome, TrainingRun, train
from wrpo_engine.training.metrics import METRICS_FILE, MetricsLog
from wrpo_engine.training.model import LogpModel
from wrpo_engine.training.observers import Observer, Observers
from wrpo_engine.training.places import CHECKPOINTS_DIRECTORY, MODEL_FIELD
from wrpo_engine.training.planning import make_plan
from wrpo_engine.training.policy import load_policy
from wrpo_engine.training.publishing import publish_model
from wrpo_engine.training.reference_source import reference_logps
from wrpo_engine.training.sources import TextSource, token_rows
from wrpo_engine.training.tasks import Task

log = logging.getLogger("wrpo_engine")


def make_deepspeed_backend(
    model: LogpModel, params: SftParams | TrainParams, ctx: StageContext, group: Group
) -> Backend:
    from wrpo_engine.training.deepspeed_backend import DeepSpeedBackend

    return DeepSpeedBackend(model, params, ctx.config.runtime, group)


def make_observers(ctx: StageContext, group: Group) -> Sequence[Observer]:  # noqa: ARG001
    """Return what looks on beside metrics.jsonl and the progress posts."""
    return ()


def run_training(ctx: StageContext, params: SftParams | TrainParams, task: Task, source: TextSource) -> StageResult:
    """Tokens, model, checkpoint, reference, loop, export, commit; what is done already is not done again."""
    with open_group(ctx.environ) as group:
        base = group.on_main(lambda: resolve_model(params.model, ctx, field=MODEL_FIELD))
        tokenized = token_rows(ctx, params, source, base, group)
        plan = make_plan(params, ctx.config.runtime, tokenized.rows, group)
        checkpoints = CheckpointStore(ctx.output.directory / CHECKPOINTS_DIRECTORY, group)
        checkpoint = checkpoints.latest()

        model = load_policy(base, params, checkpoint)
        backend = make_deepspeed_backend(model, params, ctx, group)
        if any(group.gather(ctx.stop.requested)):
            raise Interrupted
        reference = None
        if task.needs_reference:
            reference = reference_logps(ctx, params, base, tokenized.rows, plan, backend, group, checkpoint)
        if checkpoint is not None:
            backend.restore(checkpoint.step, checkpoint.read)
            if group.is_main:
                log.info("continuing after step %d of %d", checkpoint.step, plan.num_steps)

        observers = Observers.of(make_observers(ctx, group))
        run = TrainingRun(
            task=task,
            params=params,
            rows=tokenized.rows,
            plan=plan,
            backend=backend,
            group=group,
            reference=reference,
            checkpoints=checkpoints,
            checkpoint_every_steps=ctx.config.runtime.checkpoint_every_steps,
            log=MetricsLog(ctx.output.directory / METRICS_FILE, group),
            progress=ctx.progress,
            should_stop=lambda: ctx.stop.requested,
            monotonic=time.monotonic,
            observer=observers,
        )
        try:
            outcome = train(run, steps_done=checkpoint.step if checkpoint else 0)
        finally:
            observers.close()
        weights = gather_weights(backend, group, params.precision)
        metrics = final_metrics(outcome)

        def publish() -> None:
            assert weights is not None
            publish_model(ctx, params, base, tokenized, num_steps=outcome.num_steps, metrics=metrics, weights=weights)

        group.on_main(publish)
        return StageResult(rows=len(tokenized.rows), metrics=metrics, step=outcome.num_steps)


def final_metrics(outcome: TrainingOutcome) -> dict[str, float]:
    return {name: float(value) for name, value in outcome.last_row.items() if name != "step"}
