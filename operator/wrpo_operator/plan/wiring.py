"""Wiring of stages: one function per kind adds its stages and their inputs to the graph of an experiment.

The definitions of the stages (`wrpo_engine.contract.builtin`) name these functions. Their call order does not
matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from wrpo_engine.config import (
    FetchParams,
    InspectParams,
    ModelRef,
    Objective,
    Runtime,
)
from wrpo_engine.contract.types import is_hub_id
from wrpo_operator.api.names import MAIN_REWARD, REWARD_SEPARATOR, TARGET
from wrpo_operator.api.pods import Resources
from wrpo_operator.api.sections import PinnedModel, RewardProvider, RewardSource, Source
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan import params
from wrpo_operator.plan.builder import Execution, Graph
from wrpo_operator.plan.model import Need, StageId, Work
from wrpo_operator.plan.resources import is_sized

PREPARE = StageId("prepare")
CURATE_SFT = StageId("curate-sft")
ALIGN = StageId("align", "all")
"""The distributions of spec.sft.fusion."""
SFT = StageId("sft")
CURATE_TRIPLES = StageId("curate-triples")
TRAIN = StageId("train")
EVALUATE = StageId("evaluate")
REPORT = StageId("report")


@dataclass(frozen=True, slots=True)
class Member:
    """A model whose responses are sampled and scored."""

    name: str
    """Of the source, or `target`."""
    source: Source | None
    """None: the target."""
    parts: tuple[params.Part, ...]
    """The prompts to which it responds."""


def members(spec: ExperimentSpec) -> Iterator[Member]:
    """Yield the sources that some stage uses, then the target unless the experiment ends with SFT."""
    if spec.sft.enabled or _triples_use_sources(spec):
        for source in spec.sources:
            yield Member(source.name, source, source_parts(spec))
    if trains(spec):
        yield Member(TARGET, None, ("preference",))


def prepare(graph: Graph) -> None:
    """Add the preparation of prompts, which every experiment has."""
    graph.add(PREPARE, params.prepare(graph.spec))


def fetch(graph: Graph, model: PinnedModel | RewardSource) -> StageId | None:
    """Add the download of a model once; None if the model is not on a hub or spec.modelCache is disabled."""
    if not graph.spec.model_cache.enabled or model.model is None or not is_hub_id(model.model):
        return None
    stage = _model_stage("fetch", model.model, model.revision)
    if stage not in graph:
        reference = ModelRef(name=model.model, revision=model.revision, trust_remote_code=model.trust_remote_code)
        # Not hashed: a further use of a model downloads it no second time.
        graph.add(
            stage,
            FetchParams(model=reference),
            execution=Execution(runtime=Runtime(model_uses=params.model_uses(graph.spec, model))),
        )
    return stage


def inspect(graph: Graph, model: PinnedModel | RewardSource) -> StageId | None:
    """Add the inspection of a model once; None if there is no model, but a function or an endpoint."""
    if model.model is None:
        return None
    stage = _model_stage("inspect", model.model, model.revision)
    if stage not in graph:
        reference = ModelRef(name=model.model, revision=model.revision)
        graph.add(stage, InspectParams(model=reference, uses=params.model_uses(graph.spec, model)))
    return stage


def sample(graph: Graph, member: Member) -> None:
    """Add sampling of an unmodified source, or of the target after SFT."""
    spec, source = graph.spec, member.source
    is_tuned = source is None and spec.sft.enabled
    resources = source.resources if source else None
    graph.add(
        _sample_id(member.name),
        params.sampling(spec, source, member.parts),
        inputs=(PREPARE, SFT) if is_tuned else (PREPARE,),
        execution=Execution(
            downloads=() if is_tuned else downloads(graph, source or spec.target),
            runtime=params.sampling_runtime(spec, source),
            resources=resources,
            needs=needs(graph, "sample", (Work.GENERATION, source or spec.target), resources=resources),
        ),
    )


def score(graph: Graph, member: Member) -> None:
    """Add scoring by each reward in a separate stage, so that a further source or reward re-scores nothing else."""
    spec = graph.spec
    for name, reward in rewards(spec).items():
        graph.add(
            _score_id(member.name, name),
            params.scoring(spec, reward),
            inputs=(PREPARE, _sample_id(member.name)),
            role_name=f"{member.name}/{name}" if spec.reward.additional else member.name,
            execution=Execution(
                downloads=downloads(graph, reward),
                runtime=params.scoring_runtime(spec),
                needs=needs(graph, "score", (Work.SCORING, reward)),
                models={"reward": reward},
            ),
        )


def curate_sft(graph: Graph) -> None:
    """Add the choice of SFT rows from the responses of the sources."""
    if graph.spec.sft.enabled:
        curation = params.curate_sft(graph.spec)
        graph.add(CURATE_SFT, curation, inputs=(PREPARE, *_samples_and_scores(graph.spec, _sources(graph))))


def sft(graph: Graph) -> None:
    """Add SFT of the target."""
    spec = graph.spec
    if spec.sft.enabled:
        graph.add(
            SFT,
            params.sft(spec),
            inputs=(CURATE_SFT,) if spec.sft.fusion is None else (CURATE_SFT, ALIGN),
            execution=Execution(
                downloads=downloads(graph, spec.target),
                runtime=params.sft_runtime(spec),
                needs=needs(graph, "sft", (Work.TRAINING, spec.target)),
            ),
        )


def curate_triples(graph: Graph) -> None:
    """Add the choice of triples from the target's responses and, if objective or pairing use them, the sources'."""
    spec = graph.spec
    if not trains(spec):
        return
    curation = params.curate_triples(spec, needs_source=spec.training.objective.has_source)
    names = (*(_sources(graph) if _triples_use_sources(spec) else ()), TARGET)
    graph.add(CURATE_TRIPLES, curation, inputs=(PREPARE, *_samples_and_scores(spec, names)))


def train(graph: Graph) -> None:
    """Add preference optimisation of the SFT model, or of the target without SFT."""
    spec = graph.spec
    if trains(spec):
        graph.add(
            TRAIN,
            params.train(spec),
            inputs=(CURATE_TRIPLES, SFT) if spec.sft.enabled else (CURATE_TRIPLES,),
            execution=Execution(
                downloads=() if spec.sft.enabled else downloads(graph, spec.target),
                runtime=params.training_runtime(spec),
                needs=needs(graph, "train", (Work.TRAINING, spec.target)),
            ),
        )


def report(graph: Graph) -> None:
    """Add the report, whose inputs are all stages that have a place in it."""
    if graph.spec.report.enabled:
        graph.add(REPORT, params.report(graph.spec))


def downloads(graph: Graph, *models: PinnedModel | RewardSource) -> tuple[StageId, ...]:
    """Return the stages that download those of `models` that are on a hub."""
    found = (fetch(graph, model) for model in models)
    return tuple(stage for stage in found if stage is not None)


def needs(
    graph: Graph, kind: str, *uses: tuple[Work, PinnedModel | RewardSource], resources: Resources | None = None
) -> tuple[Need, ...]:
    """Return the models of a stage whose accelerators the operator chooses, with the stages that give their facts.

    A model that is downloaded anyhow is not inspected in addition.
    """
    if is_sized(graph.spec, kind, resources):
        return ()
    found = ((work, fetch(graph, model) or inspect(graph, model)) for work, model in uses)
    return tuple(Need(work, stage) for work, stage in found if stage is not None)


def rewards(spec: ExperimentSpec) -> dict[str, RewardProvider]:
    """Return all rewards by name, the first one as `main`."""
    return {MAIN_REWARD: spec.reward, **{reward.name: reward for reward in spec.reward.additional}}


def source_parts(spec: ExperimentSpec) -> tuple[params.Part, ...]:
    """Return the prompts to which sources respond.

    With sourcePrompts All the result does not depend on objective and SFT, so experiments that differ there share
    samples.
    """
    fraction = spec.prompts.sft_fraction
    every = spec.sampling.source_prompts == "All"
    for_sft = fraction > 0 and (every or spec.sft.enabled)
    preference = fraction < 1 and (every or _triples_use_sources(spec))
    return (*(("sft",) if for_sft else ()), *(("preference",) if preference else ()))


def _sample_id(member: str) -> StageId:
    return StageId("sample", member)


def _score_id(member: str, reward: str = MAIN_REWARD) -> StageId:
    return StageId("score", member if reward == MAIN_REWARD else f"{member}{REWARD_SEPARATOR}{reward}")


def _model_stage(kind: str, model: str, revision: str | None) -> StageId:
    """Return the stage of a kind for a model: a readable name that digits of a digest make unique."""
    digits = hashlib.sha256(f"{model}@{revision or ''}".encode()).hexdigest()[:5]
    last = model.rstrip("/").rpartition("/")[2].lower()
    readable = "".join(char if char.isalnum() and char.isascii() else "-" for char in last)
    return StageId(kind, f"{readable[:14].strip('-')}-{digits}".lstrip("-"))


def _sources(graph: Graph) -> tuple[str, ...]:
    return tuple(source.name for source in graph.spec.sources if source.name not in graph.without)


def _samples_and_scores(spec: ExperimentSpec, names: Iterable[str]) -> tuple[StageId, ...]:
    return tuple(
        stage for name in names for stage in (_sample_id(name), *(_score_id(name, reward) for reward in rewards(spec)))
    )


def trains(spec: ExperimentSpec) -> bool:
    """Return whether there is preference optimisation."""
    return spec.training.objective is not Objective.SFT_ONLY


def _triples_use_sources(spec: ExperimentSpec) -> bool:
    paired = trains(spec) and spec.curation.pairing != "WRPO"
    return paired or spec.training.objective.has_source
