"""Inputs of a curation: prompts, and the scored responses of every model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from wrpo_engine.artifacts import Artifact
from wrpo_engine.config import CurateSftParams, CurateTriplesParams
from wrpo_engine.curation.responses import (
    CANDIDATES,
    Eligibility,
    eligible,
    prompt_index,
    read_responses,
    read_texts,
)
from wrpo_engine.curation.rewards import read_scores, rewards_of, weighted_scores
from wrpo_engine.errors import ConfigError
from wrpo_engine.formats import prompt_columns as tables
from wrpo_engine.stage import StageContext

log = logging.getLogger("wrpo_engine")

TARGET = "target"
SAMPLES = "samples/"


@dataclass(kw_only=True)
class ScoredResponses:
    """The responses that may be chosen, of all models, without their texts."""

    prompts: pl.DataFrame
    """(prompt_id, prompt): ids and texts; and `history` where the artifact has it."""
    models: list[str]
    """Sorted by name; a candidate's `model` is the position here."""
    candidates: pl.DataFrame
    counts: dict[str, float] = field(default_factory=dict)
    """Responses that may not be chosen, by reason."""


def sampled_models(ctx: StageContext) -> list[str]:
    """Return the names of the models whose samples are inputs of the stage, sorted."""
    return sorted(role.removeprefix(SAMPLES) for role in ctx.config.inputs if role.startswith(SAMPLES))


def require_models(ctx: StageContext, models: Sequence[str], what: str) -> None:
    """Raise ConfigError if there are no models; `what` names the missing input."""
    if not models:
        shown = ", ".join(sorted(ctx.config.inputs)) or "none"
        rule = f"stage {ctx.config.params.kind()} needs samples/{what}"
        raise ConfigError("inputs", shown, rule, "Add a source, or choose an objective without sources.")


def read_prompts(ctx: StageContext, part: str) -> pl.DataFrame:
    """Return the prompts (prompt_id, prompt, perhaps history) of a part: sft, preference or evaluation."""
    return tables.read_prompts([ctx.input("prompts").file(f"{part}.parquet")])


def read_scored(ctx: StageContext, models: Sequence[str], prompts: pl.DataFrame) -> ScoredResponses:
    """Read ids, scores and places of all responses of these models to these prompts."""
    params = ctx.config.params
    assert isinstance(params, CurateSftParams | CurateTriplesParams)
    rules = Eligibility(drop_truncated=params.drop_truncated, max_response_tokens=params.max_response_tokens)
    index = prompt_index(prompts["prompt_id"])
    scored = ScoredResponses(prompts=prompts, models=sorted(models), candidates=pl.DataFrame(schema=CANDIDATES))
    tables = [scored.candidates]
    for number, model in enumerate(scored.models):
        weights = rewards_of(list(ctx.config.inputs), model, params.reward_weights)
        responses = read_responses(
            ctx.input(f"{SAMPLES}{model}"), index, model=number, on_batch=ctx.stop.raise_if_requested
        )
        answered = responses.filter(~pl.col("too_long"))
        if skipped := responses.height - answered.height:
            scored.counts["responses_prompt_too_long"] = scored.counts.get("responses_prompt_too_long", 0.0) + skipped
        scores = {role: read_scores(ctx.input(role), role, index, params.score_column) for role in weights}
        answered = answered.with_columns(weighted_scores(answered, scores, weights))
        tables.append(eligible(answered, rules, scored.counts))
        log.info("%s: %d responses of %d may be chosen", model, tables[-1].height, responses.height)
        ctx.progress.update(number + 1, 2 * len(scored.models), message=f"read the scores of {model}")
        ctx.stop.raise_if_requested()
    scored.candidates = pl.concat(tables)
    return scored


def with_texts(ctx: StageContext, scored: ScoredResponses, rows: pl.DataFrame, places: Sequence[str]) -> pl.DataFrame:
    """Add `<place>_text` and `<place>_name` (the model's) for each prefix to the rows, whose order stays."""
    wanted = pl.concat(
        [rows.select(model=f"{each}_model", batch=f"{each}_batch", row=f"{each}_row") for each in places]
    )
    artifacts: dict[int, Artifact] = {
        number: ctx.input(f"{SAMPLES}{model}") for number, model in enumerate(scored.models)
    }
    texts = read_texts(wanted, artifacts, ctx.stop.raise_if_requested)
    names = pl.Series("name", scored.models, dtype=pl.String)
    for each in places:
        on = [f"{each}_model", f"{each}_batch", f"{each}_row"]
        named = texts.rename(dict(zip(["model", "batch", "row", "text"], [*on, f"{each}_text"], strict=True)))
        rows = rows.join(named, on=on, how="left", maintain_order="left", validate="m:1")
        rows = rows.with_columns(names.gather(rows[f"{each}_model"]).alias(f"{each}_name"))
    return rows
