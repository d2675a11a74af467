"""The score stage: one reward of every response of one samples artifact, in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import polars as pl

from wrpo_engine.artifacts import Artifact, records
from wrpo_engine.artifacts.parts import (
    Measure,
    commit_when_complete,
    count_progress,
    own_parts,
    part_name,
    pending_parts,
)
from wrpo_engine.config import ScoreParams
from wrpo_engine.contract.evaluation import GradeParams
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.formats import prompt_columns as tables
from wrpo_engine.formats.columns import read_columns
from wrpo_engine.sampling.sampler import FinishReason
from wrpo_engine.scoring.changes import refuse_changed
from wrpo_engine.scoring.load import Reading, load_scorer, model_field, reward_details
from wrpo_engine.scoring.rewards import OnProgress, Pair, Reward, Scorer
from wrpo_engine.stage import StageContext, StageResult
from wrpo_engine.text.chat import Change
from wrpo_engine.text.conversations import Prompt

OBJECTIVE_PREFIX = "objective/"
"""Columns of a multi-objective reward: objective/NAME."""
_ENOUGH_TO_REFUSE = 1000
"""Responses after which a stage does not wait for its end to refuse them."""
ScoreRows: TypeAlias = Callable[[Scorer, pl.DataFrame, OnProgress], pl.DataFrame]
"""Scores the rows of a part."""
_SAMPLE_COLUMNS = ("prompt_id", "source", "sample_index", "text", "finish_reason")


def run(ctx: StageContext) -> StageResult:
    """Score the pending parts of this shard, and commit once all parts of all shards are there."""
    params = ctx.config.params
    assert isinstance(params, ScoreParams)
    answers = read_answers(ctx.input(samples_role(ctx)))

    def make_score() -> ScoreRows:
        prompts = read_prompts(ctx.input("prompts"))
        return lambda scorer, rows, on_progress: score_rows(scorer, rows, prompts, on_progress)

    return score_in_parts(ctx, params, answers, make_score, measure=partial(measure, field=model_field(ctx)))


def score_in_parts(
    ctx: StageContext,
    params: ScoreParams | GradeParams,
    rows: pl.DataFrame,
    make_score: Callable[[], ScoreRows],
    *,
    measure: Measure,
) -> StageResult:
    """Score rows part by part: the pending parts of this shard; commit once all parts of all shards are there.

    `make_score` is called only if there is work; what it returns scores the rows of one part, in their order.
    """
    names = [part_name(index) for index in range(max(1, -(-rows.height // params.rows_per_part)))]
    todo = pending_parts(ctx, names)
    written = 0
    if todo:
        scorer = load_scorer(
            params.reward,
            ctx,
            Reading(
                max_length=params.max_length,
                batch_tokens=ctx.config.runtime.batch_tokens,
                dtype=params.dtype,
                truncation=params.truncation,
            ),
        )
        own = set(own_parts(ctx, names))
        slices = {
            name: rows.slice(index * params.rows_per_part, params.rows_per_part)
            for index, name in enumerate(names)
            if name in own
        }
        written = _score_parts(ctx, partial(make_score(), scorer), slices, todo)
    metrics = commit_when_complete(ctx, names, details={"reward": reward_details(params.reward, ctx)}, measure=measure)
    return StageResult(rows=written, metrics=metrics)


def samples_role(ctx: StageContext) -> str:
    """Return the role of the samples to score; ConfigError unless there is exactly one."""
    roles = [role for role in sorted(ctx.config.inputs) if role.startswith("samples/")]
    if len(roles) != 1:
        shown = ", ".join(sorted(ctx.config.inputs)) or "none"
        raise ConfigError("inputs", shown, "stage score needs exactly one role samples/<source>", "Name one.")
    return roles[0]


def read_answers(samples: Artifact) -> pl.DataFrame:
    """Return a samples artifact's responses in its own order, without the rows of prompts that were too long."""
    names = samples.files("parts/")
    schema = {name: records.SAMPLES[name] for name in _SAMPLE_COLUMNS}
    rows = read_columns(samples.fetch_all(names), schema) if names else pl.DataFrame(schema=schema)
    return rows.filter(pl.col("finish_reason") != FinishReason.PROMPT_TOO_LONG.value)


def read_prompts(prompts: Artifact) -> dict[str, Prompt]:
    """Return every prompt, with its history, by its id, over all parts."""
    names = [name for name in prompts.files() if name.endswith(".parquet")]
    frame = tables.read_prompts(prompts.fetch_all(names))
    return dict(zip(frame["prompt_id"], tables.prompts_in(frame), strict=True))


def _score_parts(
    ctx: StageContext,
    score: Callable[[pl.DataFrame, OnProgress], pl.DataFrame],
    slices: Mapping[str, pl.DataFrame],
    todo: Sequence[str],
) -> int:
    on_progress = count_progress(ctx, {name: rows.height for name, rows in slices.items()}, todo)
    written = 0
    scored: pl.DataFrame | None = None
    for name in todo:
        frame = score(slices[name], on_progress)
        scored = frame if scored is None else pl.concat([scored, frame])
        if scored.height >= _ENOUGH_TO_REFUSE:
            refuse_changed(scored, field=model_field(ctx))
        ctx.output.publish(name, frame.write_parquet)
        written += frame.height
    return written


def score_rows(
    scorer: Scorer,
    rows: pl.DataFrame,
    prompts: Mapping[str, Prompt],
    on_progress: OnProgress | None = None,
) -> pl.DataFrame:
    """Score rows of a samples artifact; the result has them in the same order."""
    pairs: list[Pair] = []
    names: list[str] = []
    for row in rows.iter_rows(named=True):
        prompt = prompts.get(row["prompt_id"])
        name = f"prompt_id {row['prompt_id']}, source {row['source']}, sample_index {row['sample_index']}"
        if prompt is None:
            raise DataError(
                f"{name}: the prompts artifact has no such prompt",
                code="InputsDisagree",
                hint="Score samples together with the prompts they belong to.",
            )
        pairs.append((prompt, row["text"]))
        names.append(name)
    rewards = scorer.rewards(pairs, names, on_progress)
    return with_rewards(rows.select("prompt_id", "source", "sample_index"), rewards, scorer.objectives)


def with_rewards(rows: pl.DataFrame, rewards: Sequence[Reward], objectives: Sequence[str]) -> pl.DataFrame:
    """Return rows with the columns of their rewards, which are in the same order."""
    return rows.with_columns(
        pl.Series("score", [reward.score for reward in rewards], dtype=pl.Float64),
        pl.Series("truncated", [reward.truncated for reward in rewards], dtype=pl.Boolean),
        pl.Series("change", [reward.change for reward in rewards], dtype=pl.String),
        pl.Series("tokens", [reward.num_tokens for reward in rewards], dtype=pl.Int64),
        pl.Series("padding", [reward.num_padding for reward in rewards], dtype=pl.Int64),
        *(
            pl.Series(f"{OBJECTIVE_PREFIX}{name}", [reward.objectives[index] for reward in rewards], dtype=pl.Float64)
            for index, name in enumerate(objectives)
        ),
    )


def measure(parts: Iterable[pl.DataFrame], *, field: str) -> dict[str, float]:
    """Return the metrics of a whole scores artifact; they follow from its rows alone, however often it was stopped.

    changed_responses: the reward model's tokenizer does not know some of their characters; DataError naming `field` if
    they are too many. respelled_responses: it reads them without case or accents, as such models are trained.
    """
    rows = pl.concat(list(parts), how="diagonal")
    metrics = {"responses": float(rows.height), "truncated": float(rows["truncated"].sum())}
    metrics["changed_responses"] = float((rows["change"] == Change.CONTENT).sum())
    metrics["respelled_responses"] = float((rows["change"] == Change.SPELLING).sum())
    refuse_changed(rows, field=field)
    if not rows.height:
        return metrics
    scores = rows["score"]
    mean = _float(scores.mean())
    metrics |= {"mean_score": mean, "min_score": _float(scores.min()), "max_score": _float(scores.max())}
    metrics["std_score"] = float(((scores - mean) ** 2).sum() / rows.height) ** 0.5
    objectives = [name for name in rows.columns if name.startswith(OBJECTIVE_PREFIX)]
    metrics |= {f"mean_{name}": _float(rows[name].mean()) for name in objectives}
    tokens, padding = int(rows["tokens"].sum()), rows["padding"].drop_nulls()
    if tokens:
        metrics["tokens"] = float(tokens)
    if padding.len():
        metrics["padding_share"] = int(padding.sum()) / (tokens + int(padding.sum()))
    return metrics


def _float(value: object) -> float:
    assert isinstance(value, float)
    return value
