"""Outcomes of evaluated models, read from the artifacts of evaluate stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from wrpo_engine.artifacts import Artifact, ArtifactStore
from wrpo_engine.comparison.statistics import slope
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import DataError, UsageError
from wrpo_engine.formats.location import Locator

ANSWERS = "answers.parquet"
EVALUATION = "evaluation.json"
METRICS = "metrics.jsonl"
_EARLY = 0.2
"""Share of the steps over which the slope of the margin is measured."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One model's scores on held-out prompts in one run."""

    location: str
    label: str
    prompts: tuple[str, ...]
    """Prompt ids, sorted."""
    scores: tuple[float, ...]
    """Mean score of the model's responses, by prompt."""
    mean_tokens: float
    reward: str
    """Identity of the reward, which has to be the same for all."""
    content: str
    """Digest of prompts, responses and scores: equal for a model that two experiments share."""
    steps: tuple[Mapping[str, float], ...] = ()
    """Metrics of preference training by optimizer step; of the trained model only."""

    @property
    def training_steps(self) -> int | None:
        """Optimizer steps of preference training."""
        return int(self.steps[-1]["step"]) if self.steps else None

    def margin_slope(self, alpha: float | None = None) -> float | None:
        """Return the slope of the reward margin a step over the first 20 % of training.

        `alpha` weights the margins of source and target; None: the margin as trained.
        """
        early = self.steps[: max(2, round(_EARLY * len(self.steps)))]
        points = [(row["step"], margin) for row in early if (margin := margin_of(row, alpha)) is not None]
        if len(points) < 2:
            return None
        return slope(*zip(*points, strict=True))


def margin_of(row: Mapping[str, float], alpha: float | None) -> float | None:
    """Return the reward margin of a step; None if its objective has none, or none of the source for an `alpha`."""
    if alpha is None:
        return row.get("margin")
    source, target = row.get("margin_source"), row.get("margin_target")
    return None if source is None or target is None else alpha * source + (1 - alpha) * target


def read_outcomes(location: str, locator: Locator) -> list[Outcome]:
    """Return the outcomes of all models of an evaluate artifact, the trained one last."""
    found = locator.artifact(location)
    if found is None:
        raise UsageError(
            f"{location} is no artifact",
            hint="Name the directory, the S3 address, or with --storage the address (evaluate/HASH) of one.",
        )
    artifact, store = found
    if artifact.ref.stage != "evaluate":
        raise UsageError(
            f"{location} is an artifact of {artifact.ref.stage}; only those of evaluate can be compared",
            hint="`wrpo status NAME` shows the address of an experiment's evaluate artifact.",
        )
    result = json.loads(artifact.file(EVALUATION).read_text(encoding="utf-8"))
    answers = pl.read_parquet(artifact.file(ANSWERS))
    reward = _reward_of(artifact)
    steps = _steps(artifact, store)
    labels: Sequence[str] = result["labels"]
    return [_outcome(answers, location, label, reward, steps if label == labels[-1] else ()) for label in labels]


def _outcome(
    answers: pl.DataFrame, location: str, label: str, reward: str, steps: tuple[Mapping[str, float], ...]
) -> Outcome:
    rows = answers.filter(pl.col("label") == label).sort("prompt_id", "sample_index")
    by_prompt = rows.group_by("prompt_id", maintain_order=True).agg(pl.col("score").mean())
    if rows.is_empty() or rows["score"].null_count():
        raise DataError(f"{location} has no scores of {label}", code="ArtifactDamaged", hint="Evaluate it again.")
    shown = rows.select("prompt_id", "prompt", "sample_index", "text", "score").rows()
    return Outcome(
        location=location,
        label=label,
        prompts=tuple(by_prompt["prompt_id"].to_list()),
        scores=tuple(by_prompt["score"].to_list()),
        mean_tokens=float(rows["num_tokens"].sum()) / rows.height,
        reward=reward,
        content=hashlib.sha256(json.dumps(shown).encode()).hexdigest(),
        steps=steps,
    )


def _reward_of(artifact: Artifact) -> str:
    """Return what scored: the model with its revision, or the function, of every reward with its weight."""
    details = artifact.manifest.details
    rewards: Any = details.get("rewards") or [details.get("reward")]
    return json.dumps(rewards, sort_keys=True)


def _steps(artifact: Artifact, store: ArtifactStore) -> tuple[Mapping[str, float], ...]:
    """Return the metrics of the trained model's steps; none if its artifact is not in the store any more."""
    trained = artifact.manifest.inputs.get("model")
    found = store.open(ArtifactRef(stage=trained.stage, hash=trained.hash)) if trained is not None else None
    if found is None or METRICS not in found.files():
        return ()
    lines = found.file(METRICS).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return tuple(row for row in rows if "step" in row and "loss" in row)


def refuse_unlike(outcomes: Sequence[Outcome], *, allow_unlike_prompts: bool) -> None:
    """Refuse outcomes of different rewards, and of different prompts unless that is allowed.

    UsageError names the first two that differ.
    """
    first = outcomes[0]
    for other in outcomes[1:]:
        if other.reward != first.reward:
            raise UsageError(
                f"{first.location} and {other.location} were scored by different rewards, {first.reward} and "
                f"{other.reward}",
                hint="Compare experiments with the same spec.reward.",
            )
        odd = sorted(set(first.prompts) ^ set(other.prompts))
        if odd and not allow_unlike_prompts:
            raise UsageError(
                f"{first.location} and {other.location} have different held-out prompts; {len(odd)} are in one of them "
                f"only, e.g. {', '.join(odd[:_SHOWN])}",
                hint="Compare experiments with the same spec.prompts, or add --allow-unlike-prompts to compare on "
                "the common ones.",
            )


def common_prompts(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Return the sorted prompts that every outcome has; UsageError if there are none."""
    common = set(outcomes[0].prompts).intersection(*(outcome.prompts for outcome in outcomes[1:]))
    if not common:
        raise UsageError(
            "the experiments have no held-out prompt in common", hint="Compare experiments with the same spec.prompts."
        )
    return tuple(sorted(common))


def scores_on(outcome: Outcome, prompts: Sequence[str]) -> list[float]:
    """Return an outcome's scores on these prompts, in their order."""
    by_prompt = dict(zip(outcome.prompts, outcome.scores, strict=True))
    return [by_prompt[prompt] for prompt in prompts]
