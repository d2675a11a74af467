"""Contents of the report, read from the artifacts that exist. Every part may be missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from wrpo_engine.artifacts import Artifact
from wrpo_engine.contract.definition import ReportPlace
from wrpo_engine.contract.stages import STAGES, definition_of

_SAMPLES, _SCORES = "samples/", "scores/"
_TARGET = "target"
_LOSS_PREFIXES = ("dropped_", "skipped_", "left_out_")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """One upstream stage as its manifest describes it."""

    name: str
    hash: str
    digest: str
    column: int
    """Place in the pipeline; stages of one column do not need each other."""
    rows: int
    seconds: float | None
    """From the last input's manifest to this one's: the run itself, its start-up and waiting."""
    created_at: datetime
    engine_version: str
    metrics: dict[str, float]
    models: list[tuple[str, str, str]]
    """(what for, name, revision)."""
    params: dict[str, Any]
    losses: list[tuple[str, int]]
    """(reason, rows) that the stage left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One model's response to a held-out prompt."""

    label: str
    text: str
    score: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A held-out prompt with every model's response."""

    prompt: str
    answers: list[Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """All data of the page."""

    title: str
    experiment: str
    engine_version: str
    stages: list[StageView]
    evaluation: dict[str, Any] | None = None
    benchmarks: dict[str, Any] | None = None
    """Content of benchmarks.json."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Items of benchmarks with answers and verdicts, of examples.json."""
    comparisons: list[Comparison] = field(default_factory=list)
    sft_steps: list[dict[str, float]] = field(default_factory=list)
    train_steps: list[dict[str, float]] = field(default_factory=list)
    sampled_scores: dict[str, list[float]] = field(default_factory=dict)
    """Scores of all responses to training prompts, by source; `target` is the model before preference training."""
    evaluated_scores: dict[str, list[float]] = field(default_factory=dict)
    """Scores of the responses to held-out prompts, by label."""
    source_share: dict[str, float] = field(default_factory=dict)
    num_triples: int | None = None
    attribution: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the triples' attribution.parquet: who gave the preferred response, by the prompt's length."""


def collect(
    inputs: Mapping[str, Artifact], *, title: str, experiment: str, engine_version: str, sample_answers: int
) -> ReportData:
    """Read the existing artifacts. Files are verified as they are read."""
    evaluation = inputs.get("evaluation")
    result = _json(evaluation, "evaluation.json")
    answers = pl.read_parquet(evaluation.file("answers.parquet")) if evaluation and result else None
    benchmarks = _json(evaluation, "benchmarks.json")
    triples = inputs.get("triples")
    sources = _column(triples, "triples.parquet", "source") if triples else []
    named = [name for name in sources if name is not None]
    return ReportData(
        title=title,
        experiment=experiment,
        engine_version=engine_version,
        stages=stage_views(inputs),
        evaluation=result,
        benchmarks=benchmarks,
        examples=examples_of(benchmarks, result, _json(evaluation, "examples.json") or [], sample_answers),
        comparisons=comparisons(answers, result["labels"], sample_answers) if answers is not None and result else [],
        sft_steps=_steps(inputs.get("sft")),
        train_steps=_steps(inputs.get("model")),
        sampled_scores={
            role.removeprefix(_SCORES): _scores(artifact)
            for role, artifact in sorted(inputs.items(), key=lambda item: _role_order(item[0]))
            if role.startswith(_SCORES)
        },
        evaluated_scores=_by_label(answers, result["labels"]) if answers is not None and result else {},
        source_share={name: named.count(name) / len(named) for name in sorted(set(named))},
        num_triples=len(sources) if triples else None,
        attribution=_attribution(triples),
    )


def stage_views(inputs: Mapping[str, Artifact]) -> list[StageView]:
    """Return the stages in the order of the pipeline; times are between manifests."""
    finished = {(each.ref.stage, each.ref.hash): each.manifest.created_at for each in inputs.values()}
    views = {(each.ref.stage, each.ref.hash): _view(each, finished) for each in inputs.values()}
    return sorted(views.values(), key=lambda view: (view.column, view.name, view.hash))


def _view(artifact: Artifact, finished: Mapping[tuple[str, str], datetime]) -> StageView:
    manifest = artifact.manifest
    before = [finished[key] for entry in manifest.inputs.values() if (key := (entry.stage, entry.hash)) in finished]
    seconds = (manifest.created_at - max(before)).total_seconds() if before else None
    return StageView(
        name=artifact.ref.stage,
        hash=artifact.ref.hash,
        digest=artifact.digest,
        column=column_of(artifact.ref.stage),
        rows=manifest.rows,
        # An artifact shared with an earlier experiment may be older than a remade input.
        seconds=seconds if seconds is not None and seconds >= 0 else None,
        created_at=manifest.created_at,
        engine_version=manifest.engine_version,
        metrics=dict(manifest.metrics),
        models=models_of(manifest.details),
        params=dict(manifest.config.get("params", {})),
        losses=losses_of(manifest.metrics, manifest.details),
    )


def column_of(stage: str) -> int:
    """Return a stage's place in the pipeline; unknown stages are last."""
    place = place_of(stage)
    if place is None:
        return 1 + max(max(other.column, other.column_of_target or 0) for other in _places())
    if stage.partition("/")[2] == _TARGET and place.column_of_target is not None:
        return place.column_of_target
    return place.column


def place_of(stage: str) -> ReportPlace | None:
    """Return how the report shows a stage; None for one that its definition leaves out or that has none here."""
    definition = definition_of(stage)
    return definition.report if definition is not None else None


def _places() -> list[ReportPlace]:
    return [definition.report for definition in STAGES.values() if definition.report is not None]


def models_of(details: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the models a manifest names: `model`, `reward`, and each of `models`."""
    found: list[tuple[str, str, str]] = []
    named = [(role, details.get(role)) for role in ("model", "reward")]
    several = details.get("models")
    if isinstance(several, Mapping):
        named += list(several.items())
    for role, entry in named:
        if isinstance(entry, Mapping):
            found.append((str(role), str(entry.get("name", "")), str(entry.get("revision") or "-")))
    return found


def losses_of(metrics: Mapping[str, float], details: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return what a stage left out or changed and why, with reasons in words; zeros are left out."""
    found = [
        (name.split("_", 1)[1] if name.startswith(("dropped_", "skipped_")) else name.removeprefix("left_out_"), value)
        for name, value in metrics.items()
        if name.startswith(_LOSS_PREFIXES)
    ]
    dropped = details.get("dropped")
    if isinstance(dropped, Mapping):
        known = {reason for reason, _ in found}
        found += [(str(reason), count) for reason, count in dropped.items() if reason not in known]
    changed = details.get("changed")
    if isinstance(changed, Mapping):
        known = {reason for reason, _ in found}
        found += [
            (f"changed by the tokenizer, kept: {reason}", count)
            for reason, count in changed.items()
            if reason not in known
        ]
    if count := details.get("truncated_responses"):
        found.append(("cut to the maximum length, kept", count))
    if count := details.get("control_text_rows"):
        found.append(("with control tokens as text, kept as text", count))
    if count := metrics.get("changed_responses"):
        found.append(("with characters that the reward model does not know, kept", count))
    return [(reason.replace("_", " "), int(count)) for reason, count in found if count]


def comparisons(answers: pl.DataFrame, labels: Sequence[str], limit: int) -> list[Comparison]:
    """Return the first prompts with each model's first response: by position, so none is chosen by its score."""
    first = answers.filter(pl.col("sample_index") == 0)
    found = []
    for prompt_id in first["prompt_id"].unique(maintain_order=True).to_list()[:limit]:
        rows = first.filter(pl.col("prompt_id") == prompt_id)
        by_label = {row["label"]: row for row in rows.iter_rows(named=True)}
        shown = [
            Answer(label=label, text=row["text"], score=row["score"], tokens=row["num_tokens"])
            for label in labels
            if (row := by_label.get(label)) is not None
        ]
        found.append(Comparison(prompt=rows["prompt"][0], answers=shown))
    return found


def examples_of(
    benchmarks: Mapping[str, Any] | None,
    held_out: Mapping[str, Any] | None,
    examples: Sequence[dict[str, Any]],
    limit: int,
) -> list[dict[str, Any]]:
    """Return the first examples of each benchmark, with the systems' labels.

    Held-out prompts without a judge and without further systems are left out: their responses are shown by themselves.
    """
    if benchmarks is None:
        return []
    labels = {system["name"]: system["label"] for system in benchmarks["systems"]}
    is_shown = held_out is not None and len(labels) == len(held_out["labels"])
    apart = {
        column["benchmark"]
        for column in benchmarks["columns"]
        if not is_shown or column["by"] == "judge" or column["kind"] != "HeldOutReward"
    }
    found = []
    for name in [name for name in dict.fromkeys(example["benchmark"] for example in examples) if name in apart]:
        for example in [example for example in examples if example["benchmark"] == name][:limit]:
            answers = [{**answer, "label": labels[answer["system"]]} for answer in example["answers"]]
            found.append({**example, "answers": answers})
    return found


def _json(artifact: Artifact | None, name: str) -> Any:
    """Return the content of a file; None if the artifact lacks it."""
    if artifact is None or name not in artifact.files():
        return None
    return json.loads(artifact.file(name).read_text(encoding="utf-8"))


def _role_order(role: str) -> tuple[bool, str]:
    return role == f"{_SCORES}{_TARGET}", role


def _scores(artifact: Artifact) -> list[float]:
    return _gather(artifact, lambda name: _column(artifact, name, "score"))


def _gather(artifact: Artifact, read: Callable[[str], list[Any]]) -> list[Any]:
    return [value for name in artifact.files("parts/") for value in read(name)]


def _column(artifact: Artifact, name: str, column: str) -> list[Any]:
    return list(pl.read_parquet(artifact.file(name), columns=[column])[column].to_list())


def _attribution(triples: Artifact | None) -> list[dict[str, Any]]:
    if triples is None or "attribution.parquet" not in triples.files():
        return []
    rows = pl.read_parquet(triples.file("attribution.parquet"))
    # Where all prompts are of one length the only cluster repeats the whole.
    return rows.to_dicts() if rows["cluster"].n_unique() > 2 else rows.filter(pl.col("cluster") == "all").to_dicts()


def _by_label(answers: pl.DataFrame, labels: Sequence[str]) -> dict[str, list[float]]:
    return {label: answers.filter(pl.col("label") == label)["score"].to_list() for label in labels}


def _steps(artifact: Artifact | None) -> list[dict[str, float]]:
    if artifact is None or "metrics.jsonl" not in artifact.files():
        return []
    lines = artifact.file("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]
