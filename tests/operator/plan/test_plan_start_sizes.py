"""With which accelerators a stage starts, and what it waits for until then: the decision of one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from support.builders import AUTOMATIC, FACTS, NOON, make_experiment, make_snapshot, merged, node_of

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.placement import Placement
from wrpo_operator.api.status import (
    Attempt,
    AttemptState,
    ExperimentStatus,
    StageFacts,
    StageState,
    StageStatus,
    to_time,
)
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import Experiment, PlannedAttempt
from wrpo_operator.plan.stage_views import build_views
from wrpo_operator.plan.starts import FACTS_PATIENCE, HeldBack, decide_starts
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory

STAGE = "sample/qwen"
H100 = AcceleratorGroup(name="H100", resource="nvidia.com/gpu", memory_mib=81559, per_node=8, nodes=4)
H200 = replace(H100, name="H200", memory_mib=143771)
CLUSTER = Inventory(groups=(H100,), source="the labels of 4 nodes")
OTHERS = Inventory(groups=(H200,), source="the labels of 4 nodes")
CPUS = Inventory(source="the labels of 2 nodes")
LARGE = FACTS.model_copy(update={"parameters": 72_700_000_000, "weight_bytes": 145_400_000_000})
KEPT = Placement(accelerator="H100", resource="nvidia.com/gpu", per_pod=3, arithmetic="as it was chosen before")
"""No choice of the operator: it is told apart from a new one."""


def found_facts(facts: ModelFacts) -> StageFacts:
    return StageFacts(**facts.model_dump())


def facts_of(experiment: Experiment, stage: str = STAGE) -> list[str]:
    """Return the stages that find the facts about the models of a stage."""
    return [str(need.facts) for need in node_of(experiment, stage).needs]


def ready(stage: str = STAGE, *, records: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any) -> Experiment:
    """Return an experiment whose stage has its inputs and the facts about its models, with records changed."""
    experiment = make_experiment(**merged({**AUTOMATIC, "evaluation": {"enabled": False}}, changes))
    nodes = {str(node.id): node for node in build_graph(experiment.spec)} if experiment.spec is not None else {}
    wanted, before = [stage], set[str]()
    while wanted:
        upstream = [str(name) for name in nodes[wanted.pop()].upstream]
        before.update(upstream)
        wanted += upstream
    done = {
        name: {"state": StageState.SUCCEEDED, "finished_at": to_time(NOON)}
        | ({"facts": found_facts(FACTS)} if name.startswith("inspect/") else {})
        for name in before
    }
    known = merged(done, records or {})
    stages = tuple(
        StageStatus(**{"name": name, "hash": node.hash, "state": StageState.WAITING} | known[name])
        for name, node in nodes.items()
        if name in known
    )
    return replace(experiment, status=ExperimentStatus(observed_generation=1, stages=stages))


def decision(
    experiment: Experiment,
    inventory: Inventory | None = CLUSTER,
    *,
    stage: str = STAGE,
    after_s: float = 0.0,
    **facts: Any,
) -> PlannedAttempt | HeldBack:
    """Return what is decided about a stage, some seconds after the stages before it have ended."""
    assert experiment.spec is not None
    now = NOON + timedelta(seconds=after_s)
    views = build_views(experiment, experiment.spec, build_graph(experiment.spec), (), now)
    snapshot = make_snapshot(experiment, accelerators=inventory, **facts)
    found = {
        str(item.node.id if isinstance(item, PlannedAttempt) else item.view.id): item
        for item in decide_starts(snapshot, experiment.spec, views, now)
    }
    return found[stage]


def start(experiment: Experiment, inventory: Inventory | None = CLUSTER, **facts: Any) -> PlannedAttempt:
    found = decision(experiment, inventory, **facts)
    assert isinstance(found, PlannedAttempt)
    return found


def held(experiment: Experiment, inventory: Inventory | None = CLUSTER, **facts: Any) -> HeldBack:
    found = decision(experiment, inventory, **facts)
    assert isinstance(found, HeldBack)
    return found


def placement(experiment: Experiment, inventory: Inventory | None = CLUSTER, **facts: Any) -> Placement:
    found = start(experiment, inventory, **facts).node.placement
    assert found is not None
    return found


def test_a_stage_is_sized_to_the_facts_about_its_model_and_to_the_cluster() -> None:
    small, large = ready(), ready(records={facts_of(ready())[0]: {"facts": found_facts(LARGE)}})
    assert (placement(small).accelerator, placement(small).per_pod, placement(small).step) == ("H100", 1, 0)
    assert placement(large).per_pod > 1
    assert placement(large, OTHERS).accelerator == "H200"
    assert start(small).node.facts == found_facts(FACTS)


def test_a_stage_starts_as_the_spec_says_where_nothing_is_chosen() -> None:
    """Without an inventory its pods still get what is known about the model."""
    unknown = start(ready(), None).node
    assert (unknown.placement, unknown.facts) == (None, found_facts(FACTS))
    without_facts = ready(records={facts_of(ready())[0]: {"facts": None}})
    assert start(without_facts, None).node.placement is None
    sized = ready(resources={"sample": {"limits": {"nvidia.com/gpu": 4}}})
    assert (start(sized).node.placement, start(sized).node.facts) == (None, None)


def ended(*seconds: int | None) -> list[Attempt]:
    times = [None if second is None else to_time(NOON + timedelta(seconds=second)) for second in seconds]
    return [
        Attempt(number=number, child=f"c{number}", state=AttemptState.SUCCEEDED, finished_at=time)
        for number, time in enumerate(times, start=1)
    ]


INSPECTED: dict[str, tuple[dict[str, Any], float]] = {
    "the inspection has ended": ({}, 0.0),
    "its last attempt ended later": ({"attempts": ended(-50, 20)}, 20.0),
    "an earlier attempt ended last, stopped too late": ({"attempts": ended(30, 10)}, 30.0),
    "one of its attempts has no end": ({"attempts": ended(None, 15)}, 15.0),
    "only its attempts have an end": ({"attempts": ended(-5), "finished_at": None}, -5.0),
}


@pytest.mark.parametrize(("record", "end_s"), INSPECTED.values(), ids=INSPECTED.keys())
def test_facts_are_awaited_for_a_minute_after_the_last_end_of_the_inspection(
    record: dict[str, Any], end_s: float
) -> None:
    (inspection,) = facts_of(ready())
    experiment = ready(records={inspection: {"facts": None} | record})
    due_s = end_s + 60.0
    found = held(experiment, after_s=due_s - 1.0)
    assert (found.reason, found.object) == ("ModelFactsAwaited", "")
    assert found.message == f"Waiting for the size of the model that {inspection} reports."
    assert found.until == NOON + timedelta(seconds=due_s)
    assert start(experiment, after_s=due_s).node.placement is None


def test_facts_of_an_inspection_whose_end_nobody_recorded_are_awaited_from_now() -> None:
    (inspection,) = facts_of(ready())
    experiment = ready(records={inspection: {"facts": None, "finished_at": None}})
    found = held(experiment, after_s=7.0)
    assert found.until == NOON + timedelta(seconds=7.0) + FACTS_PATIENCE


JOINT = "joint/eva--held-out"
EVALUATED: dict[str, Any] = {
    "evaluation": {"enabled": True, "systems": [{"name": "eva", "joint": {"method": "EVA", "members": ["*", "sft"]}}]},
    "scheduling": {"queueName": "gpus"},
}
"""With a queue no stage waits for the accelerators of others."""


def test_a_stage_of_several_models_waits_for_the_facts_about_each_of_them() -> None:
    whole = ready(JOINT, **EVALUATED)
    first, second, third = facts_of(whole, JOINT)
    assert placement(whole, stage=JOINT).per_pod == 1
    one = ready(JOINT, records={third: {"facts": None}}, **EVALUATED)
    assert held(one, stage=JOINT).message == f"Waiting for the size of the model that {third} reports."
    late = to_time(NOON + timedelta(seconds=40))
    two = ready(JOINT, records={first: {"facts": None}, second: {"facts": None, "finished_at": late}}, **EVALUATED)
    assert held(two, stage=JOINT, after_s=99.0).until == NOON + timedelta(seconds=100)
    assert start(two, stage=JOINT, after_s=100.0).node.placement is None


def attempt(number: int = 1, state: AttemptState = AttemptState.PENDING, reason: str | None = None) -> Attempt:
    failure = "Application" if state is AttemptState.FAILED else None
    return Attempt(number=number, child=f"c{number}", state=state, reason=reason, failure=failure)


def sampling(*attempts: Attempt, chosen: Placement = KEPT, **counters: int) -> dict[str, Any]:
    return {STAGE: {"attempts": attempts, "placement": chosen} | counters}


ON_CPUS = Placement(arithmetic="as it was chosen before")
CHOSEN_BEFORE: dict[str, tuple[dict[str, Any], Inventory, bool]] = {
    "its child is gone, and it has not ended": (sampling(attempt()), CLUSTER, True),
    "so it is of the second attempt": (
        sampling(attempt(1, AttemptState.DISRUPTED), attempt(2)), CLUSTER, True),
    "the cluster has others as well": (
        sampling(attempt()), Inventory(groups=(H200, H100), source="more nodes"), True),
    "the cluster has only others": (sampling(attempt()), OTHERS, False),
    "it needs none": (sampling(attempt(), chosen=ON_CPUS), OTHERS, True),
    "it ended, and the next one is chosen for": (sampling(attempt(1, AttemptState.DISRUPTED)), CLUSTER, False),
    "nothing was chosen": ({STAGE: {"attempts": (attempt(),)}}, CLUSTER, False),
}  # fmt: skip


@pytest.mark.parametrize(("record", "inventory", "is_kept"), CHOSEN_BEFORE.values(), ids=CHOSEN_BEFORE.keys())
def test_an_attempt_made_again_keeps_its_accelerators_while_the_cluster_has_them(
    record: dict[str, Any], inventory: Inventory, is_kept: bool
) -> None:
    experiment = ready(records=record)
    found = placement(experiment, inventory)
    assert (found.arithmetic == KEPT.arithmetic) is is_kept
    number = record[STAGE]["attempts"][-1].number
    ended_before = record[STAGE]["attempts"][-1].state is AttemptState.DISRUPTED
    assert start(experiment, inventory).attempt == number + ended_before


FULL = attempt(1, AttemptState.FAILED, "OutOfMemory")
STEPS: dict[str, tuple[tuple[Attempt, ...], dict[str, int], int]] = {
    "it ran out of memory": ((FULL,), {}, 1),
    "it ran out of memory before, and was then preempted": (
        (FULL, attempt(2, AttemptState.DISRUPTED)), {}, 0),
    "it was preempted": ((attempt(1, AttemptState.DISRUPTED),), {}, 0),
    "an edit has forgiven that it ran out of memory": ((FULL,), {"forgiven_attempts": 1}, 0),
    "it ran out of memory after the forgiven ones": (
        (attempt(1, AttemptState.DISRUPTED), FULL.model_copy(update={"number": 2})), {"forgiven_attempts": 1}, 1),
    "nothing of it is recorded but the accelerators": ((), {}, 0),
}  # fmt: skip


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize(("attempts", "counters", "further"), STEPS.values(), ids=STEPS.keys())
def test_an_attempt_after_one_out_of_memory_gets_the_next_step_of_the_ladder(
    attempts: tuple[Attempt, ...], counters: dict[str, int], further: int, before: int
) -> None:
    chosen = KEPT.model_copy(update={"step": before})
    experiment = ready(records=sampling(*attempts, chosen=chosen, **counters))
    assert placement(experiment).step == (before + further if attempts else 0)


def test_a_model_that_fits_nowhere_holds_its_stage() -> None:
    tight = Inventory(groups=(replace(H100, name="L4", memory_mib=4096, per_node=1, nodes=1),), source="one node")
    found = held(ready(), tight)
    assert (found.reason, found.object, found.until) == ("ModelDoesNotFit", f"Stage/{STAGE}", None)
    assert found.message.startswith(f"Stage {STAGE} is not started: ")
    assert "L4" in found.message


SIZED: dict[str, Any] = {"resources": {"sample": {"limits": {"nvidia.com/gpu": 4}}}}
LIMITS: dict[str, tuple[int, dict[str, tuple[str, str, str]]]] = {
    "room for both": (8, {}),
    "room for one": (
        7, {"sample/yi": ("AcceleratorsInUse", "", "Waiting for 4 accelerators that other stages")}),
    "room for none, ever": (
        3, {name: ("ExceedsMaxGpus", f"Stage/{name}",
                   f"Stage {name} requests 4 accelerators, and scheduling.maxGpus allows 3 at the same time.")
            for name in ("sample/qwen", "sample/yi")}),
}  # fmt: skip


@pytest.mark.parametrize(("most", "waiting"), LIMITS.values(), ids=LIMITS.keys())
def test_the_limit_of_accelerators_holds_what_it_has_no_room_for(
    most: int, waiting: dict[str, tuple[str, str, str]]
) -> None:
    experiment = ready(**SIZED, scheduling={"maxGpus": most})
    for stage in ("sample/qwen", "sample/yi"):
        found = decision(experiment, stage=stage)
        assert isinstance(found, HeldBack) is (stage in waiting)
        if isinstance(found, HeldBack):
            reason, blocking, said = waiting[stage]
            assert (found.reason, found.object, found.until) == (reason, blocking, None)
            assert found.message.startswith(said)
