"""The stages of an experiment and what each needs, as data.

prepare -> sample/<source> -> score/<source> -> curate-sft -> sft -> sample/target -> score/target -> curate-triples
-> train -> evaluate -> report. Scoring is one stage a source, so that adding a source scores that source alone.
Without SFT the target itself is sampled and trained from. Objectives without a source response leave the sources out of
the triples, and sources that nothing uses out of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wrpo_engine.config import (
    CurateSftParams,
    CurateTriplesParams,
    Objective,
    PrepareParams,
    ReportParams,
    Runtime,
    ScoreParams,
    StageKind,
    StageParams,
)
from wrpo_operator.api.hashing import stage_hash
from wrpo_operator.api.names import TARGET
from wrpo_operator.api.rules import WRPO_FORMS
from wrpo_operator.api.sections import Source
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan import params
from wrpo_operator.plan.model import Shape, StageId, StageNode

PREPARE = StageId(StageKind.PREPARE)
CURATE_SFT = StageId(StageKind.CURATE_SFT)
SFT = StageId(StageKind.SFT)
CURATE_TRIPLES = StageId(StageKind.CURATE_TRIPLES)
TRAIN = StageId(StageKind.TRAIN)
EVALUATE = StageId(StageKind.EVALUATE)
REPORT = StageId(StageKind.REPORT)

SHAPES: Mapping[StageKind, Shape] = {
    StageKind.PREPARE: Shape.JOB,
    StageKind.FETCH: Shape.JOB,
    StageKind.SAMPLE: Shape.INDEXED_JOB,
    StageKind.SCORE: Shape.INDEXED_JOB,
    StageKind.CURATE_SFT: Shape.JOB,
    StageKind.SFT: Shape.TRAINING,
    StageKind.CURATE_TRIPLES: Shape.JOB,
    StageKind.TRAIN: Shape.TRAINING,
    StageKind.EVALUATE: Shape.JOB,
    StageKind.REPORT: Shape.JOB,
}


def sample(source: str) -> StageId:
    """Return the stage that samples a source."""
    return StageId(StageKind.SAMPLE, source)


def score(source: str) -> StageId:
    """Return the stage that scores a source's samples."""
    return StageId(StageKind.SCORE, source)


@dataclass(slots=True)
class _Builder:
    """Adds stages in topological order; each hash is made of the hashes before it."""

    salt: str
    nodes: dict[StageId, StageNode] = field(default_factory=dict)

    def add(
        self, stage: StageId, stage_params: StageParams, inputs: Mapping[str, StageId], runtime: Runtime | None = None
    ) -> None:
        hashes = {role: self.nodes[upstream].hash for role, upstream in inputs.items()}
        self.nodes[stage] = StageNode(
            id=stage,
            shape=SHAPES[stage.kind],
            params=stage_params,
            inputs=dict(inputs),
            hash=stage_hash(stage.kind, stage_params.model_dump(mode="json", exclude_defaults=True), hashes, self.salt),
            runtime=runtime or Runtime(),
        )

    def add_samples(self, spec: ExperimentSpec, source: Source | None, parts: tuple[params.Part, ...]) -> None:
        """Add sampling and scoring of a source, or of the target where it is None."""
        name = source.name if source else TARGET
        inputs = {"prompts": PREPARE}
        if source is None and spec.sft.enabled:
            inputs["sft"] = SFT
        self.add(sample(name), params.sampling(spec, source, parts), inputs, params.sampling_runtime(spec, source))
        reward = ScoreParams(
            reward=params.reward_model(spec),
            max_length=spec.reward.max_length,
            batch_tokens=spec.reward.batch_tokens,
            dtype=spec.reward.dtype,
            rows_per_part=spec.reward.rows_per_part,
        )
        inputs = {"prompts": PREPARE, f"samples/{name}": sample(name)}
        self.add(score(name), reward, inputs, Runtime(shards=spec.reward.shards))


def build_graph(spec: ExperimentSpec) -> tuple[StageNode, ...]:
    """Return the stages of a spec in topological order."""
    builder = _Builder(spec.reuse.salt)
    builder.add(PREPARE, _prepare(spec), {})
    sources = _sampled_sources(spec)
    for source in sources:
        builder.add_samples(spec, source, source_parts(spec))
    samples = _samples_and_scores(tuple(source.name for source in sources))
    if spec.sft.enabled:
        curation = CurateSftParams(drop_truncated=spec.curation.drop_truncated)
        builder.add(CURATE_SFT, curation, {"prompts": PREPARE, **samples})
        builder.add(SFT, params.sft(spec), {"sft-rows": CURATE_SFT}, params.sft_runtime(spec))
    if spec.training.objective is not Objective.SFT_ONLY:
        _add_preference(builder, spec, samples)
    if spec.evaluation.enabled:
        roles = {"prompts": PREPARE, "sft": SFT, "model": TRAIN, "triples": CURATE_TRIPLES}
        builder.add(EVALUATE, params.evaluation(spec), _existing(builder, roles), params.evaluation_runtime(spec))
    if spec.report.enabled:
        builder.add(REPORT, _report(spec), _all_roles(builder))
    return tuple(builder.nodes.values())


def source_parts(spec: ExperimentSpec) -> tuple[params.Part, ...]:
    """Return the prompts that sources answer.

    With sourcePrompts All it does not depend on objective and SFT, so experiments that differ there share samples.
    """
    fraction = spec.prompts.sft_fraction
    every = spec.sampling.source_prompts == "All"
    sft = fraction > 0 and (every or spec.sft.enabled)
    preference = fraction < 1 and (every or spec.training.objective in WRPO_FORMS)
    return (*(("sft",) if sft else ()), *(("preference",) if preference else ()))


def _sampled_sources(spec: ExperimentSpec) -> tuple[Source, ...]:
    needed = spec.sft.enabled or spec.training.objective in WRPO_FORMS
    return spec.sources if needed else ()


def _samples_and_scores(names: tuple[str, ...]) -> dict[str, StageId]:
    return {f"samples/{name}": sample(name) for name in names} | {f"scores/{name}": score(name) for name in names}


def _prepare(spec: ExperimentSpec) -> PrepareParams:
    prompts = spec.prompts
    return PrepareParams(
        dataset=prompts.dataset,
        config=prompts.config,
        split=prompts.split,
        column=prompts.column,
        limit=prompts.limit,
        seed=prompts.seed,
        sft_fraction=prompts.sft_fraction,
        evaluation_prompts=prompts.evaluation.prompts,
        evaluation_dataset=prompts.evaluation.dataset,
    )


def _add_preference(builder: _Builder, spec: ExperimentSpec, source_samples: Mapping[str, StageId]) -> None:
    builder.add_samples(spec, None, ("preference",))
    needs_source = spec.training.objective in WRPO_FORMS
    curation = CurateTriplesParams(
        drop_truncated=spec.curation.drop_truncated,
        score_margin=spec.curation.score_margin,
        require_source_better=spec.curation.require_source_better,
        on_tie=spec.curation.on_tie,
        needs_source=needs_source,
    )
    inputs = {"prompts": PREPARE, **(source_samples if needs_source else {}), **_samples_and_scores((TARGET,))}
    builder.add(CURATE_TRIPLES, curation, inputs)
    inputs = {"triples": CURATE_TRIPLES} | ({"sft": SFT} if spec.sft.enabled else {})
    builder.add(TRAIN, params.train(spec), inputs, params.training_runtime(spec))


def _existing(builder: _Builder, roles: Mapping[str, StageId]) -> dict[str, StageId]:
    return {role: stage for role, stage in roles.items() if stage in builder.nodes}


def _all_roles(builder: _Builder) -> dict[str, StageId]:
    names = tuple(stage.name for stage in builder.nodes if stage.kind is StageKind.SAMPLE)
    single = {
        "prompts": PREPARE,
        "sft-rows": CURATE_SFT,
        "sft": SFT,
        "triples": CURATE_TRIPLES,
        "model": TRAIN,
        "evaluation": EVALUATE,
    }
    return _existing(builder, single) | _samples_and_scores(names)


def _report(spec: ExperimentSpec) -> ReportParams:
    names = ", ".join(source.name for source in spec.sources)
    title = f"{spec.training.objective.value}: {names} teach {spec.target.model}"
    return ReportParams(title=title, sample_answers=spec.report.sample_answers)
