"""Wiring of merged models and of models that choose each token together."""

from __future__ import annotations

from wrpo_engine.contract.evaluation import cell_name
from wrpo_operator.plan import evaluation_params as params
from wrpo_operator.plan.builder import Graph
from wrpo_operator.plan.evaluation import cells_of, items_of, made_by, planned_layout
from wrpo_operator.plan.model import StageId, Work
from wrpo_operator.plan.wiring import downloads, needs


def merge(graph: Graph) -> None:
    """Add the merge of each system that is a merged model."""
    layout = planned_layout(graph)
    for row in layout.rows:
        if row.merge is not None:
            models = [layout.models[name] for name in params.merged(row)]
            graph.add(
                StageId("merge", row.name),
                params.merge(graph.spec, layout, row),
                inputs=dict.fromkeys(stage for model in models for stage in made_by(model)),
                downloads=dict.fromkeys(downloads(graph, *(m.pinned(graph.spec) for m in models if not made_by(m)))),
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
            downloads=dict.fromkeys(downloads(graph, *(m.pinned(graph.spec) for m in models if not made_by(m)))),
            runtime=params.joint_runtime(graph.spec),
            needs=dict.fromkeys(needs(graph, "joint", *((Work.GENERATION, model) for model in pinned))),
        )
