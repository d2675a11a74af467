"""Devices of pods: what a placement renders, what pods without devices see, and how long training may save."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.builders import AUTOMATIC, FACTS, make_experiment, make_planned

from wrpo_operator.api.names import ANNOTATION_PLACEMENT
from wrpo_operator.api.placement import Placement
from wrpo_operator.plan.model import Manifest
from wrpo_operator.plan.placing import placed
from wrpo_operator.render import RenderSettings, render_attempt
from wrpo_operator.runtime.observe import child_fact

PLACEMENT = Placement(
    accelerator="H100",
    resource="nvidia.com/gpu",
    per_pod=4,
    pods=2,
    tensor_parallel_size=4,
    memory_gib=64,
    ephemeral_storage_gib=20,
    shared_memory_gib=8,
    node_labels={"nvidia.com/gpu.product": "H100"},
    arithmetic="4 x 79.6 GiB",
)


def rendered(stage: str, placement: Placement | None = None, facts: Any = None, **changes: Any) -> Manifest:
    experiment = make_experiment(**changes)
    planned = make_planned(experiment, stage)
    node = replace(placed(planned.node, placement), facts=facts)
    return render_attempt(experiment, replace(planned, node=node), RenderSettings())[-1]


def pod_of(child: Manifest) -> dict[str, Any]:
    spec = child["spec"]
    template = spec["template"] if child["kind"] == "Job" else spec["pytorchReplicaSpecs"]["Master"]["template"]
    pod: dict[str, Any] = template["spec"]
    return pod


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}


def test_a_placement_is_rendered() -> None:
    child = rendered("sample/qwen", PLACEMENT, **AUTOMATIC)
    pod = pod_of(child)
    assert pod["containers"][0]["resources"] == {
        "requests": {"memory": "64Gi", "ephemeral-storage": "20Gi", "nvidia.com/gpu": "4"},
        "limits": {"nvidia.com/gpu": "4"},
    }
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
    assert {"name": "wrpo-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in pod["volumes"]
    assert (child["spec"]["completions"], child["spec"]["parallelism"]) == (2, 2)
    assert "NVIDIA_VISIBLE_DEVICES" not in environment(pod)


def test_a_gang_has_the_ranks_and_pods_of_its_placement() -> None:
    child = rendered("train", PLACEMENT, **{**AUTOMATIC, "scheduling": {"gang": "BestEffort"}})
    assert child["spec"]["nprocPerNode"] == "4"
    assert child["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 1
    assert pod_of(child)["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "4"}


def test_the_node_selector_of_the_spec_holds_against_that_of_a_placement() -> None:
    selector = {"nvidia.com/gpu.product": "other", "zone": "a"}
    child = rendered("sample/qwen", PLACEMENT, **AUTOMATIC, scheduling={"nodeSelector": selector})
    assert pod_of(child)["nodeSelector"] == selector


@pytest.mark.parametrize("placement", [PLACEMENT, PLACEMENT.model_copy(update={"alternatives": ("8 x L40S",)})])
def test_a_child_says_which_placement_its_pods_have(placement: Placement) -> None:
    fact = child_fact(rendered("sample/qwen", placement, **AUTOMATIC), ())
    assert fact is not None
    assert fact.placement == placement


@pytest.mark.parametrize("text", ["", "{", "[]", '{"perPod": -1}'])
def test_a_placement_that_was_edited_by_hand_counts_as_none(text: str) -> None:
    child = rendered("sample/qwen", PLACEMENT, **AUTOMATIC)
    child["metadata"]["annotations"][ANNOTATION_PLACEMENT] = text
    fact = child_fact(child, ())
    assert fact is not None
    assert fact.placement is None


GPU = {"limits": {"nvidia.com/gpu": 1}}
STAGE = {"name": "stage", "resources": GPU}
VISIBLE: dict[str, tuple[dict[str, Any], str | None]] = {
    "no accelerators": ({}, "void"),
    "0 accelerators": ({"resources": {"sample": {"limits": {"nvidia.com/gpu": "0"}}}}, "void"),
    "accelerators": ({"resources": {"sample": GPU}}, None),
    "accelerators in the template": ({"podTemplate": {"spec": {"containers": [STAGE]}}}, None),
    "a claim in the template": ({"podTemplate": {"spec": {"resourceClaims": [{"name": "gpu"}]}}}, None),
    "a value in the spec": ({"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}, "all"),
}


@pytest.mark.parametrize(("changes", "value"), VISIBLE.values(), ids=VISIBLE.keys())
def test_a_pod_without_accelerators_sees_none(changes: dict[str, Any], value: str | None) -> None:
    assert environment(pod_of(rendered("sample/qwen", **changes))).get("NVIDIA_VISIBLE_DEVICES") == value


def test_every_pod_has_a_user_name() -> None:
    assert environment(pod_of(rendered("prepare")))["USER"] == "wrpo"
    own: dict[str, Any] = {"env": [{"name": "USER", "value": "me"}]}
    assert environment(pod_of(rendered("prepare", **own)))["USER"] == "me"


GRACE: dict[str, tuple[str, Any, dict[str, Any], int]] = {
    "a stage that commits parts": ("sample/qwen", FACTS, {}, 60),
    "training a model of unknown size on a CPU": ("train", None, {}, 120),
    "training a model of unknown size on accelerators": ("train", None, {"training": {"gpusPerNode": 8}}, 900),
    "training 135 million parameters": ("train", FACTS.model_copy(update={"parameters": 135_000_000}), {}, 129),
    "training 8 billion parameters": ("train", FACTS, {"training": {"gpusPerNode": 8}}, 602),
    "SFT of 8 billion parameters": ("sft", FACTS, {}, 602),
    "training adapters": ("train", FACTS, {"training": {"lora": {}}}, 120),
    "as the template says": (
        "train", FACTS, {"podTemplate": {"spec": {"terminationGracePeriodSeconds": 7}}}, 7),
}  # fmt: skip


@pytest.mark.parametrize(("stage", "facts", "changes", "seconds"), GRACE.values(), ids=GRACE.keys())
def test_training_has_time_to_save_a_checkpoint_of_its_model(
    stage: str, facts: Any, changes: dict[str, Any], seconds: int
) -> None:
    assert pod_of(rendered(stage, facts=facts, **changes))["terminationGracePeriodSeconds"] == seconds
