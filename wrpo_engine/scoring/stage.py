"""The score stage: the reward of every answer of one samples artifact, in parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import polars as pl

from wrpo_engine import records
from wrpo_engine.artifacts import Artifact
from wrpo_engine.config import ScoreParams
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.parts import commit_when_complete, part_name, parts_of_shard, pending_parts
from wrpo_engine.sampling.sampler import FinishReason
from wrpo_engine.scoring.reward_model import RewardScorer, load_reward_scorer
from wrpo_engine.stage import StageContext, StageResult

log = logging.getLogger("wrpo_engine")


def run(ctx: StageContext) -> StageResult:
    params = ctx.config.params
    assert isinstance(params, ScoreParams)
    answers = read_answers(ctx.input(samples_role(ctx)))
    names = [part_name(index) for index in range(max(1, -(-answers.height // params.rows_per_part)))]
    todo = pending_parts(ctx, names)
    details = {"reward": {"name": params.reward.name, "revision": params.reward.revision}}
    written = 0
    if todo:
        log.info("loading reward model %s", params.reward.name)
        scorer = load_reward_scorer(
            params.reward, ctx, max_length=params.max_length, batch_tokens=params.batch_tokens, dtype=params.dtype
        )
        written = _score_parts(ctx, params, scorer, answers, names, todo)
        details["reward"] = scorer.details
    metrics = commit_when_complete(ctx, names, details=details, measure=measure)
    return StageResult(rows=written, metrics=metrics)


def samples_role(ctx: StageContext) -> str:
    roles = [role for role in sorted(ctx.config.inputs) if role.startswith("samples/")]
    if len(roles) != 1:
        shown = ", ".join(sorted(ctx.config.inputs)) or "none"
        raise ConfigError("inputs", shown, "stage score needs exactly one role samples/<source>", "Name one.")
    return roles[0]


def read_answers(samples: Artifact) -> pl.DataFrame:
    """Return a samples artifact's answers in its own order, without the prompts that were too long to answer."""
    frames = [pl.read_parquet(samples.file(name)) for name in samples.files("parts/")]
    rows = pl.concat(frames) if frames else pl.DataFrame(schema=records.SAMPLES)
    return rows.filter(pl.col("finish_reason") != FinishReason.PROMPT_TOO_LONG.value)


def read_prompts(prompts: Artifact) -> dict[str, str]:
    """Return the text of every prompt by its id, over all parts."""
    frame = pl.concat([pl.read_parquet(prompts.file(name)) for name in prompts.files() if name.endswith(".parquet")])
    return dict(zip(frame["prompt_id"], frame["prompt"], strict=True))


def _score_parts(
    ctx: StageContext,
    params: ScoreParams,
    scorer: RewardScorer,
    answers: pl.DataFrame,
    names: list[str],
    todo: list[str],
) -> int:
    prompts = read_prompts(ctx.input("prompts"))
    own = set(parts_of_shard(names, ctx.shard, ctx.config.runtime.shards))
    slices = {
        name: answers.slice(index * params.rows_per_part, params.rows_per_part)
        for index, name in enumerate(names)
        if name in own
    }
    total = sum(rows.height for rows in slices.values())
    done = total - sum(slices[name].height for name in todo)

    def on_batch(count: int) -> None:
        nonlocal done
        ctx.stop.raise_if_requested()
        done += count
        ctx.progress.update(done, total)

    ctx.progress.update(done, total)
    written = 0
    for name in todo:
        frame = score_rows(scorer, slices[name], prompts, on_batch)
        ctx.output.publish(name, frame.write_parquet)
        written += frame.height
    return written


def score_rows(
    scorer: RewardScorer,
    rows: pl.DataFrame,
    prompts: dict[str, str],
    on_batch: Callable[[int], None] | None = None,
) -> pl.DataFrame:
    """Score rows of a samples artifact; the result has them in the same order."""
    pairs: list[tuple[str, str]] = []
    names: list[str] = []
    for row in rows.iter_rows(named=True):
        prompt = prompts.get(row["prompt_id"])
        name = f"prompt_id {row['prompt_id']}, source {row['source']}, sample_index {row['sample_index']}"
        if prompt is None:
            raise DataError(
                f"{name}: the prompts artifact has no such prompt",
                code="InputsDisagree",
                hint="Score samples together with the prompts they answer.",
            )
        pairs.append((prompt, row["text"]))
        names.append(name)
    rewards = scorer.rewards(pairs, names, on_batch)
    return rows.select("prompt_id", "source", "sample_index").with_columns(
        pl.Series("score", [reward.score for reward in rewards], dtype=pl.Float64),
        pl.Series("truncated", [reward.truncated for reward in rewards], dtype=pl.Boolean),
    )


def measure(parts: Iterable[pl.DataFrame]) -> dict[str, float]:
    """Return the metrics of a whole scores artifact."""
    rows = pl.concat(list(parts))
    metrics = {"responses": float(rows.height), "truncated": float(rows["truncated"].sum())}
    if rows.height:
        scores = rows["score"].cast(pl.Float64)
        low, high, mean = scores.min(), scores.max(), scores.mean()
        assert isinstance(low, float)
        assert isinstance(high, float)
        assert isinstance(mean, float)
        metrics |= {"mean_score": mean, "min_score": low, "max_score": high}
        metrics["std_score"] = float(((scores - mean) ** 2).sum() / rows.height) ** 0.5
    return metrics
