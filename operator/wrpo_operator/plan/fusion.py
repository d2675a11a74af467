"""Wiring of explicit fusion: the stages that represent the SFT rows by models and align their distributions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from wrpo_engine.contract.base import values_of
from wrpo_engine.contract.definition import Image
from wrpo_engine.contract.fusion import RepresentFields
from wrpo_operator.api.fusion import Fusion
from wrpo_operator.api.hashing import canonical_json
from wrpo_operator.api.members import expanded
from wrpo_operator.api.names import TARGET
from wrpo_operator.plan import params
from wrpo_operator.plan.builder import Graph
from wrpo_operator.plan.model import StageId, Work
from wrpo_operator.plan.wiring import ALIGN, CURATE_SFT, downloads, needs


@dataclass(frozen=True, slots=True)
class Fused:
    """Distributions of sources, fused for one training."""

    align: StageId
    settings: Fusion
    sources: tuple[str, ...]
    """Names of the sources, failed ones left out. If all of them have failed, they are represented nevertheless: an
    experiment with fusion never turns into one without."""

    def represented_by(self, model: str) -> StageId:
        """Return the stage that represents the rows by a model. Fusions with equal settings share it."""
        own = values_of(self.settings, RepresentFields)
        usual = values_of(RepresentFields(), RepresentFields)
        if own == usual:
            return StageId("represent", model)
        digits = hashlib.sha256(canonical_json(own).encode()).hexdigest()[:5]
        return StageId("represent", f"{model}--{digits}")


def _fusions(graph: Graph) -> Iterator[Fused]:
    """Yield what is fused in an experiment."""
    spec = graph.spec
    if spec.sft.fusion is not None:
        yield Fused(ALIGN, spec.sft.fusion, _sources(graph, spec.sft.fusion))
    yield from _systems(graph).values()


def _systems(graph: Graph) -> dict[str, Fused]:
    """Return what is fused for systems of the evaluation, by name."""
    evaluation = graph.spec.evaluation
    return {
        # No name of a system has two dashes, so that it is never that of the experiment's own fusion.
        system.name: Fused(StageId("align", f"{system.name}--fuse"), system.fuse, _sources(graph, system.fuse))
        for system in (evaluation.systems if evaluation.enabled else ())
        if system.fuse is not None
    }


def _sources(graph: Graph, settings: Fusion) -> tuple[str, ...]:
    every = tuple(source.name for source in graph.spec.sources)
    return expanded(settings.sources, every, graph.without) or expanded(settings.sources, every)


def represent(graph: Graph) -> None:
    """Add the distributions of each fused model over the SFT rows, the target's among them."""
    for fused in _fusions(graph):
        for name in (TARGET, *fused.sources):
            _add_representation(graph, fused, name)


def _add_representation(graph: Graph, fused: Fused, name: str) -> None:
    stage, settings = fused.represented_by(name), fused.settings
    if stage in graph:
        return
    source = next((source for source in graph.spec.sources if source.name == name), None)
    model, resources = source or graph.spec.target, source.resources if source is not None else None
    is_vllm = settings.backend == "vLLM"
    graph.add(
        stage,
        params.represent(graph.spec, settings, source),
        inputs=(CURATE_SFT,),
        downloads=downloads(graph, model),
        runtime=params.represent_runtime(graph.spec, settings, source),
        resources=resources,
        # The engine's forward pass has no cache and one accelerator, as that of scoring.
        needs=needs(graph, "represent", (Work.GENERATION if is_vllm else Work.SCORING, model), resources=resources),
        image=Image.SAMPLER if is_vllm else None,
    )


def align(graph: Graph) -> None:
    """Add the fusion of those distributions in the target's vocabulary."""
    for fused in _fusions(graph):
        target, *sources = (fused.represented_by(name) for name in (TARGET, *fused.sources))
        roles = tuple(str(stage) for stage in sources)
        graph.add(fused.align, params.align(fused.settings, str(target), roles), inputs=(target, *sources))


def fuse(graph: Graph) -> None:
    """Add the training of each system that fuses distributions."""
    spec = graph.spec
    for name, fused in _systems(graph).items():
        graph.add(
            StageId("fuse", name),
            params.fuse(spec, fused.settings, str(fused.align)),
            inputs=(CURATE_SFT, fused.align),
            downloads=downloads(graph, spec.target),
            runtime=params.sft_runtime(spec),
            needs=needs(graph, "fuse", (Work.TRAINING, spec.target)),
        )
