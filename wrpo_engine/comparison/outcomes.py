"""Outcomes of evaluated models, read from the artifacts of evaluate stages."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from wrpo_engine.artifacts import Artifact, ArtifactStore, InputEntry
from wrpo_engine.comparison.columns import Judged, shared_items
from wrpo_engine.comparison.statistics import slope
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.evaluation import SEPARATOR
from wrpo_engine.errors import DataError, UsageError
from wrpo_engine.formats.location import Locator

ANSWERS = "answers.parquet"
BENCHMARKS = "benchmarks.json"
OUTCOMES = "outcomes.parquet"
EVALUATION = "evaluation.json"
METRICS = "metrics.jsonl"
_EARLY = 0.2
"""Share of the steps over which the slope of the margin is measured."""
_FEWEST = 5
"""Steps over which it is measured at least: during warm-up the first two margins can both be 0."""
_SHOWN = 3


Key = tuple[str, str]
"""Benchmark and judge or reward."""


@dataclass(frozen=True, kw_only=True)
class JudgedCell:
    """What one judge says about one system's answers to one benchmark."""

    column: Mapping[str, Any]
    """Column of benchmarks.json, without its cells."""
    cell: Mapping[str, Any]
    """Cell of benchmarks.json."""
    outcomes: Judged
    """Valid outcomes; without an item if none is valid."""
    cost: Mapping[str, float]
    """Mean tokens generated and read for an answer, those of members included; empty if unknown."""


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
    """Digest of prompts, responses, scores and verdicts: equal for a model that two experiments share."""
    steps: tuple[Mapping[str, float], ...] = ()
    """Metrics of preference training by optimizer step; of the trained model only."""
    is_further: bool = False
    """Whether it is neither target, SFT nor trained model: its held-out prompts may be fewer."""
    judged: Mapping[Key, JudgedCell] = field(default_factory=dict)
    """By benchmark and judge."""
    models_resident: int = 1
    """Models that must be loaded to answer with it."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """What was chosen for it because it is not published."""

    @property
    def training_steps(self) -> int | None:
        """Optimizer steps of preference training."""
        return int(self.steps[-1]["step"]) if self.steps else None

    def margin_slope(self, alpha: float | None = None) -> float | None:
        """Return the slope of the reward margin a step over the first 20 % of the steps, at least 5.

        `alpha` weights the margins of source and target; None: the margin as trained.
        """
        early = self.steps[: max(_FEWEST, round(_EARLY * len(self.steps)))]
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
    """Return the outcomes of all systems of an evaluate artifact, the trained model last."""
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
    steps = _steps(artifact, store)
    held_out = _held_out(artifact, location)
    benchmarks = read_json(artifact, BENCHMARKS)
    outcomes = held_out if benchmarks is None else with_benchmarks(held_out, benchmarks, artifact, location)
    if not outcomes:
        raise DataError(
            f"{location} has neither {EVALUATION} nor {BENCHMARKS}", code="ArtifactDamaged", hint="Evaluate it again."
        )
    return [*outcomes[:-1], replace(outcomes[-1], steps=steps)]


def read_json(artifact: Artifact, name: str) -> Any:
    """Return the content of a file; None if the artifact lacks it."""
    if name not in artifact.files():
        return None
    return json.loads(artifact.file(name).read_text(encoding="utf-8"))


def _held_out(artifact: Artifact, location: str) -> list[Outcome]:
    """Return the outcomes on held-out prompts, the trained model last; none if there are none."""
    result = read_json(artifact, EVALUATION)
    if result is None:
        return []
    answers = pl.read_parquet(artifact.file(ANSWERS))
    reward = _reward_of(artifact)
    return [_outcome(answers, location, label, reward) for label in result["labels"]]


def with_benchmarks(
    held_out: Sequence[Outcome], benchmarks: Mapping[str, Any], artifact: Artifact, location: str
) -> list[Outcome]:
    """Return the outcomes of all systems with their benchmarks, the trained model last."""
    known = {outcome.label: outcome for outcome in held_out}
    frame = pl.read_parquet(artifact.file(OUTCOMES))
    rows = {key: part for key, part in frame.group_by("system", "benchmark", "judge", maintain_order=True)}  # noqa: C416
    weights = _weights(artifact, benchmarks)
    found: dict[str, Outcome] = {}
    for system in benchmarks["systems"]:
        name, label = system["name"], system["label"]
        judged = _judged_cells(benchmarks, name, rows)
        plain = known.get(label) or _further(held_out, location, label, judged, weights)
        content = hashlib.sha256(plain.content.encode())
        for key in sorted(judged):
            part = rows[name, *key].select("item_id", "value", "weight", "valid")
            content.update(json.dumps([key, part.rows()]).encode())
        found[name] = replace(
            plain,
            judged=judged,
            models_resident=system["models_resident"],
            choices=system["choices"],
            content=content.hexdigest(),
        )
    subject = found.pop(benchmarks["subject"])
    own = [outcome for outcome in found.values() if not outcome.is_further]
    return [*own, *(outcome for outcome in found.values() if outcome.is_further), subject]


def _judged_cells(
    benchmarks: Mapping[str, Any], system: str, rows: Mapping[tuple[Any, ...], pl.DataFrame]
) -> dict[Key, JudgedCell]:
    cells = {}
    for column in benchmarks["columns"]:
        key = (column["benchmark"], column["judge"])
        about = {name: value for name, value in column.items() if name not in ("cells", "win_rates")}
        for cell in column["cells"]:
            if cell["system"] == system:
                cost = benchmarks["costs"].get(system, {}).get(column["benchmark"]) or {}
                outcomes = judged_of(rows[system, *key])
                cells[key] = JudgedCell(column=about, cell=cell, outcomes=outcomes, cost=cost)
    return cells


def judged_of(rows: pl.DataFrame) -> Judged:
    """Return the valid outcomes of rows of outcomes.parquet, with the features of their length control."""
    valid = rows.filter("valid")
    features = valid["features"].to_list()
    return Judged(
        items=tuple(valid["item_id"].to_list()),
        values=valid["value"].to_numpy(),
        weights=valid["weight"].to_numpy(),
        features=np.array(features, dtype=np.float64) if features and None not in features else None,
    )


def _weights(artifact: Artifact, benchmarks: Mapping[str, Any]) -> dict[Key, float]:
    """Return the rewards that make the score on held-out prompts, with their weights, by benchmark and reward."""
    given = (artifact.manifest.config.get("params") or {}).get("reward_weights") or {"main": 1.0}
    keys = [
        (column["benchmark"], column["judge"])
        for column in benchmarks["columns"]
        if column["kind"] == "HeldOutReward" and column["by"] == "reward" and column["judge"] in given
    ]
    total = sum(given[reward] for _, reward in keys)
    return {key: given[key[1]] / total for key in keys} if total else {}


def _further(
    held_out: Sequence[Outcome],
    location: str,
    label: str,
    judged: Mapping[Key, JudgedCell],
    weights: Mapping[Key, float],
) -> Outcome:
    """Return the outcome of a system that is not among the labels of evaluation.json."""
    scored = {key: judged[key].outcomes for key in weights if key in judged} if held_out else {}
    prompts = shared_items(scored.values()) if scored else ()
    scores = sum((weights[key] * each.on(prompts).values for key, each in scored.items()), np.zeros(len(prompts)))
    tokens = [judged[key].cell["answers"].get("tokens", 0.0) for key in scored]
    return Outcome(
        location=location,
        label=label,
        prompts=prompts,
        scores=tuple(float(score) for score in scores),
        mean_tokens=tokens[0] if tokens else math.nan,
        reward=held_out[0].reward if held_out else "[]",
        content=json.dumps([label, prompts]),
        is_further=True,
    )


def _outcome(answers: pl.DataFrame, location: str, label: str, reward: str) -> Outcome:
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
    )


def _reward_of(artifact: Artifact) -> str:
    """Return what scored: the model with its revision, or the function, of every reward with its weight."""
    details = artifact.manifest.details
    rewards: Any = details.get("rewards") or [details.get("reward")]
    return json.dumps(rewards, sort_keys=True)


def _steps(artifact: Artifact, store: ArtifactStore) -> tuple[Mapping[str, float], ...]:
    """Return the metrics of the trained model's steps; none if its artifact is not in the store any more."""
    found = _trained(artifact, store)
    if found is None or METRICS not in found.files():
        return ()
    lines = found.file(METRICS).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return tuple(row for row in rows if "step" in row and "loss" in row)


def _trained(artifact: Artifact, store: ArtifactStore) -> Artifact | None:
    """Return the artifact of the trained model: that of the input `model`, of this one or of the subject's answers."""
    inputs = artifact.manifest.inputs
    model = inputs.get("model")
    if model is None:
        subject = (artifact.manifest.config.get("params") or {}).get("subject")
        role = next((role for role in sorted(inputs) if role.startswith(f"answers/{subject}{SEPARATOR}")), "")
        answers = _opened(store, inputs.get(role))
        model = answers.manifest.inputs.get("model") if answers is not None else None
    return _opened(store, model)


def _opened(store: ArtifactStore, entry: InputEntry | None) -> Artifact | None:
    return store.open(ArtifactRef(stage=entry.stage, hash=entry.hash)) if entry is not None else None


def refuse_unlike(outcomes: Sequence[Outcome], *, allow_unlike_prompts: bool) -> None:
    """Refuse outcomes of different rewards, and of different prompts unless that is allowed.

    UsageError names the first two that differ. Further systems may lack prompts that are too long for them.
    """
    first = next((outcome for outcome in outcomes if not outcome.is_further), outcomes[0])
    for other in [outcome for outcome in outcomes if not outcome.is_further]:
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
    """Return the sorted prompts that every outcome has; none if no experiment has held-out prompts.

    UsageError if they have prompts, but none in common.
    """
    common = set(outcomes[0].prompts).intersection(*(outcome.prompts for outcome in outcomes[1:]))
    if not common and any(outcome.prompts for outcome in outcomes):
        raise UsageError(
            "the experiments have no held-out prompt in common", hint="Compare experiments with the same spec.prompts."
        )
    return tuple(sorted(common))


def scores_on(outcome: Outcome, prompts: Sequence[str]) -> list[float]:
    """Return an outcome's scores on these prompts, in their order."""
    by_prompt = dict(zip(outcome.prompts, outcome.scores, strict=True))
    return [by_prompt[prompt] for prompt in prompts]
