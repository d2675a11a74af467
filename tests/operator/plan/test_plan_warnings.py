"""Warnings: what looks like a mistake is said once per change, and prevents nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from support.builders import AUTOMATIC, FACTS, merged, raw_spec
from support.model_cluster import ModelCluster, started, status_of

from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.placement import Placement
from wrpo_operator.api.status import StageFacts, StageState, StageStatus
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.placing import placed
from wrpo_operator.plan.warnings import warnings_of
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory

CLUSTER = Inventory(
    groups=(AcceleratorGroup(name="H100", resource="nvidia.com/gpu", memory_mib=81559, per_node=8, nodes=2),),
    source="the labels of 2 nodes",
)
ON_GPU = Placement(accelerator="H100", resource="nvidia.com/gpu", per_pod=1)
TARGET = "inspect/target-17d32"
RECORDS = {
    TARGET: StageStatus(
        name=TARGET, state=StageState.SUCCEEDED, hash="", facts=StageFacts.model_validate(FACTS.model_dump())
    )
}
SOURCES = [{"name": "qwen", "model": "org/qwen"}]
"""No well-known model, whose size would be known without an inspection."""


def gpus(count: int) -> dict[str, Any]:
    return {"sample": {"limits": {"nvidia.com/gpu": count}}, "score": {"limits": {"nvidia.com/gpu": 0}}}


CASES: dict[str, tuple[Mapping[str, Any], str, Inventory | None, list[str]]] = {
    "nothing": ({}, "train", CLUSTER, []),
    "a large model trained on the CPU": (
        AUTOMATIC, "train", None,
        [("Stage train trains org/target (8.0 billion parameters) on CPUs in bfloat16, which is slower than float32 "
         "there; this takes weeks. Set training.gpusPerNode, or let the operator choose accelerators.")]),
    "a large model trained on the CPU in float32": (
        merged(AUTOMATIC, {"training": {"precision": "float32"}}), "train", None,
        [("Stage train trains org/target (8.0 billion parameters) on CPUs; this takes weeks. Set training.gpusPerNode, "
         "or let the operator choose accelerators.")]),
    "a large model sampled on the CPU": (
        AUTOMATIC, "sample/target", None,
        [("Stage sample/target runs org/target (8.0 billion parameters) with vLLM on CPUs, which takes weeks. Give it "
         "accelerators in spec.resources, or let the operator choose them.")]),
    "accelerators that are not chosen yet": (AUTOMATIC, "train", CLUSTER, []),
    "idle accelerators": (
        {"resources": gpus(4)}, "sample/qwen", CLUSTER,
        [("Each pod of stage sample/qwen requests 4 nvidia.com/gpu and uses 1. Set tensorParallelSize to 4, or request "
         "1.")]),
    "accelerators of a pipeline are not idle": (
        {"resources": gpus(4), "sampling": {"tensorParallelSize": 2, "engineArgs": {"pipeline_parallel_size": 2}}},
        "sample/qwen", CLUSTER, []),
    "downloads by every shard": (
        {"sampling": {"shards": 8}}, "sample/qwen", None,
        [("Each pod of a stage downloads its model, for example org/qwen in stage sample/qwen. Set modelCache.enabled "
          "to download each model once.")]),
    "downloads by shards that are not chosen yet": (
        AUTOMATIC, "sample/qwen", CLUSTER,
        [("Each pod of a stage downloads its model, for example org/qwen in stage sample/qwen. Set modelCache.enabled "
          "to download each model once.")]),
    "a model cache": ({"sampling": {"shards": 8}, "modelCache": {"enabled": True}}, "sample/qwen", None, []),
    "more shards than accelerators": (
        {"sampling": {"shards": 32}, "resources": gpus(1), "modelCache": {"enabled": True}}, "sample/qwen", CLUSTER,
        [("Stage sample/qwen requests 32 accelerators, and H100 has 16: its pods run one after the other. Lower its "
         "shards, nodes or accelerators per pod.")]),
    "a gang that is too large": (
        {"training": {"nodes": 4, "gpusPerNode": 8}}, "train", CLUSTER,
        [("Stage train requests 32 accelerators, and H100 has 16: its pods never run at the same time, as a gang must. "
         "Lower its shards, nodes or accelerators per pod.")]),
    "a limit above the cluster": (
        {"scheduling": {"maxGpus": 64}}, "prepare", CLUSTER,
        ["scheduling.maxGpus is 64, and there are 16 accelerators (the labels of 2 nodes); it limits nothing."]),
    "faults of the cluster": (
        {}, "prepare", Inventory(source="nodes", faults=("Node a has no label for its memory.",)),
        ["Node a has no label for its memory."]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "stage", "inventory", "expected"), CASES.values(), ids=CASES.keys())
def test_what_looks_like_a_mistake(
    changes: dict[str, Any], stage: str, inventory: Inventory | None, expected: list[str]
) -> None:
    spec = parse_spec(merged(raw_spec(sources=SOURCES), changes))
    nodes = [node for node in build_graph(spec) if str(node.id) == stage]
    assert list(warnings_of(spec, nodes, inventory, RECORDS)) == expected


def test_the_size_of_a_well_known_model_is_known_before_it_is_inspected() -> None:
    spec = parse_spec(raw_spec())
    nodes = [node for node in build_graph(spec) if str(node.id) == "sample/qwen"]
    warning = (
        "Stage sample/qwen runs Qwen/Qwen2-72B-Instruct (72.7 billion parameters) with vLLM on CPUs, which takes "
        "weeks. Give it accelerators in spec.resources, or let the operator choose them."
    )
    assert warnings_of(spec, nodes, None) == (warning,)


def test_a_placed_stage_is_no_mistake() -> None:
    spec = parse_spec(merged(raw_spec(), AUTOMATIC))
    nodes = [placed(node, ON_GPU) for node in build_graph(spec)]
    assert warnings_of(spec, nodes, CLUSTER, RECORDS) == ()


def judged(max_requests: int | None, **benchmark: Any) -> dict[str, Any]:
    judge = {"name": "gpt", "endpoint": "https://judges.example.org/v1", "model": "gpt", "maxRequests": max_requests}
    return {"benchmarks": [{"name": "b", "kind": "ArenaHard", **benchmark}], "judges": [judge]}


@pytest.mark.parametrize(
    ("evaluation", "found", "needed"),
    [
        (judged(999), {}, 1000),
        (judged(1000), {}, None),
        (judged(None), {}, None),
        (judged(19, limit=10), {}, 20),
        (judged(19, kind="Custom", protocol="MTBench", bundle="org/own"), {}, None),
        (judged(19, kind="Custom", protocol="MTBench", bundle="org/own"), {"bench/b": {"rows": 10.0}}, 20),
        (judged(19), {f"judge/{name}--b--gpt": {} for name in ("target", "sft", "trained")}, None),
    ],
)
def test_a_judge_that_may_not_send_the_requests_that_are_needed_is_named_once(
    evaluation: dict[str, Any], found: dict[str, dict[str, float]], needed: int | None
) -> None:
    spec = parse_spec(raw_spec(sources=SOURCES, evaluation=evaluation))
    records = {
        name: StageStatus(name=name, state=StageState.SUCCEEDED, hash="", metrics=metrics)
        for name, metrics in found.items()
    }
    limit = evaluation["judges"][0]["maxRequests"]
    warning = (
        f"evaluation.judges[gpt].maxRequests is {limit}, and one system on b needs {needed} "
        "requests, retries not counted; a stage that may not send all of them fails. Raise it, or lower limit of the "
        "benchmark."
    )
    assert warnings_of(spec, build_graph(spec), None, records) == (() if needed is None else (warning,))


def warned(cluster: ModelCluster) -> tuple[str, str]:
    condition = status_of(cluster).condition("Warned")
    assert condition is not None
    return condition.status, condition.message


def test_a_warning_is_a_condition_and_an_event_once_for_each_change() -> None:
    cluster = started(scheduling={"maxGpus": 64}, sources=SOURCES)
    cluster.accelerators = CLUSTER
    first = "scheduling.maxGpus is 64, and there are 16 accelerators (the labels of 2 nodes); it limits nothing."
    answer = cluster.reconcile("demo")
    assert warned(cluster) == ("True", first)
    assert [(event.type, event.message) for event in answer.events if event.reason == "SuspiciousSpec"] == [
        ("Warning", first)
    ]
    assert answer.apply, "it prevents nothing"
    assert not any(event.reason == "SuspiciousSpec" for event in cluster.reconcile("demo").events)
    cluster.edit("demo", scheduling={"maxGpus": 32})
    assert [event.message for event in cluster.reconcile("demo").events if event.reason == "SuspiciousSpec"] == [
        first.replace("64", "32")
    ]
    cluster.edit("demo", scheduling={"maxGpus": 8})
    assert not any(event.reason == "SuspiciousSpec" for event in cluster.reconcile("demo").events)
    assert warned(cluster) == ("False", "Nothing looks like a mistake.")
