"""The trained model as an artifact: export, card, manifest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from wrpo_engine import __version__
from wrpo_engine.artifacts.volume import address
from wrpo_engine.config import SftParams, TrainParams
from wrpo_engine.models import ResolvedModel, tokenizer_of
from wrpo_engine.stage import StageContext
from wrpo_engine.training.export import MODEL_DIRECTORY, export_model
from wrpo_engine.training.metrics import METRICS_FILE
from wrpo_engine.training.model_card import CardFacts, model_card
from wrpo_engine.training.places import MODEL_FIELD, WORK_DIRECTORIES
from wrpo_engine.training.tokenize import TokenizedRows

_SUMMARIES = {
    "sft": "The target model, fine-tuned on the best responses of the source models.",
    "train": "A target model that learnt from several source models through their answers alone, "
    "by {objective} (Weighted-Reward Preference Optimization, arXiv:2412.03187).",
}


def publish_model(
    ctx: StageContext,
    params: SftParams | TrainParams,
    base: ResolvedModel,
    tokenized: TokenizedRows,
    *,
    num_steps: int,
    metrics: dict[str, float],
    weights: dict[str, Any],
) -> None:
    """Export the model, commit the artifact, remove what only a resumed run needs; on rank 0."""
    card = _card(ctx, params, base, tokenized, metrics)
    files = export_model(
        ctx.output.directory / MODEL_DIRECTORY,
        source=base.path,
        weights=weights,
        tokenizer=tokenizer_of(base, field=MODEL_FIELD),
        card=card,
        trust_remote_code=base.trust_remote_code,
    )
    ctx.output.publish("README.md", lambda path: _write_text(path, card))
    ctx.output.commit(
        files=[*files, METRICS_FILE, "README.md"],
        rows={METRICS_FILE: num_steps},
        metrics=metrics,
        details={
            "model": base.details(),
            "step": num_steps,
            "rows": len(tokenized.rows),
            "truncated_responses": tokenized.num_truncated,
            "dropped": dict(sorted(tokenized.dropped.items())),
        },
    )
    for name in WORK_DIRECTORIES:
        shutil.rmtree(ctx.output.directory / name, ignore_errors=True)


def _card(
    ctx: StageContext,
    params: SftParams | TrainParams,
    base: ResolvedModel,
    tokenized: TokenizedRows,
    metrics: dict[str, float],
) -> str:
    data = {
        "rows": len(tokenized.rows),
        "truncated_responses": tokenized.num_truncated,
        **{f"dropped: {reason}": count for reason, count in sorted(tokenized.dropped.items())},
    }
    objective = params.objective.value if isinstance(params, TrainParams) else "SFT"
    return model_card(
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


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
