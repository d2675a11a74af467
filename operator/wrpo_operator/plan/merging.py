"""Wiring of merged models and of models that choose each token together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from wrpo_engine.contract.evaluation import cell_name
from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.pods import Resources, SecretKeyRef
from wrpo_operator.plan import evaluation_params as params
from wrpo_operator.plan.builder import Execution, Graph
from wrpo_operator.plan.evaluation import (
    cells_of,
    items_of,
    judge_keys,
    judge_sections,
    made_by,
    planned_layout,
    reward_key,
    served_by,
)
from wrpo_operator.plan.model import Need, StageId, Work
from wrpo_operator.plan.params import Named
from wrpo_operator.plan.systems import Layout, Row, searching_objective, searching_reward
from wrpo_operator.plan.wiring import PREPARE, downloads, needs


def merge(graph: Graph) -> None:
    """Add the merge of each system that is a merged model."""
    layout = planned_layout(graph)
    for row in layout.rows:
        if row.merging is None:
            continue
        models = [layout.models[name] for name in params.merged(row)]
        merged = params.merge(graph.spec, layout, row)
        found = _search(graph, layout, row)
        graph.add(
            StageId("merge", row.name),
            merged,
            inputs=dict.fromkeys((*found.inputs, *(stage for model in models for stage in made_by(model)))),
            execution=Execution(
                downloads=dict.fromkeys(
                    (*downloads(graph, *(m.pinned(graph.spec) for m in models if not made_by(m))), *found.downloads)
                ),
                runtime=params.merge_runtime(graph.spec, layout, row),
                resources=found.resources,
                needs=found.needs,
                secrets=found.secrets,
                models={
                    **dict(zip(merged.parents, (m.pinned(graph.spec) for m in models), strict=True)),
                    **found.models,
                },
            ),
        )


@dataclass(frozen=True, slots=True)
class _Search:
    """What the search of a merge's weights needs in addition."""

    inputs: tuple[StageId, ...] = ()
    downloads: tuple[StageId, ...] = ()
    resources: Resources | None = None
    """A search answers with every candidate, so its pod is one that answers. None: the pods of curation."""
    needs: tuple[Need, ...] = ()
    secrets: Mapping[str, SecretKeyRef] = field(default_factory=dict)
    models: Mapping[str, Named] = field(default_factory=dict)
    """What the stage serves or asks, by the parameter."""


def _search(graph: Graph, layout: Layout, row: Row) -> _Search:
    objective, name = searching_objective(row), searching_reward(row)
    if objective is not None:
        column, judge = layout.objective(objective)
        served = served_by(layout, judge)
        found = _Search(
            inputs=(items_of(column),),
            secrets=judge_keys(graph, judge),
            models=judge_sections(layout, judge),
        )
    elif name is not None:
        served = layout.rewards[name]
        found = _Search(inputs=(PREPARE,), secrets=reward_key(graph, name), models={"reward": served})
    else:
        return _Search()
    resources = graph.spec.resources.of_section(STAGES["answer"].section.name)
    answering = (Work.GENERATION, layout.models[row.name].pinned(graph.spec))
    scoring = () if served is None else ((Work.SCORING, served),)
    return replace(
        found,
        downloads=() if served is None else downloads(graph, served),
        resources=resources,
        needs=needs(graph, "merge", answering, *scoring, resources=resources),
    )


def joint(graph: Graph) -> None:
    """Add the answers of each group of models that choose each token together, to each benchmark."""
    layout = planned_layout(graph)
    for column, row in cells_of(layout, "Joint"):
        models = [layout.models[name] for name in row.members]
        pinned = [model.pinned(graph.spec) for model in models]
        graph.add(
            StageId("joint", cell_name(row.name, column.name)),
            params.joint(graph.spec, layout, row, column),
            inputs=dict.fromkeys((items_of(column), *(stage for model in models for stage in made_by(model)))),
            execution=Execution(
                downloads=dict.fromkeys(downloads(graph, *(m.pinned(graph.spec) for m in models if not made_by(m)))),
                runtime=params.joint_runtime(graph.spec),
                needs=needs(graph, "joint", *((Work.GENERATION, model) for model in pinned)),
                models={f"members[{index}]": model for index, model in enumerate(pinned)},
            ),
        )
