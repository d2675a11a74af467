"""Accelerators that the planner chooses for stages: when, from what, for how long, and what holds a stage back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from support.builders import AUTOMATIC, FACTS, make_child, make_experiment, make_pod, merged, raw_spec
from support.model_cluster import ModelCluster, at_stage, child_of, started, status_of

from wrpo_engine.config import ErrorInfo, InspectParams
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.placement import Placement
from wrpo_operator.api.status import AttemptState, StageState, StageStatus
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import ChildState, StageNode
from wrpo_operator.plan.placing import choose
from wrpo_operator.sizing.catalogue import known_facts
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.requests import DoesNotFit

H100 = AcceleratorGroup(
    name="H100",
    resource="nvidia.com/gpu",
    memory_mib=81559,
    per_node=8,
    nodes=4,
    labels={"nvidia.com/gpu.product": "H100"},
)
L4 = AcceleratorGroup(name="L4", resource="nvidia.com/gpu", memory_mib=23034, per_node=1, nodes=1)
CLUSTER = Inventory(groups=(H100,), source="the labels of 4 nodes")
SMALL = Inventory(groups=(L4,), source="the labels of 1 node")
NONE = Inventory(source="the labels of 2 nodes")
HUGE = FACTS.model_copy(update={"parameters": 72_700_000_000, "weight_bytes": 145_400_000_000, "layers": 80,
                                "hidden_size": 8192, "attention_heads": 64})  # fmt: skip
TINY = FACTS.model_copy(update={"parameters": 135_000_000, "weight_bytes": 270_000_000})


def world(inventory: Inventory | None = CLUSTER, facts: ModelFacts = FACTS, **changes: Any) -> ModelCluster:
    """Return a cluster with an experiment whose accelerators are chosen."""
    cluster = started()
    cluster.experiments["demo"].spec = merged(merged(raw_spec(), AUTOMATIC), changes)
    cluster.accelerators, cluster.facts = inventory, facts
    return cluster


def stage(cluster: ModelCluster, name: str) -> StageStatus:
    found = status_of(cluster).stage_named(name)
    assert found is not None
    return found


def placement_of(cluster: ModelCluster, name: str) -> Placement:
    found = stage(cluster, name).placement
    assert found is not None
    return found


def node_named(name: str, **changes: Any) -> StageNode:
    raw = merged(raw_spec(), changes)
    return next(node for node in build_graph(parse_spec(raw)) if str(node.id) == name)


def needs(name: str, **changes: Any) -> list[tuple[str, str]]:
    return [(need.work.value, need.facts.kind) for need in node_named(name, **changes).needs]


NEEDS: dict[str, tuple[str, Mapping[str, Any], list[tuple[str, str]]]] = {
    "a source": ("sample/qwen", AUTOMATIC, [("Generation", "inspect")]),
    "a source of the model cache": (
        "sample/qwen", {**AUTOMATIC, "modelCache": {"enabled": True}}, [("Generation", "fetch")]),
    "the tuned target": ("sample/target", AUTOMATIC, [("Generation", "inspect")]),
    "a reward model": ("score/qwen", AUTOMATIC, [("Scoring", "inspect")]),
    "a reward by an endpoint": (
        "score/qwen", {**AUTOMATIC, "reward": {"model": None, "endpoint": "http://r/v1"}}, []),
    "training": ("train", AUTOMATIC, [("Training", "inspect")]),
    "an answer": ("answer/target--held-out", AUTOMATIC, [("Generation", "inspect")]),
    "the trained model's answer": ("answer/trained--held-out", AUTOMATIC, [("Generation", "inspect")]),
    "a grade": ("grade/target--held-out--main", AUTOMATIC, [("Scoring", "inspect")]),
    "the aggregation": ("evaluate", AUTOMATIC, []),
    "prompts": ("prepare", AUTOMATIC, []),
    "accelerators set": ("sample/qwen", {"resources": {"sample": {"limits": {"amd.com/gpu": "2"}}}}, []),
    "the CPU set": ("sample/qwen", {"resources": {"sample": {"limits": {"nvidia.com/gpu": "0"}}}}, []),
    "gpusPerNode set to 0": ("train", {"training": {"gpusPerNode": 0}}, []),
    "memory alone": (
        "sample/qwen", {"resources": {"sample": {"limits": {"nvidia.com/gpu": None, "memory": "8Gi"}}}},
        [("Generation", "inspect")]),
    "a resource claim in the template": (
        "sample/qwen", {**AUTOMATIC, "podTemplate": {"spec": {"resourceClaims": [{"name": "gpu"}]}}}, []),
    "accelerators in the template": (
        "sample/qwen",
        {**AUTOMATIC, "podTemplate": {"spec": {"containers": [
            {"name": "stage", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}}}, []),
}  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "expected"), NEEDS.values(), ids=NEEDS.keys())
def test_accelerators_are_chosen_unless_the_spec_sets_their_number(
    name: str, changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert needs(name, **changes) == expected


def test_a_source_with_resources_of_its_own_is_sized_and_the_others_are_not() -> None:
    sources = [
        {"name": "qwen", "model": "org/a", "resources": {"limits": {"nvidia.com/gpu": "4"}}},
        {"name": "yi", "model": "org/b"},
    ]
    assert needs("sample/qwen", **AUTOMATIC, sources=sources) == []
    assert needs("sample/yi", **AUTOMATIC, sources=sources) == [("Generation", "inspect")]


def with_facts(name: str, facts: ModelFacts) -> StageStatus:
    """Return the record of a stage that found facts about a model."""
    found = facts.model_dump(by_alias=True)
    return StageStatus.model_validate({"name": name, "state": StageState.SUCCEEDED, "hash": "", "facts": found})


EVA = {"systems": [{"name": "eva", "joint": {"method": "EVA", "members": ["*", "sft", "target"]}}]}
SEARCH = {"models": ["*"], "method": "TIES", "search": {"reward": "main", "budget": 8}}
SEARCHED = {"systems": [{"name": "best", "merge": SEARCH}]}
CARD_24 = replace(H100, name="24 GB", memory_mib=24564)


def chosen_for(name: str, evaluation: dict[str, Any], group: AcceleratorGroup) -> tuple[int, Placement | DoesNotFit]:
    """Return the number of models of a stage, each of them an 8B, and the choice for it."""
    raw = merged(raw_spec(evaluation=evaluation), AUTOMATIC)
    node = next(node for node in build_graph(parse_spec(raw)) if str(node.id) == name)
    records = {str(need.facts): with_facts(str(need.facts), FACTS) for need in node.needs}
    return len(node.needs), choose(parse_spec(raw), node, records, Inventory(groups=(group,), source="one group"))


def test_models_that_choose_each_token_together_are_in_memory_at_the_same_time() -> None:
    # SFT and target are of one size: each of them counts.
    models, chosen = chosen_for("joint/eva--held-out", EVA, H100)
    assert models == 4
    assert isinstance(chosen, Placement)
    assert (chosen.per_pod, chosen.tensor_parallel_size) == (1, 1)
    assert chosen.arithmetic.startswith("weights of 15.0 + 15.0 + 15.0 + 15.0 = 59.8 GiB, caches of ")
    _, spread_out = chosen_for("joint/eva--held-out", EVA, CARD_24)
    assert isinstance(spread_out, Placement)
    assert spread_out.per_pod == 4
    _, refused = chosen_for("joint/eva--held-out", EVA, replace(CARD_24, per_node=2))
    assert isinstance(refused, DoesNotFit)
    assert "holds 4 models at once" in refused.message


def test_a_candidate_of_a_search_and_its_reward_model_share_one_accelerator() -> None:
    models, chosen = chosen_for("merge/best", SEARCHED, H100)
    assert models == 2
    assert isinstance(chosen, Placement)
    assert chosen.per_pod == 1
    assert chosen.arithmetic.startswith("weights of 15.0 + 15.0 = 29.9 GiB, caches of 2.0 GiB, batches of 16384 tokens")
    _, refused = chosen_for("merge/best", SEARCHED, CARD_24)
    assert isinstance(refused, DoesNotFit)


ARENA = {"kind": "ArenaHard", "name": "arena"}


def own_judge(**serve: Any) -> dict[str, Any]:
    judges = [{"name": "own", "serve": {"model": "org/judge", **serve}}]
    return {"evaluation": {"benchmarks": [ARENA], "judges": judges}}


ROOMS: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "a source": ("sample/qwen", {}, "are 106 sequences of 4096"),
    "a longer limit": ("sample/qwen", {"sampling": {"maxModelLength": 8192}}, "are 53 sequences of 8192"),
    "answers": ("answer/target--held-out", {}, "are 106 sequences of 4096"),
    "answers with the limit of sampling": (
        "answer/target--held-out", {"sampling": {"maxModelLength": 2048}}, "are 213 sequences of 2048"),
    "a source with an fp8 cache": (
        "sample/qwen", {"sampling": {"engineArgs": {"kv_cache_dtype": "fp8"}}}, "are 213 sequences of 4096"),
    "answers with an fp8 cache": (
        "answer/target--held-out", {"sampling": {"engineArgs": {"kv_cache_dtype": "fp8"}}},
        "are 213 sequences of 4096"),
    "answers with less memory": (
        "answer/target--held-out", {"sampling": {"gpuMemoryUtilization": 0.45}}, "are 35 sequences of 4096"),
    "a judge, which has its whole context": (
        "judge/target--arena--own", own_judge(), "are 53 sequences of 8192"),
    "a judge with a limit": ("judge/target--arena--own", own_judge(maxModelLength=2048), "are 213 sequences of 2048"),
    "a judge with an fp8 cache": (
        "judge/target--arena--own", own_judge(engineArgs={"kv_cache_dtype": "fp8"}), "are 106 sequences of 8192"),
    "a judge with less memory": (
        "judge/target--arena--own", own_judge(gpuMemoryUtilization=0.45), "are 17 sequences of 8192"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "room"), ROOMS.values(), ids=ROOMS.keys())
def test_the_cache_is_sized_to_what_the_engine_will_be_told(name: str, changes: dict[str, Any], room: str) -> None:
    raw = merged(merged(raw_spec(), AUTOMATIC), changes)
    node = next(node for node in build_graph(parse_spec(raw)) if str(node.id) == name)
    records = {str(need.facts): with_facts(str(need.facts), FACTS) for need in node.needs}
    chosen = choose(parse_spec(raw), node, records, CLUSTER)
    assert isinstance(chosen, Placement)
    assert chosen.arithmetic.endswith(room)


def test_models_are_inspected_once_each_and_change_no_hash() -> None:
    sized = {str(node.id): node.hash for node in build_graph(parse_spec(raw_spec()))}
    chosen = {str(node.id): node for node in build_graph(parse_spec(merged(raw_spec(), AUTOMATIC)))}
    assert {name: node.hash for name, node in chosen.items() if not name.startswith("inspect/")} == sized
    assert len(chosen) - len(sized) == len({"target", "qwen", "yi", "reward"})
    assert all("inspect" not in role for node in chosen.values() for role in node.inputs)


def test_a_stage_starts_with_accelerators_once_the_facts_are_known() -> None:
    cluster = world(prompts={"limit": 512})
    at_stage(cluster, "sample/qwen")
    chosen, child = placement_of(cluster, "sample/qwen"), cluster.children[child_of(cluster, "sample/qwen")]
    assert (chosen.accelerator, chosen.resource, chosen.per_pod, chosen.tensor_parallel_size) == (
        "H100", "nvidia.com/gpu", 1, 1)  # fmt: skip
    assert chosen.arithmetic
    assert child.placement == chosen
    facts = stage(cluster, "inspect/target-17d32").facts
    assert facts is not None
    assert facts.model_dump() == FACTS.model_dump()


def test_without_an_inventory_stages_are_as_the_spec_says() -> None:
    cluster = world(None)
    at_stage(cluster, "train")
    assert [entry.placement for entry in status_of(cluster).stages] == [None] * len(status_of(cluster).stages)


def test_accelerators_that_the_spec_sets_are_recorded_too() -> None:
    cluster = started(resources={"sample": {"limits": {"nvidia.com/gpu": 4}}}, sampling={"tensorParallelSize": 4})
    at_stage(cluster, "sample/qwen")
    assert stage(cluster, "sample/qwen").placement == Placement(
        resource="nvidia.com/gpu", per_pod=4, tensor_parallel_size=4, arithmetic="as set in the spec"
    )


def test_a_cluster_without_accelerators_runs_small_models_on_its_cpus() -> None:
    cluster = world(NONE, TINY)
    assert cluster.run_fairly("demo").value == "Succeeded"
    assert {entry.placement.per_pod for entry in status_of(cluster).stages if entry.placement} == {0}


def test_a_model_that_fits_nowhere_blocks_before_accelerators_are_held_until_there_are_larger_ones() -> None:
    cluster = world(SMALL, HUGE)
    at_stage(cluster, "prepare")
    cluster.finish_all("demo")
    blockers = {blocker.object: blocker for blocker in status_of(cluster).blockers}
    assert set(blockers) == {"Stage/sample/qwen", "Stage/sample/yi", "Stage/answer/target--held-out"}
    blocker = blockers["Stage/sample/qwen"]
    assert (blocker.reason, blocker.stage) == ("ModelDoesNotFit", "sample/qwen")
    assert blocker.message.startswith("Stage sample/qwen is not started: ")
    assert "L4" in blocker.message
    assert stage(cluster, "sample/qwen").state is StageState.WAITING
    assert stage(cluster, "sample/qwen").attempts == ()
    cluster.accelerators = CLUSTER
    cluster.reconcile("demo")
    assert status_of(cluster).blockers == ()
    assert placement_of(cluster, "sample/qwen").per_pod == 4


def test_facts_that_never_arrive_are_awaited_for_a_minute() -> None:
    cluster = world()
    cluster.facts = None
    at_stage(cluster, "prepare")
    cluster.finish_all("demo")
    waiting = stage(cluster, "sample/qwen")
    assert (waiting.state, waiting.attempts) == (StageState.WAITING, ())
    assert waiting.message == "Waiting for the size of the model that inspect/qwen2-72b-inst-e6e66 reports."
    cluster.advance(61)
    cluster.reconcile("demo")
    assert stage(cluster, "sample/qwen").attempts[0].number == 1
    assert stage(cluster, "sample/qwen").placement is None


def test_an_attempt_keeps_its_accelerators_whatever_happens_to_the_inventory() -> None:
    cluster = world(facts=HUGE)
    at_stage(cluster, "sample/qwen")
    before = placement_of(cluster, "sample/qwen")
    for inventory in (SMALL, NONE, None, Inventory(groups=(replace(H100, memory_mib=143771),), source="new nodes")):
        cluster.accelerators = inventory
        answer = cluster.reconcile("demo")
        assert answer.delete == ()
        assert placement_of(cluster, "sample/qwen") == before
    assert stage(cluster, "sample/qwen").state is StageState.RUNNING
    cluster.fail(child_of(cluster, "sample/qwen"), 1)
    cluster.reconcile("demo")
    cluster.advance(3600)
    cluster.reconcile("demo")
    assert placement_of(cluster, "sample/qwen").per_pod == 2, "the next attempt has what the cluster offers then"


def test_an_attempt_that_waits_for_accelerators_that_have_left_the_cluster_says_so() -> None:
    cluster = world(facts=HUGE)
    at_stage(cluster, "sample/qwen")
    name = child_of(cluster, "sample/qwen")
    words = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity."
    pods = (make_pod(f"{name}-0", phase="Pending", unschedulable_message=words),)
    cluster.children[name] = replace(cluster.children[name], state=ChildState.PENDING, pods=pods)
    messages = []
    for inventory in (CLUSTER, SMALL):
        cluster.accelerators = inventory
        cluster.reconcile("demo")
        messages += [item.message for item in status_of(cluster).blockers if item.reason == "Unschedulable"]
    usual = f"No node fits the pod: {words} Change spec.resources or spec.scheduling, or wait for free capacity."
    gone = (
        "The cluster no longer has H100, which was chosen for this attempt. Delete "
        f"{cluster.children[name].kind}/{name} to choose again, or wait for such nodes."
    )
    assert messages == [usual, f"{gone} {usual}"]


def test_a_pending_attempt_whose_status_was_lost_has_the_accelerators_of_its_child() -> None:
    cluster = world(facts=HUGE)
    at_stage(cluster, "prepare")
    cluster.finish_all("demo", lose_status=True)
    child = cluster.children[child_of(cluster, "sample/qwen")]
    assert child.state is ChildState.PENDING
    cluster.accelerators = SMALL
    cluster.reconcile("demo")
    assert placement_of(cluster, "sample/qwen") == child.placement


def test_a_child_that_somebody_deleted_is_made_again_with_the_same_accelerators_while_they_exist() -> None:
    cluster = world(facts=HUGE, sampling={"shards": 1})
    at_stage(cluster, "sample/qwen")
    before = placement_of(cluster, "sample/qwen")
    for inventory, expected in (
        (
            Inventory(groups=(H100, replace(H100, name="H200", memory_mib=143771)), source="more nodes"),
            before.accelerator,
        ),
        (Inventory(groups=(replace(H100, name="H200", memory_mib=143771),), source="other nodes"), "H200"),
    ):
        del cluster.children[child_of(cluster, "sample/qwen")]
        cluster.accelerators = inventory
        cluster.reconcile("demo")
        assert stage(cluster, "sample/qwen").attempts[-1].number == 1
        assert placement_of(cluster, "sample/qwen").accelerator == expected


def out_of_memory(cluster: ModelCluster, name: str) -> None:
    """Let the live attempt of a stage end for lack of accelerator memory."""
    child = next(child for child in cluster.children.values() if child.stage == name and child.state in RUNNING)
    error = ErrorInfo(code="OutOfMemory", message="The accelerator's memory is full.")
    pod = make_pod(f"{child.name}-0", exit_code=1, error=error, finished_at=cluster.now)
    cluster.children[child.name] = replace(child, state=ChildState.FAILED, finished_at=cluster.now, pods=(pod,))
    cluster.reconcile("demo")


RUNNING = frozenset({ChildState.PENDING, ChildState.RUNNING})


def test_after_out_of_memory_the_next_attempt_has_more_room_and_no_retry_is_used_up() -> None:
    cluster = world(facts=HUGE, retries={"limit": 1}, sampling={"shards": 1})
    at_stage(cluster, "sample/qwen")
    steps = [placement_of(cluster, "sample/qwen").step]
    for _ in range(40):
        out_of_memory(cluster, "sample/qwen")
        record = stage(cluster, "sample/qwen")
        assert record.failed_attempts == 0
        if record.state is StageState.WAITING and record.attempts[-1].state is AttemptState.FAILED:
            break
        steps.append(placement_of(cluster, "sample/qwen").step)
    assert steps == list(range(len(steps))), "each attempt is one step further"
    assert 2 <= len(steps) < 40, "the ladder ends"
    (blocker,) = [item for item in status_of(cluster).blockers if item.stage == "sample/qwen"]
    assert blocker.reason == "ModelDoesNotFit"
    cluster.edit("demo", sampling={"engineArgs": {"max_num_seqs": 8}})
    cluster.reconcile("demo")
    assert placement_of(cluster, "sample/qwen").step == 0, "an edit may change what the model needs"


def test_out_of_memory_of_a_stage_that_the_spec_sizes_uses_up_a_retry() -> None:
    cluster = started(resources={"sample": {"limits": {"nvidia.com/gpu": 4}}})
    at_stage(cluster, "sample/qwen")
    out_of_memory(cluster, "sample/qwen")
    assert stage(cluster, "sample/qwen").failed_attempts == 1


def test_stages_wait_for_each_other_s_accelerators() -> None:
    cluster = world(facts=HUGE, scheduling={"maxGpus": 4}, sampling={"shards": 1})
    at_stage(cluster, "sample/qwen")
    assert stage(cluster, "sample/yi").message == "Waiting for 4 accelerators that other stages of this experiment use."
    assert status_of(cluster).blockers == ()
    cluster.succeed(child_of(cluster, "sample/qwen"))
    cluster.reconcile("demo")
    assert placement_of(cluster, "sample/yi").per_pod == 4


def test_shards_that_have_finished_free_their_accelerators() -> None:
    cluster = started(
        scheduling={"maxGpus": 6}, sampling={"shards": 4}, resources={"sample": {"limits": {"nvidia.com/gpu": 1}}}
    )
    at_stage(cluster, "sample/qwen")
    assert stage(cluster, "sample/yi").attempts == ()
    name = child_of(cluster, "sample/qwen")
    cluster.children[name] = replace(cluster.children[name], succeeded_shards=2)
    cluster.reconcile("demo")
    assert len(stage(cluster, "sample/yi").attempts) == 1


def test_a_stage_that_maxgpus_never_admits_is_a_blocker() -> None:
    cluster = started(
        scheduling={"maxGpus": 3}, sampling={"shards": 4}, resources={"sample": {"limits": {"nvidia.com/gpu": 1}}}
    )
    at_stage(cluster, "prepare")
    cluster.finish_all("demo")
    blocker = status_of(cluster).blockers[0]
    assert (blocker.object, blocker.reason) == ("Stage/sample/qwen", "ExceedsMaxGpus")
    assert blocker.message == (
        "Stage sample/qwen requests 4 accelerators, and scheduling.maxGpus allows 3 at the same time. Raise maxGpus, "
        "or lower its shards, nodes or accelerators per pod."
    )


def test_children_of_an_edited_spec_count_while_their_pods_run() -> None:
    cluster = started(scheduling={"maxGpus": 4}, resources={"sample": {"limits": {"nvidia.com/gpu": 2}}})
    at_stage(cluster, "sample/qwen")
    cluster.reconcile("demo")
    cluster.edit("demo", sampling={"temperature": 0.5})
    cluster.reconcile("demo")
    assert {child.state for child in cluster.children.values() if child.stage.startswith("sample/")} == {
        ChildState.DELETING
    }


def test_a_source_whose_model_cannot_be_inspected_is_left_out_where_the_spec_allows_it() -> None:
    cluster = world(sampling={"onSourceFailure": "Continue"})
    cluster.reconcile("demo")
    name = child_of(cluster, "inspect/yi-1-5-34b-cha-5c87d")
    cluster.run(name)
    cluster.fail(name, 78)
    cluster.reconcile("demo")
    degraded = status_of(cluster).condition("SourcesDegraded")
    assert degraded is not None
    assert (degraded.status, degraded.message.partition(":")[0]) == ("True", "Continuing without yi")
    assert stage(cluster, "inspect/yi-1-5-34b-cha-5c87d").state is StageState.FAILED
    assert stage(cluster, "sample/yi").state is StageState.SKIPPED
    assert cluster.run_fairly("demo").value == "Succeeded"


def test_a_target_that_cannot_be_inspected_fails_the_experiment() -> None:
    cluster = world(sampling={"onSourceFailure": "Continue"})
    cluster.reconcile("demo")
    name = child_of(cluster, "inspect/target-17d32")
    cluster.run(name)
    cluster.fail(name, 78)
    cluster.reconcile("demo")
    assert status_of(cluster).phase == "Failed"


def test_a_finished_experiment_inspects_nothing() -> None:
    """Its stages succeeded before an edit removed their resources, or before models were inspected."""
    experiment = make_experiment()
    assert experiment.spec is not None
    children = [make_child(experiment, str(node.id), ChildState.SUCCEEDED) for node in build_graph(experiment.spec)]
    cluster = started()
    cluster.children = {child.name: replace(child, experiment_uid="uid-demo") for child in children}
    cluster.reconcile("demo")
    assert status_of(cluster).phase == "Succeeded"
    cluster.edit("demo", training={"gpusPerNode": None}, resources=None)
    assert cluster.reconcile("demo").apply == ()
    assert status_of(cluster).phase == "Succeeded"


MODELS: dict[str, tuple[str, tuple[int, int]]] = {
    "mistral-large": ("mistralai/Mistral-Large-Instruct-2407", (8, 4)),
    "deepseek": ("deepseek-ai/DeepSeek-V2-Chat-0628", (4, 8)),
    "qwen2-72b": ("Qwen/Qwen2-72B-Instruct", (8, 4)),
    "gemma-27b": ("google/gemma-2-27b-it", (16, 2)),
    "phi-3": ("microsoft/Phi-3-medium-4k-instruct", (32, 1)),
}
"""Source -> model, and the pods and accelerators per pod that it gets on four nodes of eight H100."""


def test_an_experiment_of_the_paper_s_kind_stays_within_its_cluster_and_uses_all_of_it() -> None:
    sources = [{"name": name, "model": model} for name, (model, _) in MODELS.items()]
    cluster = world(sources=sources)
    for node in build_graph(parse_spec(cluster.experiments["demo"].spec)):
        known = known_facts(node.params.model.name or "") if isinstance(node.params, InspectParams) else None
        if known is not None:
            cluster.facts_by_stage[str(node.id)] = known.facts
    most = 0
    while status_of(cluster).phase != "Succeeded":
        cluster.reconcile("demo")
        live = [child for child in cluster.children.values() if child.state in RUNNING]
        used = sum(child.placement.accelerators for child in live if child.placement is not None)
        assert used <= 32
        most = max(most, used)
        assert status_of(cluster).blockers == ()
        for child in live[:1]:
            cluster.run(child.name)
            cluster.succeed(child.name)
    assert most == 32
    for name, (_, expected) in MODELS.items():
        chosen = placement_of(cluster, f"sample/{name}")
        assert (chosen.pods, chosen.per_pod) == expected
    train = placement_of(cluster, "train")
    assert (train.accelerator, train.pods) == ("H100", 1)
