"""Inspection of models: one stage for each model, which knows every use of it."""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import raw_spec

from wrpo_engine.config import InspectParams, ModelRef
from wrpo_engine.contract.data import ModelUse
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.plan.builder import Graph
from wrpo_operator.plan.wiring import fetch, inspect

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REWARD = {"model": "org/judge", "additional": [{"name": "second", "model": "/models/judge"}]}


def graph_of(**changes: Any) -> Graph:
    return Graph(parse_spec(raw_spec(**changes)))


def test_a_model_is_inspected_once_for_all_its_uses() -> None:
    model = {"model": "org/tiny", "revision": COMMIT}
    sources = [
        {"name": "one", **model, "trustRemoteCode": True, "sampling": {"backend": "Transformers"}},
        {"name": "two", **model, "chatTemplate": "{{ messages }}"},
        {"name": "three", "model": "org/tiny"},
    ]
    graph = graph_of(target=model, sources=sources, reward=REWARD, modelCache={"enabled": True})
    stage, other = inspect(graph, graph.spec.target), inspect(graph, graph.spec.sources[0])
    assert stage is not None
    assert (stage == other, stage.kind, stage.name.startswith("tiny-")) == (True, "inspect", True)
    downloaded = fetch(graph, graph.spec.target)
    assert downloaded is not None
    assert downloaded.name == stage.name
    nodes = {node.id: node for node in graph.nodes()}
    assert list(nodes) == [stage, downloaded]
    uses = (
        ModelUse(field="target", purpose="train"),
        ModelUse(field="target", purpose="sample", backend="vLLM"),
        ModelUse(field="sources[one]", purpose="sample", backend="Transformers", trust_remote_code=True),
        ModelUse(field="sources[two]", purpose="sample", backend="vLLM", chat_template="{{ messages }}"),
    )
    assert nodes[stage].params == InspectParams(model=ModelRef(name="org/tiny", revision=COMMIT), uses=uses)
    assert nodes[downloaded].runtime.model_uses == uses


def test_rewards_are_inspected_where_they_are_models() -> None:
    graph = graph_of(reward=REWARD)
    for reward in (graph.spec.reward, *graph.spec.reward.additional):
        stage = inspect(graph, reward)
        assert stage is not None
        assert stage.name.startswith("judge-")
    assert [node.params.uses for node in graph.nodes() if isinstance(node.params, InspectParams)] == [
        (ModelUse(field="reward", purpose="score"),),
        (ModelUse(field="reward.additional[second]", purpose="score"),),
    ]
    endpoint = graph_of(reward={"model": None, "endpoint": "http://judge:8000"})
    assert inspect(endpoint, endpoint.spec.reward) is None


@pytest.mark.parametrize("model", ["/models/--", "storage://models/Big.Model_v2/", "org/a___"])
def test_the_name_of_an_inspection_is_one_of_a_stage(model: str) -> None:
    graph = graph_of(target={"model": model})
    assert inspect(graph, graph.spec.target) is not None
    (node,) = graph.nodes()
    name = node.id.name
    assert name.replace("-", "").isalnum()
    assert not name.startswith("-")
    assert len(name) <= 20


def test_a_further_use_of_a_model_downloads_it_no_second_time() -> None:
    changes: dict[str, Any] = {"target": {"model": "org/tiny"}, "modelCache": {"enabled": True}}
    before, after = graph_of(**changes), graph_of(**changes, sources=[{"name": "one", "model": "org/tiny"}])
    assert fetch(before, before.spec.target) == fetch(after, after.spec.target)
    (first,), (second,) = before.nodes(), after.nodes()
    assert first.hash == second.hash
    assert len(second.runtime.model_uses) == len(first.runtime.model_uses) + 1
