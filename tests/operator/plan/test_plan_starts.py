"""What holds a stage back whose inputs are there."""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import NOON, make_child, make_experiment, make_pod, make_snapshot, node_of

from wrpo_operator.api.conditions import Reason
from wrpo_operator.plan.model import ChildState, Plan, Refusal
from wrpo_operator.plan.planner import plan
from wrpo_operator.plan.starts import key_of, planned_attempt


def look(*, pods: tuple[Any, ...] = (), foreign: Any = None) -> Plan:
    experiment = make_experiment()
    assert experiment.spec is not None
    key = key_of(experiment.spec, node_of(experiment, "prepare"))
    return plan(make_snapshot(experiment, pods={key: pods}, foreign=() if foreign is None else (foreign,)), NOON)


LINGERING: dict[str, tuple[Any, bool]] = {
    "it runs on a node": (make_pod("old", node="n"), True),
    "it is being created on a node": (make_pod("old", phase="Pending", node="n"), True),
    "its node does not answer": (make_pod("old", phase="Unknown", node="n"), True),
    "it has no node and cannot write": (make_pod("old", phase="Pending"), False),
    "it has ended": (make_pod("old", exit_code=1, node="n"), False),
}


@pytest.mark.parametrize(("pod", "is_held"), LINGERING.values(), ids=LINGERING.keys())
def test_a_pod_of_an_earlier_attempt_holds_the_next_while_it_may_write(pod: Any, is_held: bool) -> None:
    answer = look(pods=(pod,))
    assert answer.status is not None
    assert [start.attempt for start in answer.apply] == ([] if is_held else [1])
    assert [(b.object, b.reason) for b in answer.status.blockers] == (
        [("Pod/old", "PreviousAttemptRunning")] if is_held else []
    )


STRANGER = make_experiment(name="other", uid="other")
MAKERS: dict[str, tuple[Any, bool]] = {
    "it waits for its pods": ({"state": ChildState.PENDING}, True),
    "it runs": ({"state": ChildState.RUNNING}, True),
    "it is being deleted": ({"state": ChildState.DELETING}, True),
    "it has succeeded, which its experiment soon records": ({"state": ChildState.SUCCEEDED}, True),
    "it makes another artifact": ({"state": ChildState.RUNNING, "artifact_key": "another"}, False),
    "it is suspended and may never run": ({"state": ChildState.SUSPENDED}, False),
    "it has failed": ({"state": ChildState.FAILED}, False),
}


@pytest.mark.parametrize(("facts", "is_held"), MAKERS.values(), ids=MAKERS.keys())
def test_another_experiment_s_child_that_makes_the_same_artifact_is_waited_for(facts: Any, is_held: bool) -> None:
    answer = look(foreign=make_child(STRANGER, "prepare", **facts))
    assert answer.status is not None
    assert len(answer.apply) == (0 if is_held else 1)
    assert [b.reason for b in answer.status.blockers] == (["ArtifactBeingMade"] if is_held else [])


def held(stage: str, *, done: bool = False, **changes: Any) -> list[tuple[str, str]]:
    """Return what holds the stage back, with everything before SFT done if asked for."""
    facts = {key: changes.pop(key) for key in ("missing_objects", "training_backends") if key in changes}
    experiment = make_experiment(evaluation={"enabled": False}, **changes)
    before = ("prepare", "sample/qwen", "sample/yi", "score/qwen", "score/yi", "curate-sft") if done else ()
    children = [make_child(experiment, name, ChildState.SUCCEEDED) for name in before]
    answer = plan(make_snapshot(experiment, children, **facts), NOON)
    assert answer.status is not None
    assert [str(start.node.id) for start in answer.apply] == ([] if answer.status.blockers else [stage])
    return [(blocker.object, blocker.reason) for blocker in answer.status.blockers]


def test_a_claim_that_does_not_exist_holds_every_stage() -> None:
    claim = ("PersistentVolumeClaim", "wrpo")
    assert held("prepare", missing_objects=(claim,)) == [("PersistentVolumeClaim/wrpo", "MissingObject")]
    assert held("prepare") == []


def test_a_training_backend_that_is_not_installed_holds_training_only() -> None:
    none: frozenset[str] = frozenset()
    assert held("prepare", training_backends=none) == []
    assert held("sft", done=True, training_backends=none) == [("CustomResource/PyTorchJob", "TrainingBackendMissing")]
    assert held("sft", done=True) == []


GANGS: dict[str, tuple[int, dict[str, Any], bool]] = {
    "one node": (1, {}, False),
    "two nodes that nobody keeps together": (2, {}, True),
    "two nodes, taken as they come": (2, {"gang": "BestEffort"}, False),
    "two nodes in a queue": (2, {"queueName": "gpus"}, False),
    "two nodes in a pod group": (2, {"podGroup": "Volcano"}, False),
}


@pytest.mark.parametrize(("nodes", "scheduling", "is_held"), GANGS.values(), ids=GANGS.keys())
def test_a_gang_of_which_a_part_might_start_alone_is_held(
    nodes: int, scheduling: dict[str, Any], is_held: bool
) -> None:
    blockers = held("sft", done=True, training={"nodes": nodes}, scheduling=scheduling)
    assert [reason for _, reason in blockers] == (["GangSchedulingMissing"] if is_held else [])


@pytest.mark.parametrize("is_final", [True, False])
def test_a_request_that_the_api_server_refuses_holds_its_stage_with_its_words(is_final: bool) -> None:
    """Only an edit of the spec can resolve a final refusal: the experiment is invalid until then."""
    refusal = Refusal("Job/x", Reason.ADMISSION_DENIED, "The webhook wants a team label.", is_final=is_final)
    answer = plan(make_snapshot(make_experiment(), refused={"prepare": refusal}), NOON)
    assert answer.status is not None
    assert answer.apply == ()
    assert [(b.object, b.reason, b.message) for b in answer.status.blockers] == [
        ("Job/x", "AdmissionDenied", "The webhook wants a team label.")
    ]
    assert (answer.status.phase == "Invalid") is is_final
    elsewhere = plan(make_snapshot(make_experiment(), refused={"train": refusal}), NOON)
    assert len(elsewhere.apply) == 1


@pytest.mark.parametrize(("stage", "longest"), [("prepare", 50), ("sft", 46)])
def test_a_child_of_an_experiment_with_a_long_name_has_the_longest_name_of_its_kind(stage: str, longest: int) -> None:
    """A TrainJob's controllers append up to 17 characters to it, and 63 are allowed."""
    experiment = make_experiment(name="n" * 60, training={"backend": "TrainJob"})
    assert experiment.spec is not None
    node = node_of(experiment, stage)
    hashes = dict.fromkeys(node.upstream, "0" * 16)
    name = planned_attempt(make_snapshot(experiment), experiment.spec, node, hashes, 1).child_name
    assert len(name) == longest
