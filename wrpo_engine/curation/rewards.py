"""The score of every response: one reward, or the weighted mean of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from wrpo_engine.artifacts import Artifact
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.formats.columns import check_parquet, read_batches

SCORES = "scores/"
_OBJECTIVE = "objective/"
ROW = ["prompt", "sample_index"]


def rewards_of(roles: Sequence[str], model: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Return role -> weight of a model's scores; the weights add up to 1.

    Without weights, several rewards count the same. Every weight needs its scores and vice versa: otherwise a reward
    that is left out by mistake would go unnoticed.
    """
    own = f"{SCORES}{model}"
    named = sorted(role.removeprefix(f"{own}/") for role in roles if role.startswith(f"{own}/"))
    if not weights:
        found = [f"{own}/{name}" for name in named] or [own]
        if found == [own] and own not in roles:
            raise _missing(roles, own)
        return {role: 1 / len(found) for role in found}
    total = sum(weights.values())
    if min(weights.values()) < 0 or total <= 0:
        shown = ", ".join(f"{name} {weight:g}" for name, weight in sorted(weights.items()))
        rule = "weights must not be negative, and one must be positive"
        raise ConfigError("reward.weight", shown, rule, "Give each reward a weight of 0 or more.")
    for name in sorted(weights):
        if name not in named:
            raise _missing(roles, f"{own}/{name}")
    if unweighted := [name for name in named if name not in weights]:
        rule = f"there is no weight for {', '.join(unweighted)}, which scored the responses of {model}"
        raise ConfigError("reward.weight", ", ".join(sorted(weights)), rule, "Name every reward.")
    return {f"{own}/{name}": weight / total for name, weight in sorted(weights.items())}


def read_scores(artifact: Artifact, role: str, index: pl.DataFrame, score_column: str | None) -> pl.DataFrame:
    """Return (prompt, sample_index, score) of the responses to the prompts of `index` (prompt_id, prompt)."""
    column = _column(artifact, score_column)
    schema = {"prompt_id": pl.String, "sample_index": pl.Int64, column: pl.Float64}
    frames = [pl.DataFrame(schema={"prompt": pl.UInt32, "sample_index": pl.Int64, "score": pl.Float64})]
    for frame in read_batches(artifact, schema, nullable=[column]):
        rows = frame.join(index, on="prompt_id", how="inner").select(*ROW, pl.col(column).alias("score"))
        bad = rows.filter(pl.col("score").is_null() | ~pl.col("score").is_finite())
        if bad.height:
            number, sample, score = bad.row(0)
            raise DataError(
                f"{role} has the score {score} for sample {sample} of prompt {_id_of(index, number)}",
                code="RewardNotFinite",
                hint="Score these samples again; a reward must be a finite number.",
            )
        frames.append(rows)
    return pl.concat(frames)


def weighted_scores(
    responses: pl.DataFrame, scores: Mapping[str, pl.DataFrame], weights: Mapping[str, float]
) -> pl.Series:
    """Return the score of each response (prompt, sample_index) from the scores of each role.

    Raises DataError if a response has no score or two of one reward.
    """
    total = pl.Series("score", [0.0], dtype=pl.Float64).new_from_index(0, responses.height)
    for role, weight in weights.items():
        joined = responses.select(ROW).join(scores[role], on=ROW, how="left", maintain_order="left")
        if joined.height != responses.height or joined["score"].null_count() or scores[role].height != responses.height:
            model = role.split("/")[1]
            raise DataError(
                f"{role} has {scores[role].height} rows for {responses.height} responses of samples/{model}",
                code="InputsDisagree",
                hint="Use the scores of exactly these samples: one row for each response.",
            )
        total = total + joined["score"] * weight if len(weights) > 1 else joined["score"]
    return total.alias("score")


def _column(artifact: Artifact, wanted: str | None) -> str:
    """Return the score column's name; an objective may be named with or without `objective/`."""
    if wanted is None:
        return "score"
    names = artifact.files("parts/")
    if not names:
        return wanted
    path = artifact.file(names[0])
    check_parquet(path, {"prompt_id": pl.String})
    found = list(pl.read_parquet_schema(path))
    for name in (wanted, f"{_OBJECTIVE}{wanted}"):
        if name in found:
            return name
    others = [name for name in found if name == "score" or name.startswith(_OBJECTIVE)]
    rule = f"{artifact.ref.stage} has no such score; it has {', '.join(others) or 'none'}"
    raise ConfigError("curation.scoreColumn", wanted, rule, "Name one of them.", code="ColumnNotFound")


def _missing(roles: Sequence[str], role: str) -> ConfigError:
    shown = ", ".join(sorted(role for role in roles if role.startswith(SCORES))) or "none"
    return ConfigError("inputs", shown, f"curation needs the role {role!r}", "Score these samples with every reward.")


def _id_of(index: pl.DataFrame, number: int) -> str:
    return str(index.filter(pl.col("prompt") == number)["prompt_id"][0])
