"""The effect of a placement on a stage, and the choice for a stage with several models."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.builders import AUTOMATIC, FACTS, merged, raw_spec

from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.placement import Placement
from wrpo_operator.api.resource_rules import accelerators_in
from wrpo_operator.api.status import StageFacts, StageState, StageStatus
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import StageNode
from wrpo_operator.plan.placing import choose, placed
from wrpo_operator.plan.resources import devices_of, gang_of, gpus_of, resources_of, settings_of
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.requests import DoesNotFit

H100 = AcceleratorGroup(name="H100", resource="nvidia.com/gpu", memory_mib=81559, per_node=8, nodes=4)
L4 = AcceleratorGroup(name="L4", resource="nvidia.com/gpu", memory_mib=23034, per_node=1, nodes=1)
CLUSTER = Inventory(groups=(H100,), source="the labels of 4 nodes")
TINY = FACTS.model_copy(update={"parameters": 135_000_000, "weight_bytes": 270_000_000})


def node_named(name: str, **changes: Any) -> StageNode:
    raw = merged(raw_spec(), changes)
    return next(node for node in build_graph(parse_spec(raw)) if str(node.id) == name)


PLACEMENT = Placement(
    accelerator="H100",
    resource="nvidia.com/gpu",
    per_pod=8,
    pods=2,
    tensor_parallel_size=4,
    pipeline_parallel_size=2,
    micro_batch_tokens=4096,
    gradient_checkpointing=True,
    offload="optimizer",
    gpu_memory_utilization=0.84,
    memory_gib=64,
    ephemeral_storage_gib=100,
    node_labels={"nvidia.com/gpu.product": "H100"},
)


def test_a_placement_fills_in_what_the_spec_does_not_set() -> None:
    node = placed(node_named("sample/qwen", **AUTOMATIC), PLACEMENT)
    spec = parse_spec(merged(raw_spec(), AUTOMATIC))
    runtime = node.runtime
    assert (runtime.tensor_parallel_size, runtime.shards, runtime.gpu_memory_utilization) == (4, 2, 0.84)
    assert runtime.engine_args == {"pipeline_parallel_size": 2}
    assert gpus_of(spec, node) == 16
    resources = resources_of(spec, node)
    assert resources.limits == {"nvidia.com/gpu": 8}
    assert resources.requests == {"nvidia.com/gpu": 8, "memory": "64Gi", "ephemeral-storage": "100Gi"}
    train = placed(node_named("train", **AUTOMATIC), PLACEMENT)
    assert (train.runtime.micro_batch_tokens, train.runtime.offload) == (4096, "optimizer")
    assert json.loads(train.params.model_dump_json())["gradient_checkpointing"] is True
    assert (gang_of(spec, train).nodes, gang_of(spec, train).ranks_per_node) == (2, 8)
    assert train.hash == node_named("train", **AUTOMATIC).hash


def test_what_the_spec_sets_holds_against_a_placement() -> None:
    changes = merged(
        AUTOMATIC,
        {
            "sampling": {"tensorParallelSize": 2, "shards": 3, "gpuMemoryUtilization": 0.5},
            "training": {"gradientCheckpointing": False, "offload": "none", "microBatchTokens": 8192, "nodes": 1},
            "resources": {"sample": {"requests": {"memory": "7Gi"}, "limits": {"ephemeral-storage": "9Gi"}}},
        },
    )
    spec = parse_spec(merged(merged(raw_spec(), AUTOMATIC), changes))
    nodes = {str(node.id): placed(node, PLACEMENT) for node in build_graph(spec)}
    runtime = nodes["sample/qwen"].runtime
    assert (runtime.tensor_parallel_size, runtime.shards, runtime.gpu_memory_utilization) == (2, 3, 0.5)
    resources = resources_of(spec, nodes["sample/qwen"])
    assert resources.requests == {"memory": "7Gi", "nvidia.com/gpu": 8}
    assert resources.limits == {"ephemeral-storage": "9Gi", "nvidia.com/gpu": 8}
    train = nodes["train"]
    assert (train.runtime.micro_batch_tokens, train.runtime.offload, gang_of(spec, train).nodes) == (8192, "none", 1)
    assert json.loads(train.params.model_dump_json())["gradient_checkpointing"] is False


def test_the_settings_of_an_attempt_are_those_of_its_placement() -> None:
    spec, node = parse_spec(merged(raw_spec(), AUTOMATIC)), node_named("sample/qwen", **AUTOMATIC)
    bare = settings_of(spec, node)
    changes: tuple[dict[str, Any], ...] = (
        {}, {"per_pod": 4}, {"pods": 1}, {"tensor_parallel_size": 8}, {"memory_gib": 65}, {"node_labels": {}},
    )  # fmt: skip
    others = {settings_of(spec, placed(node, PLACEMENT.model_copy(update=change))) for change in changes}
    assert len(others | {bare}) == 7
    assert settings_of(spec, placed(node, PLACEMENT.model_copy(update={"arithmetic": "other"}))) in others


def test_the_limit_of_accelerators_replaces_no_waiting_child() -> None:
    node = node_named("sample/qwen")
    specs = [parse_spec(merged(raw_spec(), {"scheduling": {"maxGpus": most}})) for most in (None, 4)]
    assert len({settings_of(spec, node) for spec in specs}) == 1


REWARD_8B = FACTS.model_copy(update={"vocabulary": 128257})
TWO = Inventory(groups=(L4, replace(H100, nodes=1)), source="two nodes")


def two_models(target: ModelFacts, judge: ModelFacts, inventory: Inventory, step: int = 0, **changes: Any) -> Any:
    """Return the choice for a stage that generates with a target and then scores with a reward."""
    spec = parse_spec(merged(merged(raw_spec(), AUTOMATIC), changes))
    nodes = {str(node.id): node for node in build_graph(spec)}
    answers, grades = nodes["answer/target--held-out"], nodes["grade/target--held-out--main"]
    runtime = answers.runtime.model_copy(
        update={name: getattr(grades.runtime, name) for name in grades.runtime.model_fields_set}
    )
    node = replace(answers, shape=Shape.JOB, runtime=runtime, needs=(*answers.needs, *grades.needs))
    found = zip((str(need.facts) for need in node.needs), (target, judge), strict=True)
    records = {
        name: StageStatus(name=name, state=StageState.SUCCEEDED, hash="0" * 16, facts=StageFacts(**facts.model_dump()))
        for name, facts in found
    }
    return choose(spec, node, records, inventory, step=step)


def test_a_stage_with_several_models_gets_accelerators_on_which_each_of_them_fits() -> None:
    small, large = two_models(TINY, TINY, TWO), two_models(TINY, FORTY, TWO)
    assert (small.accelerator, large.accelerator, large.pods, large.tensor_parallel_size) == ("L4", "H100", 1, 1)
    assert large.micro_batch_tokens is not None
    assert isinstance(two_models(TINY, FORTY, Inventory(groups=(L4,), source="one node")), DoesNotFit)


def test_larger_accelerators_are_next_where_the_batches_of_the_reward_are_set() -> None:
    larger = replace(H100, name="H200", memory_mib=143_771)
    inventory = Inventory(groups=(H100, larger), source="two products")
    ladder = [two_models(FACTS, REWARD_8B, inventory, step=step, reward={"batchTokens": 4096}) for step in range(3)]
    assert [(way.accelerator, way.micro_batch_tokens) for way in ladder[:2]] == [("H100", 4096), ("H200", 4096)]
    assert isinstance(ladder[2], DoesNotFit)


FORTY = FACTS.model_copy(update={"parameters": 20_000_000_000, "weight_bytes": 40_000_000_000})


@pytest.mark.parametrize("placement", [None, PLACEMENT, Placement(), PLACEMENT.model_copy(update={"per_pod": 0})])
@pytest.mark.parametrize("gpus", [None, 0, 4])
@pytest.mark.parametrize("limits", [{}, {"nvidia.com/gpu": 0}, {"nvidia.com/gpu": "2", "cpu": 1}, {"cpu": "500m"}])
def test_the_devices_of_a_pod_are_those_of_its_resources(
    placement: Placement | None, gpus: int | None, limits: dict[str, Any]
) -> None:
    own = {"limits": limits}
    changes = {"training": {"gpusPerNode": gpus}, "resources": {"train": own, "sample": own, "score": None}}
    spec = parse_spec(merged(raw_spec(), changes))
    for node in build_graph(spec):
        chosen = replace(node, placement=placement)
        assert devices_of(spec, chosen) == accelerators_in(resources_of(spec, chosen))
