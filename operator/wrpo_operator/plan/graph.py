"""Graph of an experiment's stages.

prepare -> sample/<source> -> score/<source> -> curate-sft -> sft -> sample/target -> score/target -> curate-triples
-> train -> answer/<system>--<benchmark> -> grade and judge -> evaluate -> report. Scoring is one stage per source, so
that adding a source scores only that source.
Without SFT, sampling and training start from the unmodified target. Objectives without a source response exclude the
sources from the triples. The graph excludes sources that nothing uses. `wiring` defines this for each kind of stage.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any

from wrpo_engine.contract.definition import Per, StageDefinition
from wrpo_engine.contract.stages import STAGES
from wrpo_engine.errors import ConfigError
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import MAX_STAGES
from wrpo_operator.plan.builder import Graph
from wrpo_operator.plan.model import StageNode
from wrpo_operator.plan.wiring import members

REMEMBERED_GRAPHS = 64


def wiring_of(definition: StageDefinition) -> Callable[..., Any]:
    """Import the wiring that a definition names. Raises ConfigError if there is none."""
    module, function = definition.wiring.split(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"wiring of the stage {definition.kind}",
            definition.wiring,
            f"it cannot be imported: {error}",
            "Correct the definition, or install the module where the operator runs.",
            code="InvalidStage",
        ) from error
    return found


WIRINGS: Mapping[str, Callable[..., Any]] = {kind: wiring_of(definition) for kind, definition in STAGES.items()}
"""Function that adds the stages of a kind to a graph, by kind."""


def graph_errors(spec: ExperimentSpec) -> tuple[str, ...]:
    """Return why a spec whose fields are valid cannot be planned: a status holds a limited number of stages."""
    found = Counter(node.id.kind for node in build_graph(spec))
    if found.total() <= MAX_STAGES:
        return ()
    largest = ", ".join(f"{count} {kind}" for kind, count in found.most_common(4))
    remedy = "Divide spec.evaluation among several experiments, which share equal stages."
    return (f"spec has {found.total()} stages ({largest}, ...), more than {MAX_STAGES}. {remedy}",)


class _Same:
    """A spec as a key, compared by identity: comparison by value would cost more than a graph. Specs are frozen."""

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
    cached: one of a spec with ten sources takes a millisecond and 100 KiB.
    """
    return _graph(_Same(spec), without)


@lru_cache(maxsize=REMEMBERED_GRAPHS)
def _graph(same: _Same, without: frozenset[str]) -> tuple[StageNode, ...]:
    graph = Graph(same.spec, without)
    for per, definitions in groupby(STAGES.values(), key=lambda definition: definition.per):
        kinds = [definition.kind for definition in definitions]
        if per is Per.SOURCE:
            # All stages of one source, then those of the next, which is the order of display and start.
            for member in members(same.spec):
                for kind in kinds:
                    WIRINGS[kind](graph, member)
        elif per in {Per.EXPERIMENT, Per.CELL}:
            for kind in kinds:
                WIRINGS[kind](graph)
    return graph.nodes()
