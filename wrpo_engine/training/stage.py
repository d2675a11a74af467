"""The stages `sft` and `train`: their rows and their task."""

from __future__ import annotations

from pathlib import Path

from wrpo_engine.config import SftParams, TrainParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.stage import StageContext, StageResult
from wrpo_engine.training.data.inputs import SFT_ROWS_FILE, TRIPLES_FILE, read_sft_rows, read_triples
from wrpo_engine.training.data.tokenize import TextRow
from wrpo_engine.training.objectives.preference import PreferenceObjective, preference_objective
from wrpo_engine.training.objectives.settings import require_effect
from wrpo_engine.training.objectives.tasks import PreferenceTask, SftTask
from wrpo_engine.training.session import run_training
from wrpo_engine.training.sources import RowSource, TextSource, TokenSource

_TRIPLES_ROLE = "triples"


def run_sft(ctx: StageContext) -> StageResult:
    """Fine-tune the target on y_ws; the loss is the mean over the response tokens of the global batch."""
    params = ctx.config.params
    assert isinstance(params, SftParams)
    require_effect(params, ctx.config.runtime, needs_reference=False)
    return run_training(ctx, params, SftTask(params), TextSource("sft-rows", SFT_ROWS_FILE, read_sft_rows))


def run_train(ctx: StageContext) -> StageResult:
    """Run preference optimisation from the SFT checkpoint, which is also the reference."""
    params = ctx.config.params
    assert isinstance(params, TrainParams)
    objective = preference_objective(params)
    require_effect(params, ctx.config.runtime, needs_reference=objective.needs_reference)
    return run_training(ctx, params, PreferenceTask(params, objective), _triples(ctx, params, objective))


def _triples(ctx: StageContext, params: TrainParams, objective: PreferenceObjective) -> RowSource:
    if params.tokenized_triples is not None:
        if _TRIPLES_ROLE in ctx.config.inputs:
            raise ConfigError(
                "training.tokenizedTriples",
                params.tokenized_triples,
                f"it has no effect with the input role {_TRIPLES_ROLE!r}",
                "Give either tokenizedTriples or the input, not both.",
            )
        return TokenSource(params.tokenized_triples, has_source=objective.has_source)

    def read(path: Path) -> list[TextRow]:
        return read_triples(path, has_source=objective.has_source)

    return TextSource(_TRIPLES_ROLE, TRIPLES_FILE, read)
