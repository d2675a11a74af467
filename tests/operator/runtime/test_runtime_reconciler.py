"""Carrying out plans: what is written, in which order, and what an error leaves behind."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from support.reconciler_world import SPEC, World

from wrpo_operator.runtime import snapshot
from wrpo_operator.runtime.errors import Details, KubeError
from wrpo_operator.runtime.queue import RetryAfterError
from wrpo_operator.runtime.resources import CLAIMS, EVENTS, EXPERIMENTS, JsonObject
from wrpo_operator.runtime.writes import merge_patch_of


@pytest.fixture
def world(kube: Any, clock: Any) -> World:
    return World(kube, clock)


def test_a_new_experiment_gets_account_config_child_one_status_and_events_in_this_order(world: World) -> None:
    world.put_experiment()
    world.reconcile()
    writes = [(verb, what) for verb, what, _ in world.kube.writes()]
    expected = [
        ("apply", "serviceaccounts"),
        ("apply", "configmaps"),
        ("apply", "jobs"),
        ("patch/status", "wrpoexperiments"),
    ]
    assert writes[:4] == expected
    assert set(writes[4:]) == {("create", "events")}
    assert world.job("prepare")["metadata"]["labels"]["wrpo.ai/experiment"] == "fusion"
    assert world.status()["phase"] == "Pending"


def test_a_second_look_writes_nothing_even_before_the_watch_has_delivered(world: World) -> None:
    world.put_experiment()
    world.reconcile()
    world.reconcile()
    assert world.kube.writes() == []


def test_of_two_experiments_that_plan_the_same_artifact_at_once_only_one_starts_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put_experiment()
    body = {"metadata": {"name": "twin", "generation": 1, "creationTimestamp": "2026-01-01T11:59:00Z"}, "spec": SPEC}
    world.store.upsert(EXPERIMENTS, world.kube.put(EXPERIMENTS, body))
    apply = world.kube.apply

    async def slow_apply(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)  # what a request over the network does: another reconcile runs meanwhile
        return await apply(*args, **kwargs)

    monkeypatch.setattr(world.kube, "apply", slow_apply)

    async def both() -> list[float | None]:
        keys = (("default", "fusion"), ("default", "twin"))
        return list(await asyncio.gather(*(world.reconciler.reconcile(key) for key in keys)))

    delays = asyncio.run(both())
    assert world.job("prepare")["metadata"]["labels"]["wrpo.ai/experiment"] == "fusion"
    assert delays[1] == 0.2
    asyncio.run(world.reconciler.reconcile(("default", "twin")))
    (blocker,) = world.kube.objects[EXPERIMENTS, "default", "twin"]["status"]["blockers"]
    assert blocker["reason"] == "ArtifactBeingMade"


def test_children_are_created_in_the_order_of_the_plan_although_requests_take_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods of equal priority get room in the order in which they were created."""
    apply, left = world.kube.apply, {"jobs": 4, "configmaps": 4}

    async def faster_each_time(resource: Any, manifest: Any) -> Any:
        left[resource.plural] = left.get(resource.plural, 0) - 1
        for _ in range(left[resource.plural]):
            await asyncio.sleep(0)
        return await apply(resource, manifest)

    sources = [{"name": name, "model": f"org/{name}"} for name in ("c", "a", "b")]
    world.put_experiment(sources=sources, evaluation={"enabled": False})
    world.reconcile()
    world.finish("prepare")
    monkeypatch.setattr(world.kube, "apply", faster_each_time)
    world.reconcile()
    created = [name for verb, what, name in world.kube.writes() if (verb, what) == ("apply", "jobs")]
    assert [name.split("-")[2] for name in created] == ["c", "a", "b"]


def test_a_finished_stage_starts_the_next(world: World) -> None:
    world.put_experiment()
    world.reconcile()
    world.finish("prepare")
    world.reconcile()
    assert ("apply", "jobs") in [(verb, what) for verb, what, _ in world.kube.writes()]
    assert world.job("sample-a")["spec"]["completionMode"] == "Indexed"


def test_suspending_and_deleting_reach_the_children(world: World) -> None:
    obj = world.put_experiment()
    world.reconcile()
    suspended = {**world.kube.objects[EXPERIMENTS, "default", "fusion"], "spec": {**SPEC, "suspend": True}}
    suspended["metadata"] = {**suspended["metadata"], "generation": 2}
    world.store.upsert(EXPERIMENTS, world.kube.put(EXPERIMENTS, suspended))
    world.reconcile()
    assert world.job("prepare")["spec"]["suspend"] is True
    assert obj["metadata"]["name"] == "fusion"


def test_one_who_does_not_lead_writes_nothing(world: World) -> None:
    world.put_experiment()
    world.leading = False
    assert world.reconcile() is None
    assert world.kube.calls == []


def test_losing_the_lease_half_way_stops_the_rest(world: World) -> None:
    world.put_experiment()
    apply = world.kube.apply

    async def lose_after_the_first(resource: Any, body: JsonObject) -> JsonObject:
        world.leading = False
        answer: JsonObject = await apply(resource, body)
        return answer

    world.kube.apply = lose_after_the_first
    world.reconcile()
    assert [(verb, what) for verb, what, _ in world.kube.writes()] == [("apply", "serviceaccounts")]


TEMPORARY = {
    "unreachable": KubeError(0, "Unreachable", "gone"),
    "too many requests": KubeError(429, "TooManyRequests", "later", details=Details(retry_after_s=1)),
    "server error": KubeError(500, "InternalError", "oops"),
}


@pytest.mark.parametrize("error", TEMPORARY.values(), ids=TEMPORARY.keys())
def test_a_passing_error_is_retried_without_bothering_the_user(world: World, error: KubeError) -> None:
    world.put_experiment()
    world.kube.fail["patch/status", "wrpoexperiments"] = error
    with pytest.raises(RetryAfterError):
        world.reconcile()
    assert [kind for (kind, _, _) in world.kube.objects if kind == EVENTS] == []
    world.kube.fail.clear()
    world.reconcile()
    assert world.status()["phase"] == "Pending"


def test_a_status_that_somebody_wrote_meanwhile_is_not_overwritten_and_counts_at_the_next_look(world: World) -> None:
    world.put_experiment()
    world.kube.fail["patch/status", "wrpoexperiments"] = KubeError(409, "Conflict", "modified")
    world.kube.put(
        EXPERIMENTS, {**world.kube.objects[EXPERIMENTS, "default", "fusion"], "status": {"phase": "Running"}}
    )
    assert world.reconcile() == 0.2
    known = world.store.get(EXPERIMENTS, "default", "fusion")
    assert known is not None
    assert known["status"] == {"phase": "Running"}
    world.kube.fail.clear()
    world.reconcile()
    assert world.status()["phase"] == "Pending"


def test_a_child_is_deleted_only_once_the_status_says_why(world: World) -> None:
    world.put_experiment(scheduling={"queueName": "gpus"})
    world.reconcile()
    spec = {**SPEC, "suspend": True, "scheduling": {"queueName": "gpus"}}
    suspended = {**world.kube.objects[EXPERIMENTS, "default", "fusion"], "spec": spec}
    suspended["metadata"] = {**suspended["metadata"], "generation": 2}
    world.store.upsert(EXPERIMENTS, world.kube.put(EXPERIMENTS, suspended))
    world.reconcile()
    writes = [verb for verb, what, _ in world.kube.writes() if what != "events"]
    assert writes == ["patch/status", "delete"]


def test_an_experiment_that_is_gone_is_forgotten(world: World) -> None:
    assert world.reconcile() is None
    assert world.forgotten == [("default", "fusion")]
    assert world.kube.calls == []


def test_a_missing_claim_is_looked_for_again_and_found(world: World) -> None:
    world.put_experiment(storage={"volume": {"claimName": "late"}})
    world.reconcile()
    assert [blocker["reason"] for blocker in world.status()["blockers"]] == ["MissingObject"]
    world.kube.put(CLAIMS, {"metadata": {"name": "late"}, "status": {"phase": "Bound"}})
    world.now += timedelta(seconds=20)
    world.reconcile()
    assert "late" not in str(world.status().get("blockers", []))
    assert world.job("prepare")


def test_a_spec_that_does_not_parse_is_answered_in_the_status(world: World) -> None:
    world.put_experiment(sources=[])
    world.reconcile()
    assert world.status()["phase"] == "Invalid"
    assert world.kube.writes()[0][0] == "patch/status"


PATCHES = {
    "equal": ({"a": 1}, {"a": 1}, {}),
    "a new key": ({}, {"a": 1}, {"a": 1}),
    "a key that must go": ({"a": 1, "b": 2}, {"b": 2}, {"a": None}),
    "inside an object": ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"c": None, "b": 3}}),
    "a list is replaced as a whole": ({"a": [1, 2]}, {"a": [1]}, {"a": [1]}),
    "an object instead of a list": ({"a": [1]}, {"a": {"b": 1}}, {"a": {"b": 1}}),
}


@pytest.mark.parametrize(("old", "new", "expected"), PATCHES.values(), ids=PATCHES.keys())
def test_the_smallest_merge_patch(old: JsonObject, new: JsonObject, expected: JsonObject) -> None:
    assert merge_patch_of(old, new) == expected


def test_stages_can_be_replaced_by_stand_ins() -> None:
    from wrpo_operator.runtime.settings import SettingsError, parse_stage_commands

    (found,) = parse_stage_commands('{"sft": {"command": ["sleep", "1"]}}').items()
    assert (found[0], found[1].command, found[1].image) == ("sft", ("sleep", "1"), None)
    with pytest.raises(SettingsError, match=r"names the stage 'stf'\. Stages are prepare, fetch, inspect, sample"):
        parse_stage_commands('{"stf": {"command": ["sleep"]}}')
    with pytest.raises(SettingsError, match="needs `command`, a non-empty list of strings, for sft; got"):
        parse_stage_commands('{"sft": {"command": "sleep"}}')


def test_the_next_child_is_made_at_once_and_its_status_waits_for_more_of_its_kind(kube: Any, clock: Any) -> None:
    world = World(kube, clock, moment_s=2.0)
    world.put_experiment(sources=[{"name": "a", "model": "org/a"}, {"name": "b", "model": "org/b"}])
    world.reconcile()
    assert ("patch/status", "wrpoexperiments") in [(verb, what) for verb, what, _ in kube.writes()]
    world.finish("prepare")
    world.reconcile()
    assert world.status()["phase"] == "Running"
    world.finish("sample-a")
    assert world.reconcile() == 2.0
    assert world.job("score-a")
    assert {verb for verb, _, _ in kube.writes()} == {"apply"}
    clock.at += 1.5
    world.finish("sample-b")
    assert world.reconcile() == 0.5
    assert {(verb, what) for verb, what, _ in kube.writes()} == {("apply", "configmaps"), ("apply", "jobs")}
    clock.at += 0.5
    world.reconcile()
    assert [verb for verb, _, _ in kube.writes()] == ["patch/status"] + ["create"] * 4
    stages = {stage["name"]: stage for stage in world.status()["stages"]}
    assert [stages[f"sample/{name}"]["state"] for name in "ab"] == ["Succeeded", "Succeeded"]
    assert all(stages[f"score/{name}"]["attempts"][0]["settings"] for name in "ab")
    world.reconcile()
    assert kube.writes() == []


@pytest.mark.parametrize(("suspend", "reads"), [(False, 1), (True, 2)])
def test_what_a_spec_says_is_kept_only_while_something_of_it_may_start(
    world: World, monkeypatch: pytest.MonkeyPatch, suspend: bool, reads: int
) -> None:
    read: list[object] = []
    parse = snapshot.parse_spec

    def count(*arguments: Any) -> Any:
        read.append(arguments)
        return parse(*arguments)

    monkeypatch.setattr(snapshot, "parse_spec", count)
    world.put_experiment(suspend=suspend)
    world.reconcile()
    world.reconcile()
    assert len(read) == reads


def test_each_write_of_the_status_is_reported_with_what_it_replaces(kube: Any, clock: Any) -> None:
    world = World(kube, clock)
    world.put_experiment()
    world.kube.fail["patch/status", "wrpoexperiments"] = KubeError(409, "Conflict", "modified")
    world.reconcile()
    assert world.statuses == [({}, None)]
    world.kube.fail.clear()
    world.reconcile()
    ((_, _), (before, after)) = world.statuses
    assert before == {}
    assert after is not None
    assert after["phase"] == "Pending"
    world.reconcile()
    assert len(world.statuses) == 2
