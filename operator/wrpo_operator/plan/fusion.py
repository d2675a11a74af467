"""Wiring of explicit fusion: the stages that represent the SFT rows by models and align their distributions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from wrpo_engine.contract.base import values_of
from wrpo_engine.contract.definition import Image
from wrpo_engine.contract.evaluation import cell_name
from wrpo_engine.contract.fusion import RepresentFields
from wrpo_operator.api.fusion import Fusion
from wrpo_operator.api.hashing import canonical_json
from wrpo_operator.api.members import expanded
from wrpo_operator.api.names import TARGET
from wrpo_operator.plan import params
from wrpo_operator.plan.builder import Execution, Graph
from wrpo_operator.plan.evaluation import planned_layout
from wrpo_operator.plan.model import StageId, Work
from wrpo_operator.plan.wiring import ALIGN, CURATE_SFT, SFT, downloads, needs


@dataclass(frozen=True, slots=True)
class Fused:
    """Distributions of sources, fused for one training."""

    align: StageId
    settings: Fusion
    sources: tuple[str, ...]
    """Names of the sources, failed ones left out."""
    training: StageId = SFT

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
    settings = graph.spec.sft.fusion
    if settings is not None:
        every = tuple(source.name for source in graph.spec.sources)
        yield Fused(ALIGN, settings, expanded(settings.sources, every, graph.without) or _all(graph, settings))
    yield from _of_systems(graph)


def _all(graph: Graph, settings: Fusion) -> tuple[str, ...]:
    """Return the sources of a fusion, failed ones included.

    They are represented if all of them have failed: an experiment with fusion never turns into one without.
    """
    return expanded(settings.sources, tuple(source.name for source in graph.spec.sources))


def _of_systems(graph: Graph) -> Iterator[Fused]:
    """Yield what is fused for systems of the evaluation: all sources at once, or each of them for a merge."""
    for row in planned_layout(graph).rows:
        if row.fuse is None:
            continue
        # No name of a system has two dashes, so that it is never that of the experiment's own fusion.
        align = StageId("align", cell_name(row.name, "fuse"))
        if row.fuse.merge is None:
            yield Fused(align, row.fuse, row.members or _all(graph, row.fuse), StageId("fuse", row.name))
            continue
        for source, model in zip(row.members, row.merged, strict=True):
            yield Fused(
                StageId("align", cell_name(row.name, "fuse", source)), row.fuse, (source,), StageId("fuse", model)
            )


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
        execution=Execution(
            downloads=downloads(graph, model),
            runtime=params.represent_runtime(graph.spec, settings, source),
            resources=resources,
            # The engine's forward pass has no cache and one accelerator, as that of scoring.
            needs=needs(graph, "represent", (Work.GENERATION if is_vllm else Work.SCORING, model), resources=resources),
            image=Image.SAMPLER if is_vllm else None,
        ),
    )


def align(graph: Graph) -> None:
    """Add the fusion of those distributions in the target's vocabulary."""
    for fused in _fusions(graph):
        target, *sources = (fused.represented_by(name) for name in (TARGET, *fused.sources))
        roles = tuple(str(stage) for stage in sources)
        graph.add(fused.align, params.align(fused.settings, str(target), roles), inputs=(target, *sources))


def fuse(graph: Graph) -> None:
    """Add the trainings of each system that fuses distributions."""
    spec = graph.spec
    for fused in _of_systems(graph):
        graph.add(
            fused.training,
            params.fuse(spec, fused.settings, str(fused.align)),
            inputs=(CURATE_SFT, fused.align),
            execution=Execution(
                downloads=downloads(graph, spec.target),
                runtime=params.sft_runtime(spec),
                needs=needs(graph, "fuse", (Work.TRAINING, spec.target)),
            ),
        )
