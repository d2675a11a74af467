"""Publication of the trained model as an artifact: export, card, manifest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from wrpo_engine import __version__
from wrpo_engine.artifacts.volume import address
from wrpo_engine.config import SftParams, TrainParams
from wrpo_engine.stage import StageContext
from wrpo_engine.training.attempt import Workload
from wrpo_engine.training.data.holdout import EVALUATION_FILE
from wrpo_engine.training.export.export import export_model, trained_model
from wrpo_engine.training.export.model_card import CardFacts, model_card
from wrpo_engine.training.monitoring.metrics import METRICS_FILE
from wrpo_engine.training.paths import WORK_DIRECTORIES

_SUMMARIES = {
    "sft": "The target model, fine-tuned on the best responses of the source models.",
    "fuse": "The target model, fine-tuned on responses and fused distributions of the source models.",
    "train": "A target model that learnt from the responses of several source models by "
    "{objective} (Weighted-Reward Preference Optimization, arXiv:2412.03187).",
}


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The outcome of training."""

    tokenizer: Any
    """None if a run on token ids has none."""
    num_steps: int
    """Optimizer steps completed."""
    exported_step: int
    """The step after which the weights were taken."""
    metrics: dict[str, float]
    weights: dict[str, Any]


def publish_model(
    ctx: StageContext, params: SftParams | TrainParams, workload: Workload, result: TrainingResult
) -> None:
    """Export the model, commit the artifact, remove the files that only a resumed run needs; on rank 0."""
    tokenized = workload.tokenized
    digests: dict[str, str] = {}

    def card(weight_digests: Mapping[str, str]) -> str:
        digests.update(weight_digests)
        return _card(ctx, params, workload, result.metrics, digests)

    trained = trained_model(workload.base, params, result.tokenizer, result.weights)
    files = export_model(ctx.output, trained, card)
    ctx.output.publish("README.md", lambda path: _write_text(path, card(digests)), replace=True)
    records = [name for name in (METRICS_FILE, EVALUATION_FILE) if (ctx.output.directory / name).is_file()]
    for name in records:
        ctx.output.publish(name, partial(_copy, ctx.output.directory / name), replace=True)
    ctx.output.commit(
        files=[*files, *records, "README.md"],
        rows={METRICS_FILE: result.num_steps},
        metrics=result.metrics,
        details={
            "model": workload.base.details(),
            "step": result.num_steps,
            "exported_step": result.exported_step,
            "rows": len(tokenized.rows),
            "held_out_rows": len(workload.held_out),
            "truncated_responses": tokenized.num_truncated,
            "dropped": dict(sorted(tokenized.dropped.items())),
            "changed": dict(sorted(tokenized.changed.items())),
            "control_text_rows": tokenized.num_control_text,
            **tokenized.details,
        },
    )
    for name in WORK_DIRECTORIES:
        ctx.output.discard(f"{name}/")


def _card(
    ctx: StageContext,
    params: SftParams | TrainParams,
    workload: Workload,
    metrics: dict[str, float],
    digests: Mapping[str, str],
) -> str:
    tokenized = workload.tokenized
    data = {
        "rows": len(tokenized.rows),
        "truncated_responses": tokenized.num_truncated,
        **{f"dropped: {reason}": count for reason, count in sorted(tokenized.dropped.items())},
        **{f"changed by the tokenizer: {reason}": count for reason, count in sorted(tokenized.changed.items())},
        **tokenized.details.get("tokenized_triples", {}),
    }
    objective = params.objective.value if isinstance(params, TrainParams) else "SFT"
    return model_card(
        CardFacts(
            title=f"{objective} model of {ctx.config.experiment}",
            experiment=ctx.config.experiment,
            summary=_SUMMARIES[params.stage].format(objective=objective),
            base=workload.base.details(),
            inputs={
                role: f"{address(ref)} (sha256 {ctx.input(role).digest})" for role, ref in ctx.config.inputs.items()
            },
            params=params.model_dump(mode="json", exclude={"stage", "model"}),
            data=data,
            metrics=metrics,
            sources=_sources(ctx),
            digests=digests,
            engine_version=__version__,
        )
    )


def _sources(ctx: StageContext) -> dict[str, int]:
    """Return how many of the rows' source responses came from each model, as curation counted them."""
    counts: dict[str, int] = {}
    for role in ctx.config.inputs:
        for entry in ctx.input(role).manifest.details.get("attribution", []):
            if entry.get("cluster") == "all":
                counts[entry["source"]] = counts.get(entry["source"], 0) + entry["chosen"]
    return dict(sorted(counts.items()))


def _copy(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
