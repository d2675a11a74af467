"""Wiring of the evaluation: benchmarks, answers of systems, and judgements.

One artifact of a model's answers to a benchmark serves its own row, selections, the first layer of mixtures, and the
baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wrpo_engine.config import StageParams
from wrpo_engine.contract.definition import Image
from wrpo_engine.contract.evaluation import cell_name
from wrpo_operator.api.evaluation import Judge
from wrpo_operator.api.names import shortened
from wrpo_operator.api.pods import SecretKeyRef
from wrpo_operator.api.sections import PinnedModel, RewardSource
from wrpo_operator.plan import evaluation_params as params
from wrpo_operator.plan.builder import Execution, Graph
from wrpo_operator.plan.model import StageId, Work
from wrpo_operator.plan.params import Named, scoring_runtime
from wrpo_operator.plan.systems import Column, EvaluatedModel, Layout, Row, layout_of, selecting_reward
from wrpo_operator.plan.wiring import CURATE_TRIPLES, EVALUATE, PREPARE, SFT, TRAIN, downloads, needs, rewards

REWARD_API_KEY = "WRPO_REWARD_API_KEY"
JUDGE_API_KEY = "WRPO_JUDGE_API_KEY"
_MAX_LAYER_NAME = 11
"""So that a stage's name is a label value, with the longest names of system and benchmark."""
_KINDS = {"answers": "answer", "mixture": "mixture", "selected": "select", "joint": "joint"}
"""Role of answers -> kind of the stage that gives them."""


def bench(graph: Graph) -> None:
    """Add the reading of each benchmark but the held-out prompts."""
    for column in planned_layout(graph).columns:
        if column.benchmark is not None:
            graph.add(StageId("bench", column.name), params.bench(column))


def answer(graph: Graph) -> None:
    """Add the answers of each model to each benchmark."""
    layout = planned_layout(graph)
    for column in layout.columns:
        for model in (layout.models[name] for name in layout.answering(column)):
            stage = StageId("answer", cell_name(model.name, column.name))
            _add_generation(graph, stage, params.answer(graph.spec, model, column), model, _inputs(model, column))


def mixture(graph: Graph) -> None:
    """Add the layers of each mixture after the first one, which are the proposers' own answers."""
    layout = planned_layout(graph)
    for cell in cells_of(layout, "Mixture"):
        column, row = cell
        assert row.mixture is not None
        references = _answers(layout, row.members, column)
        for layer in range(2, row.mixture.rounds + 1):
            stages = {name: _layer_stage(row, column, layer, name) for name in row.members}
            for name, stage in stages.items():
                _add_mixture(graph, stage, cell, layout.models[name], references)
            references = {f"mixture/{stage.name}": stage for stage in stages.values()}
        last = StageId("mixture", cell_name(row.name, column.name))
        _add_mixture(graph, last, cell, layout.models[row.mixture.aggregator], references)


def _layer_stage(row: Row, column: Column, layer: int, proposer: str) -> StageId:
    name = shortened(f"l{layer}-{proposer}", _MAX_LAYER_NAME)
    return StageId("mixture", cell_name(row.name, column.name, name))


def _add_mixture(
    graph: Graph, stage: StageId, cell: tuple[Column, Row], model: EvaluatedModel, references: Mapping[str, StageId]
) -> None:
    column, row = cell
    settings = params.mixture(graph.spec, row, model, column, tuple(references))
    _add_generation(graph, stage, settings, model, (*_inputs(model, column), *references.values()))


def _inputs(model: EvaluatedModel, column: Column) -> tuple[StageId, ...]:
    """Return the stages that give a benchmark's items and the model."""
    return (items_of(column), *made_by(model))


def _add_generation(
    graph: Graph, stage: StageId, settings: StageParams, model: EvaluatedModel, inputs: tuple[StageId, ...]
) -> None:
    """Add a stage that runs a model on a benchmark's items."""
    named = model.own or model.source
    resources = named.resources if named is not None else None
    pinned = model.pinned(graph.spec)
    graph.add(
        stage,
        settings,
        inputs=inputs,
        execution=Execution(
            downloads=() if made_by(model) else downloads(graph, pinned),
            runtime=params.generation_runtime(graph.spec, model),
            resources=resources,
            needs=needs(graph, stage.kind, (Work.GENERATION, pinned), resources=resources),
            models={"model": pinned},
        ),
    )


def perplexity(graph: Graph) -> None:
    """Add the perplexity of each benchmark's prompts under each member of a selection that needs it."""
    layout = planned_layout(graph)
    for column, row in cells_of(layout, "Select"):
        for stage, model in _perplexities(layout, column, row).items():
            if stage not in graph:
                _add_generation(graph, stage, params.perplexity(graph.spec, row, model), model, _inputs(model, column))


def _perplexities(layout: Layout, column: Column, row: Row) -> dict[StageId, EvaluatedModel]:
    """Return the stages whose perplexities select a row's answers, in the order of the members."""
    if row.select is None or row.select.by != "Perplexity":
        return {}
    text = None if row.select.text == "Plain" else row.select.text.lower()
    return {StageId("perplexity", cell_name(name, column.name, text)): layout.models[name] for name in row.members}


def rank(graph: Graph) -> None:
    """Add the comparison of members' answers for each selection that needs it."""
    layout = planned_layout(graph)
    for column, row in cells_of(layout, "Select"):
        if row.select is None or row.select.ranker is None:
            continue
        members = _answers(layout, row.members, column)
        graph.add(
            StageId("rank", cell_name(row.name, column.name)),
            params.rank(graph.spec, row, tuple(members)),
            inputs=(items_of(column), *members.values()),
            execution=Execution(
                downloads=downloads(graph, row.select.ranker),
                runtime=scoring_runtime(graph.spec),
                needs=needs(graph, "rank", (Work.SCORING, row.select.ranker)),
                models={"ranker": row.select.ranker},
            ),
        )


def grade(graph: Graph) -> None:
    """Add the scores that the report shows, and those that select answers."""
    layout = planned_layout(graph)
    for column in layout.columns:
        shown = ((row.name, reward) for row in layout.rows for reward in column.rewards)
        selecting = (
            (member, name)
            for row in layout.rows
            if (name := selecting_reward(row)) is not None
            for member in row.members
        )
        for system, name in dict.fromkeys((*shown, *selecting)):
            answers, reward = layout.answers_role(system, column), layout.rewards[name]
            graph.add(
                StageId("grade", cell_name(system, column.name, name)),
                params.grade(graph.spec, reward, answers),
                inputs=(items_of(column), _stage_of(answers)),
                execution=Execution(
                    downloads=downloads(graph, reward),
                    runtime=scoring_runtime(graph.spec),
                    needs=needs(graph, "grade", (Work.SCORING, reward)),
                    secrets=reward_key(graph, name),
                    models={"reward": reward},
                ),
            )


def select(graph: Graph) -> None:
    """Add the choice of answers of each selection."""
    layout = planned_layout(graph)
    for column, row in cells_of(layout, "Select"):
        members = _answers(layout, row.members, column)
        criteria = _criteria(layout, column, row)
        graph.add(
            StageId("select", cell_name(row.name, column.name)),
            params.select(row, tuple(members), tuple(criteria)),
            inputs=(items_of(column), *members.values(), *criteria.values()),
        )


def _criteria(layout: Layout, column: Column, row: Row) -> dict[str, StageId]:
    """Return role and stage of what selects a row's answers, in the order of the members."""
    assert row.select is not None
    if row.select.by == "PairRM":
        name = cell_name(row.name, column.name)
        return {f"rank/{name}": StageId("rank", name)}
    reward = selecting_reward(row)
    if reward is not None:
        names = [cell_name(member, column.name, reward) for member in row.members]
        return {f"grades/{name}": StageId("grade", name) for name in names}
    return {f"perplexity/{stage.name}": stage for stage in _perplexities(layout, column, row)}


def judge(graph: Graph) -> None:
    """Add the requests to each judge about each row's answers."""
    layout = planned_layout(graph)
    for column in layout.columns:
        for reader in column.judges:
            for row in layout.rows:
                _add_judge(graph, layout, column, reader, row)


def _add_judge(graph: Graph, layout: Layout, column: Column, reader: Judge, row: Row) -> None:
    settings = params.judge(layout, reader, column, row)
    served = served_by(layout, reader)
    resources = reader.serve.resources if reader.serve is not None else None
    work = Work.GENERATION if reader.serve is not None else Work.SCORING
    read = dict.fromkeys(role for role in (settings.answers, settings.baseline) if role is not None)
    graph.add(
        StageId("judge", cell_name(row.name, column.name, reader.name)),
        settings,
        inputs=(items_of(column), *map(_stage_of, read)),
        execution=Execution(
            downloads=() if served is None else downloads(graph, served),
            runtime=params.judge_runtime(graph.spec, reader),
            resources=resources,
            needs=() if served is None else needs(graph, "judge", (work, served), resources=resources),
            image=Image.SAMPLER if reader.serve is not None else None,
            secrets=judge_keys(graph, reader),
            models=judge_sections(layout, reader),
        ),
    )


def evaluate(graph: Graph) -> None:
    """Add the aggregation of all rows and columns."""
    layout = planned_layout(graph)
    if not layout.columns:
        return
    found: dict[StageId, None] = {PREPARE: None}
    for column in layout.columns:
        found[items_of(column)] = None
        for row in layout.rows:
            found[_stage_of(layout.answers_role(row.name, column))] = None
            found |= {StageId("grade", cell_name(row.name, column.name, name)): None for name in column.rewards}
            found |= {StageId("judge", cell_name(row.name, column.name, item.name)): None for item in column.judges}
        if column.baseline is not None:
            found[_stage_of(layout.answers_role(column.baseline, column))] = None
    graph.add(EVALUATE, params.evaluation(graph.spec, layout), inputs=found)
    graph.read_if_present(EVALUATE, CURATE_TRIPLES)


def planned_layout(graph: Graph) -> Layout:
    """Return the evaluation; one without rows and columns if it is disabled."""
    if not graph.spec.evaluation.enabled:
        return Layout(models={}, rows=(), columns=(), rewards={})
    return layout_of(graph.spec, graph.without)


def cells_of(layout: Layout, form: str) -> Iterator[tuple[Column, Row]]:
    """Yield the cells of the rows of a form."""
    return ((column, row) for column in layout.columns for row in layout.rows if row.form == form)


def items_of(column: Column) -> StageId:
    """Return the stage that gives a benchmark's items."""
    return PREPARE if column.benchmark is None else StageId("bench", column.name)


def _stage_of(role: str) -> StageId:
    """Return the stage that gives the answers of a role."""
    kind, _, name = role.partition("/")
    return StageId(_KINDS[kind], name)


def _answers(layout: Layout, names: tuple[str, ...], column: Column) -> dict[str, StageId]:
    """Return role and stage of the models' own answers, in order."""
    roles = [layout.answers_role(name, column) for name in names]
    return {role: _stage_of(role) for role in roles}


def made_by(model: EvaluatedModel) -> tuple[StageId, ...]:
    """Return the stage that makes a model of the experiment."""
    match model.made:
        case None:
            return ()
        case "sft":
            return (SFT,)
        case "train":
            return (TRAIN,)
        case kind:
            return (StageId(kind, model.name),)


def served_by(layout: Layout, reader: Judge) -> PinnedModel | RewardSource | None:
    """Return the model or the reward that a judge's stage serves."""
    if reader.serve_reward is not None:
        return layout.rewards[reader.serve_reward]
    return reader.serve


def reward_key(graph: Graph, name: str) -> dict[str, SecretKeyRef]:
    """Return the key of a reward's endpoint: that of the experiment, or of the judge with this reward."""
    judges = {item.name: item for item in graph.spec.evaluation.judges if item.reward is not None}
    is_own = name in rewards(graph.spec)
    key = graph.spec.reward.api_key_secret_ref if is_own else judges[name].api_key_secret_ref
    return {} if key is None else {REWARD_API_KEY: key}


def judge_sections(layout: Layout, reader: Judge) -> dict[str, Named]:
    """Return a judge, and what its stage serves, by the parameters that refer to them."""
    served = served_by(layout, reader)
    own: dict[str, Named] = {"model": reader}
    return own if served is None else own | {"serve" if reader.serve is not None else "serve_reward": served}


def judge_keys(graph: Graph, reader: Judge) -> dict[str, SecretKeyRef]:
    """Return the key of a judge's endpoint, or of that of the reward which it serves."""
    if reader.serve_reward is not None:
        return reward_key(graph, reader.serve_reward)
    return {} if reader.api_key_secret_ref is None else {JUDGE_API_KEY: reader.api_key_secret_ref}
