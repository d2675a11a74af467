"""In which order stages start: those for which the most work waits first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import AUTOMATIC, NOON, make_child, make_experiment, make_snapshot, merged

from wrpo_engine.contract.stages import STAGES
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import ChildState, Experiment, StageId, StageNode
from wrpo_operator.plan.planner import plan
from wrpo_operator.plan.urgency import urgencies

EXPERIMENT = make_experiment(
    evaluation={
        "judges": [{"name": "judge", "endpoint": "http://judge/v1", "model": "m"}],
        "benchmarks": [
            {"name": "arena", "kind": "Custom", "protocol": "ArenaHard", "bundle": "storage://b", "baseline": "target"}
        ],
    }
)


def graph_of(experiment: Experiment) -> tuple[StageNode, ...]:
    assert experiment.spec is not None
    return build_graph(experiment.spec)


NODES = graph_of(EXPERIMENT)
BY_NAME = {str(node.id): node for node in NODES}


def started(experiment: Experiment, done: Iterable[str]) -> list[str]:
    """Return the stages that start, in their order, after others have ended."""
    children = [make_child(experiment, stage, ChildState.SUCCEEDED) for stage in done]
    return [str(start.node.id) for start in plan(make_snapshot(experiment, children), NOON).apply]


def with_upstream(stages: Iterable[str], nodes: Sequence[StageNode] = NODES) -> set[str]:
    """Return the stages and everything that they need."""
    found: set[str] = set()
    for node in reversed(nodes):
        if str(node.id) in {*stages, *found}:
            found |= {str(node.id), *map(str, node.upstream)}
    return found


CASES: dict[str, tuple[list[str], list[str]]] = {
    "nothing has ended": ([], ["prepare", "bench/arena"]),
    "the prompts are ready": (
        ["prepare", "bench/arena"],
        ["sample/qwen", "sample/yi", "answer/target--held-out", "answer/target--arena"],
    ),
    "SFT has ended: what training waits for comes before answers": (
        ["sft", "bench/arena", "answer/target--arena", "answer/target--held-out"],
        [
            "sample/target",
            "answer/sft--held-out",
            "answer/sft--arena",
            "grade/target--held-out--main",
            "judge/target--arena--judge",
        ],
    ),
}


@pytest.mark.parametrize(("ended", "starting"), CASES.values(), ids=CASES.keys())
def test_the_stage_with_the_most_work_after_it_starts_first(ended: list[str], starting: list[str]) -> None:
    assert started(EXPERIMENT, with_upstream(ended)) == starting


def test_within_a_limit_of_accelerators_the_most_urgent_of_equal_size_starts() -> None:
    sizes = {stage: {"limits": {"nvidia.com/gpu": 1}} for stage in ("sample", "evaluate")}
    changed = make_experiment(scheduling={"maxGpus": 1}, resources=sizes)
    assert started(changed, with_upstream(["sft", "answer/target--held-out", "grade/target--held-out--main"])) == [
        "sample/target"
    ]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[StageNode, ...]:
    """Any acyclic graph of stages whose kinds have different weights."""
    kinds = [kind for kind, definition in STAGES.items() if definition.is_named]
    nodes: list[StageNode] = []
    for number in range(draw(st.integers(1, 8))):
        upstream = draw(st.lists(st.sampled_from(nodes), unique_by=lambda node: node.id)) if nodes else []
        inputs = {str(node.id): node.id for node in upstream[1:]}
        stage = StageId(draw(st.sampled_from(kinds)), str(number))
        after = tuple(node.id for node in upstream[:1])
        nodes.append(replace(NODES[0], id=stage, inputs=inputs, after=after))
    return tuple(nodes)


@given(graphs(), st.data())
def test_urgency_is_the_weight_of_the_heaviest_path_of_stages_that_are_to_run(
    nodes: tuple[StageNode, ...], data: st.DataObject
) -> None:
    idle = data.draw(st.sets(st.sampled_from([node.id for node in nodes])))

    @cache
    def heaviest(stage: StageId) -> int:
        if stage in idle:
            return 0
        users = [node.id for node in nodes if stage in node.upstream]
        return STAGES[stage.kind].weight + max(map(heaviest, users), default=0)

    assert urgencies(nodes, idle) == {node.id: heaviest(node.id) for node in nodes}


@given(st.sets(st.sampled_from(sorted(BY_NAME))), st.booleans())
def test_in_every_state_stages_start_by_urgency_and_equal_ones_in_the_order_of_the_graph(
    ended: set[str], is_automatic: bool
) -> None:
    experiment = replace(EXPERIMENT, spec=make_experiment(**merged(AUTOMATIC, {})).spec) if is_automatic else EXPERIMENT
    nodes = graph_of(experiment)
    names = [str(node.id) for node in nodes]
    done = with_upstream(ended & set(names), nodes)
    order = started(experiment, done)
    urgency = urgencies(nodes, {node.id for node in nodes if str(node.id) in done})
    keys = {str(node.id): (-urgency[node.id], names.index(str(node.id))) for node in nodes}
    assert order == sorted(order, key=keys.__getitem__)
    assert len(done) == len(names) or order
