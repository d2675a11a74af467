"""The stages `sft` and `train`: from artifacts to a trained model, on as many ranks as torchrun started."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wrpo_engine import __version__
from wrpo_engine.artifacts.volume import address
from wrpo_engine.config import SftParams, TrainParams
from wrpo_engine.errors import Interrupted
from wrpo_engine.models import ResolvedModel, resolve_model, tokenizer_of
from wrpo_engine.stage import StageContext, StageResult
from wrpo_engine.training.backend import Backend, TensorKind
from wrpo_engine.training.batching import BatchPlan, RowCost
from wrpo_engine.training.checkpoint import Checkpoint, CheckpointStore
from wrpo_engine.training.collectives import Group, open_group
from wrpo_engine.training.export import MODEL_DIRECTORY, export_model, gather_weights
from wrpo_engine.training.inputs import SFT_ROWS_FILE, TRIPLES_FILE, ChatEncoder, read_sft_rows, read_triples
from wrpo_engine.training.loop import TrainingOutcome, TrainingRun, train
from wrpo_engine.training.metrics import METRICS_FILE, MetricsLog
from wrpo_engine.training.model import LogpModel, load_causal_lm
from wrpo_engine.training.model_card import CardFacts, model_card
from wrpo_engine.training.objective import preference_objective
from wrpo_engine.training.reference import ReferenceCache, ReferenceLogps, compute_reference, reference_fingerprint
from wrpo_engine.training.rows import TokenRow
from wrpo_engine.training.tasks import PreferenceTask, SftTask, Task
from wrpo_engine.training.token_cache import read_tokens, write_tokens
from wrpo_engine.training.tokenize import TextRow, TokenizedRows, require_rows, tokenize_rows

log = logging.getLogger("wrpo_engine")

CHECKPOINTS_DIRECTORY = "checkpoints"
REFERENCE_DIRECTORY = "reference"
TOKENS_DIRECTORY = "tokens"
_MODEL_FIELD = "target"
CPU_MICRO_BATCH_TOKENS = 1024
"""A CPU computes no faster on more tokens at a time; they only take memory."""


def run_sft(ctx: StageContext) -> StageResult:
    """Fine-tune the target on y_ws; loss is the mean over the response tokens of the global batch."""
    params = ctx.config.params
    assert isinstance(params, SftParams)
    rows = _Source("sft-rows", SFT_ROWS_FILE, read_sft_rows)
    return run_training(ctx, params, SftTask(params), rows)


def run_train(ctx: StageContext) -> StageResult:
    """Optimise preferences from the SFT checkpoint, which is also the reference."""
    params = ctx.config.params
    assert isinstance(params, TrainParams)
    objective = preference_objective(params)

    def read(path: Path) -> list[TextRow]:
        return read_triples(path, has_source=objective.has_source)

    return run_training(ctx, params, PreferenceTask(params, objective), _Source("triples", TRIPLES_FILE, read))


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the rows come from."""

    role: str
    file: str
    read: Callable[[Path], list[TextRow]]


def make_deepspeed_backend(
    model: LogpModel, params: SftParams | TrainParams, ctx: StageContext, group: Group
) -> Backend:
    from wrpo_engine.training.deepspeed_backend import DeepSpeedBackend

    return DeepSpeedBackend(model, params, ctx.config.runtime, group)


def run_training(
    ctx: StageContext,
    params: SftParams | TrainParams,
    task: Task,
    source: _Source,
) -> StageResult:
    """Tokens, model, checkpoint, reference, loop, export, commit; what is done already is not done again."""
    with open_group(ctx.environ) as group:
        base = group.on_main(lambda: resolve_model(params.model, ctx, field=_MODEL_FIELD))
        tokenized = _tokens(ctx, params, source, base, group)
        plan = _plan(ctx, params, tokenized.rows, group)
        checkpoints = CheckpointStore(ctx.output.directory / CHECKPOINTS_DIRECTORY, group)
        checkpoint = checkpoints.latest()

        model = _load(base, params, checkpoint)
        backend = make_deepspeed_backend(model, params, ctx, group)
        if any(group.gather(ctx.stop.requested)):
            raise Interrupted
        reference = _reference(ctx, params, task, base, tokenized.rows, plan, backend, group, checkpoint)
        if checkpoint is not None:
            backend.restore(checkpoint.step, checkpoint.read)
            if group.is_main:
                log.info("continuing after step %d of %d", checkpoint.step, plan.num_steps)

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
        )
        outcome = train(run, steps_done=checkpoint.step if checkpoint else 0)
        weights = gather_weights(backend, group, params.precision)

        def publish() -> None:
            assert weights is not None
            _publish(ctx, params, base, tokenized, outcome, weights)

        group.on_main(publish)
        return StageResult(rows=len(tokenized.rows), metrics=_final_metrics(outcome), step=outcome.num_steps)


def _tokens(
    ctx: StageContext, params: SftParams | TrainParams, source: _Source, base: ResolvedModel, group: Group
) -> TokenizedRows:
    """Tokenise on rank 0, once in the stage's life; the other ranks and later attempts read the result."""
    path = ctx.output.directory / TOKENS_DIRECTORY / f"rows-{__version__}.parquet"

    def tokenize() -> None:
        if path.is_file():
            return
        artifact = ctx.input(source.role)
        text_rows = source.read(artifact.file(source.file))
        tokenized = tokenize_rows(text_rows, ChatEncoder(tokenizer_of(base, field=_MODEL_FIELD)), params)
        require_rows(tokenized, num_rows=len(text_rows), artifact=address(artifact.ref))
        write_tokens(path, tokenized)

    group.on_main(tokenize)
    tokenized = read_tokens(path)
    if group.is_main:
        log.info(
            "%d rows, %d responses cut to maxLength, dropped: %s",
            len(tokenized.rows),
            tokenized.num_truncated,
            dict(tokenized.dropped) or "none",
        )
    return tokenized


def _plan(ctx: StageContext, params: SftParams | TrainParams, rows: Sequence[TokenRow], group: Group) -> BatchPlan:
    if len(rows) < params.global_batch_size and group.is_main:
        log.warning(
            "%d rows are fewer than globalBatchSize %d: every step takes all of them",
            len(rows),
            params.global_batch_size,
        )
    return BatchPlan(
        costs=[RowCost.of(row) for row in rows],
        global_batch_size=params.global_batch_size,
        epochs=params.epochs,
        seed=params.seed,
        world_size=group.world_size,
        micro_batch_tokens=micro_batch_tokens(ctx.config.runtime.micro_batch_tokens),
    )


def micro_batch_tokens(bound: int) -> int:
    """Return the tokens of one forward pass: the configured upper bound, on a CPU not more than is of use."""
    return bound if torch.cuda.is_available() else min(bound, CPU_MICRO_BATCH_TOKENS)


def _load(base: ResolvedModel, params: SftParams | TrainParams, checkpoint: Checkpoint | None) -> LogpModel:
    """Load the base model; with a checkpoint, its weights take the place of the base's."""
    causal_lm = load_causal_lm(
        base.path,
        precision=params.precision,
        gradient_checkpointing=params.gradient_checkpointing,
        trust_remote_code=base.trust_remote_code,
    )
    if checkpoint is not None:
        with torch.no_grad():
            for name, parameter in causal_lm.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(checkpoint.read(name, TensorKind.WEIGHT))
    return LogpModel(causal_lm)


def _reference(
    ctx: StageContext,
    params: SftParams | TrainParams,
    task: Task,
    base: ResolvedModel,
    rows: Sequence[TokenRow],
    plan: BatchPlan,
    backend: Backend,
    group: Group,
    checkpoint: Checkpoint | None,
) -> ReferenceLogps | None:
    if not task.needs_reference:
        return None

    def fingerprint() -> str:
        return reference_fingerprint(sorted(base.path.glob("*.safetensors")), rows, params.precision)

    cache = ReferenceCache(ctx.output.directory / REFERENCE_DIRECTORY / group.on_main(fingerprint))
    if checkpoint is not None:
        # The weights in memory have moved: only the cache can say what the reference was.
        table = group.on_main(lambda: cache.load(len(rows), len(rows[0].responses)))
        table.require_complete(rows)
        return table
    return compute_reference(
        backend,
        rows,
        plan,
        cache,
        group,
        steps_per_part=ctx.config.runtime.checkpoint_every_steps,
        should_stop=lambda: ctx.stop.requested,
        on_step=lambda done, total: ctx.progress.update(
            0, plan.num_steps, message=f"reference log-probabilities: {done} of {total} batches"
        ),
    )


def _publish(
    ctx: StageContext,
    params: SftParams | TrainParams,
    base: ResolvedModel,
    tokenized: TokenizedRows,
    outcome: TrainingOutcome,
    weights: dict[str, Any],
) -> None:
    """Export the model, commit the artifact, remove what only a resumed run needs."""
    data = {
        "rows": len(tokenized.rows),
        "truncated_responses": tokenized.num_truncated,
        **{f"dropped: {reason}": count for reason, count in sorted(tokenized.dropped.items())},
    }
    metrics = _final_metrics(outcome)
    objective = params.objective.value if isinstance(params, TrainParams) else "SFT"
    card = model_card(
        CardFacts(
            title=f"{objective} model of {ctx.config.experiment}",
            experiment=ctx.config.experiment,
            summary=_SUMMARIES[params.stage].format(objective=objective),
            base=base.details(),
            inputs={
                role: f"{address(ref)} (sha256 {ctx.input(role).digest})" for role, ref in ctx.config.inputs.items()
            },
            params=params.model_dump(mode="json", exclude={"stage", "model"}),
            data=data,
            metrics=metrics,
            engine_version=__version__,
        )
    )
    directory = ctx.output.directory / MODEL_DIRECTORY
    files = export_model(
        directory,
        source=base.path,
        weights=weights,
        tokenizer=tokenizer_of(base, field=_MODEL_FIELD),
        card=card,
        trust_remote_code=base.trust_remote_code,
    )
    ctx.output.publish("README.md", lambda path: _write_text(path, card))
    ctx.output.commit(
        files=[*files, METRICS_FILE, "README.md"],
        rows={METRICS_FILE: outcome.num_steps},
        metrics=metrics,
        details={
            "model": base.details(),
            "step": outcome.num_steps,
            "rows": len(tokenized.rows),
            "truncated_responses": tokenized.num_truncated,
            "dropped": dict(sorted(tokenized.dropped.items())),
        },
    )
    for name in (CHECKPOINTS_DIRECTORY, REFERENCE_DIRECTORY, TOKENS_DIRECTORY):
        shutil.rmtree(ctx.output.directory / name, ignore_errors=True)


_SUMMARIES = {
    "sft": "The target model, fine-tuned on the best responses of the source models.",
    "train": "A target model that learnt from several source models through their answers alone, "
    "by {objective} (Weighted-Reward Preference Optimization, arXiv:2412.03187).",
}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def _final_metrics(outcome: TrainingOutcome) -> dict[str, float]:
    return {name: float(value) for name, value in outcome.last_row.items() if name != "step"}
