"""The evaluate stage: scored responses of each model to held-out prompts; wins of the last model over the others.

Work is kept by model below `models/`, responses and scores in separate files. A killed pod loses one model's at most.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.config import EvaluateModel, EvaluateParams
from wrpo_engine.curation.parts import read_columns
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.evaluation.answers import AnswerJob, answer, common_prompts
from wrpo_engine.evaluation.isolation import answer_in_process
from wrpo_engine.evaluation.scores import REWARD_PREFIX, all_rewards, score_answers, weights_of
from wrpo_engine.evaluation.win_rate import compare, shares
from wrpo_engine.hub.models import resolve_model
from wrpo_engine.sampling.options import check_backend_options
from wrpo_engine.scoring.load import reward_details
from wrpo_engine.stage import StageContext, StageResult

log = logging.getLogger("wrpo_engine")

ANSWERS_NAME = "answers.parquet"
EVALUATION_NAME = "evaluation.json"
_IDS_SHOWN = 5


def run(ctx: StageContext) -> StageResult:
    """Sample each model's responses to the held-out prompts, score and compare them, and commit the results."""
    params = ctx.config.params
    assert isinstance(params, EvaluateParams)
    _check_labels(params.models)
    check_backend_options(params.backend, quantization=None, engine_args=ctx.config.runtime.engine_args)
    weights = weights_of(params)
    prompts = _prompts(ctx)
    answered = {entry.label: _answered(ctx, params, prompts, index) for index, entry in enumerate(params.models)}
    common, skipped = common_prompts(answered)
    if skipped:
        shown = ", ".join(skipped[:_IDS_SHOWN]) + (", ..." if len(skipped) > _IDS_SHOWN else "")
        log.warning("left out, because they are too long for a model's context: %d prompts (%s)", len(skipped), shown)
    # All models are sampled by now, so only a reward model is in memory.
    answers = pl.concat(score_answers(ctx, params, common).values())
    result = evaluation(answers, [entry.label for entry in params.models], _source_share(ctx), len(skipped))
    ctx.output.publish(ANSWERS_NAME, answers.write_parquet)
    ctx.output.publish(EVALUATION_NAME, lambda path: _write_json(path, result))
    metrics = metrics_of(result)
    details: dict[str, Any] = {
        "models": {
            entry.label: resolve_model(entry.model, ctx, field=f"evaluation model {entry.label}").details()
            for entry in params.models
        },
        "reward": reward_details(params.reward, ctx),
    }
    if params.more_rewards:
        details["rewards"] = [
            {**reward_details(reward, ctx), "weight": weight}
            for reward, weight in zip(all_rewards(params), weights, strict=True)
        ]
    ctx.output.commit(
        files=[ANSWERS_NAME, EVALUATION_NAME], rows={ANSWERS_NAME: answers.height}, metrics=metrics, details=details
    )
    # Its content is in `answers.parquet` now; the manifest does not list it.
    ctx.output.discard("models/")
    total = len(params.models) * len(prompts)
    ctx.progress.update(total, total, metrics=metrics)
    return StageResult(rows=answers.height, metrics=metrics)


def evaluation(
    answers: pl.DataFrame, labels: Sequence[str], source_share: Mapping[str, float], skipped: int = 0
) -> dict[str, Any]:
    """Return the content of evaluation.json. A prompt's score is the mean over a model's responses to it.

    `skipped` prompts were too long for one of the models and are not compared.
    """
    by_label = {label: _score_by_prompt(answers.filter(pl.col("label") == label)) for label in labels}
    last = labels[-1]
    return {
        "labels": list(labels),
        "num_prompts": len(by_label[last]),
        "skipped_prompt_too_long": skipped,
        "mean_reward": {label: sum(scores.values()) / len(scores) for label, scores in by_label.items()},
        "win_rates": {label: compare(by_label[last], by_label[label]).to_json() for label in labels[:-1]},
        "source_share": dict(source_share),
        **_mean_by_reward(answers, labels),
        "mean_tokens": {label: _mean_tokens(answers.filter(pl.col("label") == label)) for label in labels},
    }


def _mean_by_reward(answers: pl.DataFrame, labels: Sequence[str]) -> dict[str, Any]:
    """Return the mean of each reward by itself, where there are several."""
    columns = [name for name in answers.columns if name.startswith(REWARD_PREFIX)]
    if not columns:
        return {}
    means = {
        column.removeprefix(REWARD_PREFIX): {
            label: answers.filter(pl.col("label") == label)[column].mean() for label in labels
        }
        for column in columns
    }
    return {"mean_reward_by_reward": means}


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the manifest's metrics."""
    metrics = {f"mean_reward_{label}": float(value) for label, value in result["mean_reward"].items()}
    metrics |= {f"win_rate_vs_{label}": float(entry["rate"]) for label, entry in result["win_rates"].items()}
    counts = {name: float(result[name]) for name in ("num_prompts", "skipped_prompt_too_long")}
    return {**metrics, **counts}


def _check_labels(models: Sequence[EvaluateModel]) -> None:
    labels = [entry.label for entry in models]
    if len(set(labels)) != len(labels):
        raise ConfigError("evaluate.models", ", ".join(labels), "labels must be unique", "Rename one.")


def _prompts(ctx: StageContext) -> list[tuple[str, str]]:
    frame = read_columns([ctx.input("prompts").file("evaluation.parquet")], records.PROMPTS)
    if frame.is_empty():
        raise DataError(
            "there are no held-out prompts to evaluate on",
            code="NoPrompts",
            field="prompts.evaluation.prompts",
            hint="Set prompts.evaluation.prompts to at least 1, or evaluation.enabled: false.",
        )
    return [(row["prompt_id"], row["prompt"]) for row in frame.iter_rows(named=True)]


def _answered(
    ctx: StageContext, params: EvaluateParams, prompts: Sequence[tuple[str, str]], index: int
) -> pl.DataFrame:
    """Return a model's responses: from an earlier attempt, or sampled now."""
    entry = params.models[index]
    kept = _answers_name(entry)
    if kept in ctx.output.published("models/"):
        return pl.read_parquet(ctx.output.fetch(kept))
    ctx.stop.raise_if_requested()
    job = AnswerJob(
        label=entry.label,
        model=resolve_model(entry.model, ctx, field=f"evaluation model {entry.label}"),
        prompts=prompts,
        params=params,
        tensor_parallel_size=ctx.config.runtime.tensor_parallel_size,
        gpu_memory_utilization=ctx.config.runtime.gpu_memory_utilization,
        engine_args=ctx.config.runtime.engine_args,
        context_limit=ctx.config.runtime.context_limit,
        hang_timeout_s=ctx.config.runtime.hang_timeout_seconds,
    )
    log.info("sampling responses to %d held-out prompts with %s (%s)", len(prompts), entry.label, job.model.identity)
    total = len(params.models) * len(prompts)

    def on_answer(done: int) -> None:
        ctx.stop.raise_if_requested()
        ctx.progress.update(index * len(prompts) + done, total, message=entry.label)

    if _needs_own_process(params):
        rows = answer_in_process(job, on_answer, ctx.stop)
    else:
        rows = answer(job, on_answer, ctx.stop.raise_if_requested)
    # Read the published file: another pod's responses may have been first, and all results must be of the same ones.
    return pl.read_parquet(ctx.output.publish(_answers_name(entry), rows.write_parquet))


def _needs_own_process(params: EvaluateParams) -> bool:
    """On a GPU vLLM gives all memory back only when its process ends; on a CPU closing it is enough, and quicker."""
    import torch

    return params.backend == "vLLM" and torch.cuda.is_available()


def _source_share(ctx: StageContext) -> dict[str, float]:
    if "triples" not in ctx.config.inputs:
        return {}
    triples = read_columns([ctx.input("triples").file("triples.parquet")], {"source": pl.String}, nullable=["source"])
    return shares([source for source in triples["source"].to_list() if source is not None])


def _score_by_prompt(rows: pl.DataFrame) -> dict[str, float]:
    means = rows.group_by("prompt_id", maintain_order=True).agg(pl.col("score").mean())
    return dict(zip(means["prompt_id"].to_list(), means["score"].to_list(), strict=True))


def _mean_tokens(rows: pl.DataFrame) -> float:
    return float(rows["num_tokens"].sum()) / rows.height


def _answers_name(entry: EvaluateModel) -> str:
    return f"models/{entry.label}.answers.parquet"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
