"""What one attempt of a training stage is given, and what it works on: base model, rows and the plan of batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wrpo_engine.config import Runtime, SftParams, TrainParams
from wrpo_engine.hub.model_digest import model_digest
from wrpo_engine.hub.models import ResolvedModel, resolve_model, vocabulary_size
from wrpo_engine.loading.rotary import require_own_positions
from wrpo_engine.stage import StageContext
from wrpo_engine.training.batch.batching import BatchPlan
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.data.fused_rows import with_fusion
from wrpo_engine.training.data.holdout import split_rows
from wrpo_engine.training.data.planning import make_plan
from wrpo_engine.training.data.tokenize import TokenizedRows
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.models.model import load_config
from wrpo_engine.training.objectives.tasks import Task
from wrpo_engine.training.paths import MODEL_FIELD
from wrpo_engine.training.preflight import check_start
from wrpo_engine.training.sources import RowSource, exported_tokenizer, token_rows


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What an attempt is given, on each of its ranks."""

    ctx: StageContext
    params: SftParams | TrainParams
    task: Task
    source: RowSource
    group: Group

    @property
    def runtime(self) -> Runtime:
        """Settings that do not change the result."""
        return self.ctx.config.runtime


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What an attempt trains, on which rows and in which batches."""

    base: ResolvedModel
    config: Any
    """The base model's Hugging Face config."""
    model: str | None
    """Digest of the base model; None if nothing of it is needed but the weights that are trained."""
    tokenized: TokenizedRows
    rows: Sequence[TokenRow]
    """To train on."""
    held_out: Sequence[TokenRow]
    plan: BatchPlan


def prepare_workload(attempt: Attempt) -> Workload:
    """Resolve and check the model, tokenize the rows and plan the batches; on all ranks together."""
    ctx, params, group = attempt.ctx, attempt.params, attempt.group
    base = group.on_each_node(lambda: resolve_model(params.model, ctx, field=f"{MODEL_FIELD}.model"))
    group.on_main(lambda: check_start(ctx, params, base, exported_tokenizer(attempt.source, base)))
    model = _model_digest(attempt, base)
    tokenized = token_rows(ctx, params, attempt.source, base, group)
    if isinstance(params, SftParams):
        tokenized = with_fusion(ctx, params, tokenized, group, vocabulary=vocabulary_size(base))
    rows, held_out = _split(params, tokenized.rows)
    config = load_config(base.path, trust_remote_code=base.trust_remote_code)
    lengths = (length for row in tokenized.rows for length in row.sequence_lengths)
    require_own_positions(config, lengths, field="training.maxLength")
    plan = make_plan(params, attempt.runtime, rows, group, config)
    return Workload(base=base, config=config, model=model, tokenized=tokenized, rows=rows, held_out=held_out, plan=plan)


def _model_digest(attempt: Attempt, base: ResolvedModel) -> str | None:
    """Return the digest of the model if the run needs it as reference or as the base of adapters."""
    if not attempt.task.needs_reference and attempt.params.lora is None:
        return None
    return attempt.group.on_main(lambda: model_digest(base.path))


def _split(params: SftParams | TrainParams, rows: Sequence[TokenRow]) -> tuple[Sequence[TokenRow], Sequence[TokenRow]]:
    """Return (rows to train on, held-out rows)."""
    if params.holdout is None:
        return rows, ()
    trained, held_out = split_rows(len(rows), params.holdout, params.seed)
    return [rows[index] for index in trained], [rows[index] for index in held_out]
