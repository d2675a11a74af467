"""The stages of an experiment and what each needs, as data.

prepare -> sample/<source> -> score/<source> -> curate-sft -> sft -> sample/target -> score/target -> curate-triples
-> train -> evaluate -> report. Scoring is one stage a source, so that adding a source scores that source alone.
Without SFT the target itself is sampled and trained from. Objectives without a source response leave the sources out of
the triples, and sources that nothing uses out of the graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from wrpo_engine.config import (
    CurateSftParams,
    CurateTriplesParams,
    FetchParams,
    ModelRef,
    Objective,
    PrepareParams,
    ReportParams,
    Runtime,
    StageKind,
    StageParams,
)
from wrpo_operator.api.hashing import stage_hash
from wrpo_operator.api.names import MAIN_REWARD, REWARD_SEPARATOR, TARGET
from wrpo_operator.api.rules import WRPO_FORMS
from wrpo_operator.api.sections import PinnedModel, RewardProvider, Source
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

REMEMBERED_GRAPHS = 64


def sample(source: str) -> StageId:
    """Return the stage that samples a source."""
    return StageId(StageKind.SAMPLE, source)


def score(source: str, reward: str = MAIN_REWARD) -> StageId:
    """Return the stage that scores a source's samples by one of the rewards."""
    return StageId(StageKind.SCORE, source if reward == MAIN_REWARD else f"{source}{REWARD_SEPARATOR}{reward}")


def fetch(model: str, revision: str | None) -> StageId:
    """Return the stage that downloads a hub model; its name is readable and told apart by digits of a digest."""
    digits = hashlib.sha256(f"{model}@{revision or ''}".encode()).hexdigest()[:5]
    readable = "".join(char if char.isalnum() and char.isascii() else "-" for char in model.rpartition("/")[2].lower())
    return StageId(StageKind.FETCH, f"{readable[:14].strip('-')}-{digits}")


def is_hub_id(model: str | None) -> bool:
    """Whether a model is to be downloaded, not a path."""
    return model is not None and not model.startswith(("/", "storage://"))


@dataclass(slots=True)
class _Builder:
    """Adds stages in topological order; each hash is made of the hashes before it."""

    spec: ExperimentSpec
    nodes: dict[StageId, StageNode] = field(default_factory=dict)

    def add(
        self,
        stage: StageId,
        stage_params: StageParams,
        inputs: Mapping[str, StageId],
        runtime: Runtime | None = None,
        *,
        models: Iterable[PinnedModel | RewardProvider] = (),
    ) -> None:
        """Add a stage. How its `models` get here changes nothing that is computed and is not hashed."""
        hashes = {role: self.nodes[upstream].hash for role, upstream in inputs.items()}
        self.nodes[stage] = StageNode(
            id=stage,
            shape=SHAPES[stage.kind],
            params=stage_params,
            inputs={**inputs, **self._fetched(models)},
            hash=stage_hash(
                stage.kind,
                stage_params.model_dump(mode="json", exclude_defaults=True),
                hashes,
                self.spec.reuse.salt,
            ),
            runtime=runtime or Runtime(),
        )

    def _fetched(self, models: Iterable[PinnedModel | RewardProvider]) -> dict[str, StageId]:
        """Return role -> stage of the hub models among `models`, adding stages that are not there yet."""
        stages: dict[str, StageId] = {}
        for model in models:
            if not self.spec.model_cache.enabled or model.model is None or not is_hub_id(model.model):
                continue
            stage = fetch(model.model, model.revision)
            stages[str(stage)] = stage
            if stage not in self.nodes:
                reference = ModelRef(
                    name=model.model, revision=model.revision, trust_remote_code=model.trust_remote_code
                )
                self.add(stage, FetchParams(model=reference), {})
        return stages

    def add_samples(self, source: Source | None, parts: tuple[params.Part, ...]) -> None:
        """Add sampling and scoring of a source, or of the target where it is None."""
        spec = self.spec
        name = source.name if source else TARGET
        inputs = {"prompts": PREPARE}
        models: tuple[PinnedModel, ...] = (source or spec.target,)
        if source is None and spec.sft.enabled:
            inputs["sft"] = SFT
            models = ()
        runtime = params.sampling_runtime(spec, source)
        self.add(sample(name), params.sampling(spec, source, parts), inputs, runtime, models=models)
        inputs = {"prompts": PREPARE, f"samples/{name}": sample(name)}
        for reward_name, reward in rewards(spec).items():
            runtime = params.scoring_runtime(spec)
            self.add(score(name, reward_name), params.scoring(spec, reward), inputs, runtime, models=(reward,))


def rewards(spec: ExperimentSpec) -> dict[str, RewardProvider]:
    """Return all rewards by name, the first one as `main`."""
    return {MAIN_REWARD: spec.reward, **{reward.name: reward for reward in spec.reward.additional}}


def source_of(spec: ExperimentSpec, stage: StageId) -> str | None:
    """Return the source that a stage samples or scores; None for all other stages."""
    if stage.kind not in {StageKind.SAMPLE, StageKind.SCORE}:
        return None
    names = {source.name for source in spec.sources}
    return next((name for name in (stage.name, stage.name.rpartition(REWARD_SEPARATOR)[0]) if name in names), None)


class _Same:
    """A spec as a key: the very same object. Specs are frozen; comparing two by value would cost more than a graph."""

    __slots__ = ("spec",)

    def __init__(self, spec: ExperimentSpec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.spec is self.spec


def build_graph(spec: ExperimentSpec, without: frozenset[str] = frozenset()) -> tuple[StageNode, ...]:
    """Return the stages of a spec in topological order.

    Stages of the sources in `without` are part of the graph, but nothing after them uses them. The last graphs are
    remembered: one of a spec with ten sources takes a millisecond and 100 KiB.
    """
    return _graph(_Same(spec), without)


@lru_cache(maxsize=REMEMBERED_GRAPHS)
def _graph(same: _Same, without: frozenset[str]) -> tuple[StageNode, ...]:
    spec = same.spec
    builder = _Builder(spec)
    builder.add(PREPARE, _prepare(spec), {})
    sources = _sampled_sources(spec)
    for source in sources:
        builder.add_samples(source, source_parts(spec))
    samples = _samples_and_scores(spec, tuple(source.name for source in sources if source.name not in without))
    if spec.sft.enabled:
        curation = CurateSftParams(**params.curation(spec))
        builder.add(CURATE_SFT, curation, {"prompts": PREPARE, **samples})
        builder.add(SFT, params.sft(spec), {"sft-rows": CURATE_SFT}, params.sft_runtime(spec), models=(spec.target,))
    if spec.training.objective is not Objective.SFT_ONLY:
        _add_preference(builder, samples)
    if spec.evaluation.enabled:
        roles = {"prompts": PREPARE, "sft": SFT, "model": TRAIN, "triples": CURATE_TRIPLES}
        builder.add(
            EVALUATE,
            params.evaluation(spec),
            _existing(builder, roles),
            params.evaluation_runtime(spec),
            models=(spec.target, *rewards(spec).values()),
        )
    if spec.report.enabled:
        builder.add(REPORT, _report(spec), _all_roles(builder, without))
    return tuple(builder.nodes.values())


def source_parts(spec: ExperimentSpec) -> tuple[params.Part, ...]:
    """Return the prompts that sources answer.

    With sourcePrompts All it does not depend on objective and SFT, so experiments that differ there share samples.
    """
    fraction = spec.prompts.sft_fraction
    every = spec.sampling.source_prompts == "All"
    sft = fraction > 0 and (every or spec.sft.enabled)
    preference = fraction < 1 and (every or _triples_use_sources(spec))
    return (*(("sft",) if sft else ()), *(("preference",) if preference else ()))


def _sampled_sources(spec: ExperimentSpec) -> tuple[Source, ...]:
    return spec.sources if spec.sft.enabled or _triples_use_sources(spec) else ()


def _triples_use_sources(spec: ExperimentSpec) -> bool:
    paired = spec.training.objective is not Objective.SFT_ONLY and spec.curation.pairing != "WRPO"
    return paired or spec.training.objective in WRPO_FORMS


def _samples_and_scores(spec: ExperimentSpec, names: Iterable[str]) -> dict[str, StageId]:
    """Return roles -> stages of models' samples and scores. With one reward its name is not in the roles."""
    stages: dict[str, StageId] = {}
    several = bool(spec.reward.additional)
    for name in names:
        stages[f"samples/{name}"] = sample(name)
        for reward in rewards(spec):
            stages[f"scores/{name}/{reward}" if several else f"scores/{name}"] = score(name, reward)
    return stages


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


def _add_preference(builder: _Builder, source_samples: Mapping[str, StageId]) -> None:
    spec = builder.spec
    builder.add_samples(None, ("preference",))
    needs_source = spec.training.objective in WRPO_FORMS
    curation = CurateTriplesParams(
        pairing=spec.curation.pairing,
        score_margin=spec.curation.score_margin,
        max_score_gap=spec.curation.max_score_gap,
        drop_duplicates=spec.curation.drop_duplicates,
        require_source_better=spec.curation.require_source_better,
        on_tie=spec.curation.on_tie,
        needs_source=needs_source,
        **params.curation(spec),
    )
    samples = {**(source_samples if _triples_use_sources(spec) else {}), **_samples_and_scores(spec, (TARGET,))}
    builder.add(CURATE_TRIPLES, curation, {"prompts": PREPARE, **samples})
    inputs = {"triples": CURATE_TRIPLES} | ({"sft": SFT} if spec.sft.enabled else {})
    models = () if spec.sft.enabled else (spec.target,)
    builder.add(TRAIN, params.train(spec), inputs, params.training_runtime(spec), models=models)


def _existing(builder: _Builder, roles: Mapping[str, StageId]) -> dict[str, StageId]:
    return {role: stage for role, stage in roles.items() if stage in builder.nodes}


def _all_roles(builder: _Builder, without: frozenset[str]) -> dict[str, StageId]:
    names = (stage.name for stage in builder.nodes if stage.kind is StageKind.SAMPLE and stage.name not in without)
    single = {
        "prompts": PREPARE,
        "sft-rows": CURATE_SFT,
        "sft": SFT,
        "triples": CURATE_TRIPLES,
        "model": TRAIN,
        "evaluation": EVALUATE,
    }
    return _existing(builder, single) | _samples_and_scores(builder.spec, names)


def _report(spec: ExperimentSpec) -> ReportParams:
    names = ", ".join(source.name for source in spec.sources)
    title = f"{spec.training.objective.value}: {names} teach {spec.target.model}"
    return ReportParams(title=title, sample_answers=spec.report.sample_answers)
