"""Inventories of experiments: which source counts, what is read how often, and who is reconciled after a change."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.reconciler_world import SPEC as SIZED
from support.reconciler_world import World

from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.status import parse_status
from wrpo_operator.plan.model import Experiment
from wrpo_operator.runtime.accelerators import ASKING_S, SPREAD_S, STALE_S, Accelerators, AcceleratorSettings
from wrpo_operator.runtime.errors import KubeError
from wrpo_operator.runtime.resources import CLUSTER_QUEUES, COHORTS, FLAVORS, LOCAL_QUEUES, NODES, JsonObject
from wrpo_operator.runtime.snapshot import parse_time
from wrpo_operator.sizing.inventory import Inventory
from wrpo_operator.sizing.profiles import parse_profiles

PRODUCT = "NVIDIA-H100-80GB-HBM3"
PROFILES = parse_profiles([{"name": "spare", "memoryGiB": 48, "perNode": 4}])
SPEC: JsonObject = {name: value for name, value in SIZED.items() if name not in {"training", "resources"}}
FORBIDDEN = KubeError(403, "Forbidden", 'nodes is forbidden: User "wrpo" cannot list resource "nodes"')


def node(name: str, *, ready: str = "True", gpus: int = 8) -> JsonObject:
    labels = {"nvidia.com/gpu.product": PRODUCT, "nvidia.com/gpu.memory": "81559", "pool": name}
    return {
        "metadata": {"name": name, "labels": labels},
        "status": {"allocatable": {"nvidia.com/gpu": gpus}, "conditions": [{"type": "Ready", "status": ready}]},
    }


def experiment(name: str = "fusion", **spec: Any) -> Experiment:
    created = parse_time("2026-01-01T00:00:00Z")
    assert created is not None
    parsed = parse_spec({**SPEC, **spec})
    return Experiment(name, "default", f"uid-{name}", 1, False, created, parsed, parse_status(None))


class Rig:
    """Accelerators over a fake API server; each call runs to its end."""

    def __init__(self, kube: Any, clock: Any, **settings: Any) -> None:
        self.kube, self.clock = kube, clock
        self.woken: list[tuple[str, float]] = []
        chosen = AcceleratorSettings(**{"enabled": True, "read_nodes": True, "read_queues": True, **settings})
        self.accelerators = Accelerators(
            kube, chosen, monotonic=clock, wake=lambda key, delay_s: self.woken.append((key[1], delay_s))
        )

    def of(self, found: Experiment | None = None) -> Inventory | None:
        return asyncio.run(self.accelerators.of(found or experiment()))

    def refresh(self) -> list[str]:
        """Refresh; return who is reconciled because of it."""
        self.woken.clear()
        asyncio.run(self.accelerators.refresh())
        return [name for name, _ in self.woken]

    def put_queue(self, nominal: int = 16) -> None:
        quota = {"name": "h100", "resources": [{"name": "nvidia.com/gpu", "nominalQuota": nominal}]}
        self.kube.put(LOCAL_QUEUES, {"metadata": {"name": "team"}, "spec": {"clusterQueue": "cq"}})
        self.kube.put(CLUSTER_QUEUES, {"metadata": {"name": "cq"}, "spec": {"resourceGroups": [{"flavors": [quota]}]}})
        self.kube.put(FLAVORS, {"metadata": {"name": "h100"}, "spec": {"nodeLabels": {"pool": "a"}}})


Make = Callable[..., Rig]


@pytest.fixture
def rig(kube: Any, clock: Any) -> Make:
    return lambda **settings: Rig(kube, clock, **settings)


def groups(found: Inventory | None) -> list[tuple[str, int, int | None, int | None]]:
    assert found is not None
    return [(group.name, group.per_node, group.nodes, group.quota) for group in found.groups]


QUEUED: dict[str, Any] = {"scheduling": {"queueName": "team"}}


def test_nodes_describe_the_accelerators_of_an_experiment_without_a_queue(rig: Make) -> None:
    made = rig(profiles=PROFILES)
    made.kube.put(NODES, node("a"))
    made.kube.put(NODES, node("b"))
    assert groups(made.of()) == [(PRODUCT, 8, 2, None)]
    assert groups(made.of(experiment(scheduling={"nodeSelector": {"pool": "a"}}))) == [(PRODUCT, 8, 1, None)]


def test_a_queue_precedes_nodes(rig: Make) -> None:
    made = rig(profiles=PROFILES)
    made.kube.put(NODES, node("a"))
    made.kube.put(NODES, node("b"))
    made.put_queue()
    assert groups(made.of(experiment(**QUEUED))) == [(PRODUCT, 8, 1, 16)]
    assert groups(made.of()) == [(PRODUCT, 8, 2, None)]


def test_profiles_count_where_no_node_has_accelerators(rig: Make) -> None:
    made = rig(profiles=PROFILES)
    made.kube.put(NODES, {"metadata": {"name": "cpu"}, "status": {"allocatable": {"cpu": "8"}}})
    assert groups(made.of()) == [("spare", 4, None, None)]
    bare = rig()
    assert bare.of() == Inventory(source="the labels of 1 node")


def test_nothing_is_read_and_nothing_chosen_where_the_installation_describes_nothing(rig: Make) -> None:
    made = rig(read_nodes=False, read_queues=False)
    assert made.of(experiment(**QUEUED)) is None
    assert groups(rig(read_nodes=False, profiles=PROFILES).of()) == [("spare", 4, None, None)]
    assert rig(enabled=False, profiles=PROFILES).of() is None
    assert made.kube.calls == []


def test_devices_of_resource_claims_are_not_sized(rig: Make) -> None:
    made = rig()
    made.kube.put(NODES, node("a"))
    claims = [{"name": "gpu", "resourceClaimTemplateName": "one"}]
    assert made.of(experiment(podTemplate={"spec": {"resourceClaims": claims}})) is None


@pytest.mark.parametrize("profiles", [(), PROFILES])
def test_forbidden_nodes_are_logged_once_and_named_with_the_remedy(
    rig: Make, caplog: pytest.LogCaptureFixture, profiles: Any
) -> None:
    made = rig(profiles=profiles)
    made.kube.fail["list", "nodes"] = FORBIDDEN
    with caplog.at_level(logging.INFO):
        found = made.of()
        made.refresh()
        made.clock.at += STALE_S
        made.of()
    assert found is not None
    (fault,) = found.faults
    assert fault == (
        'Nodes cannot be read: nodes is forbidden: User "wrpo" cannot list resource "nodes". Allow the operator to '
        "list nodes (accelerators.readNodes of the chart's values), or describe the accelerators in "
        "accelerators.profiles."
    )
    assert [group.name for group in found.groups] == [profile.name for profile in profiles]
    assert [record.message for record in caplog.records] == [f"nodes cannot be read: {FORBIDDEN.message}"]


def test_a_server_that_does_not_answer_gives_no_inventory_but_the_last_one_counts(rig: Make) -> None:
    made = rig()
    made.kube.fail["list", "nodes"] = KubeError(0, "Unreachable", "no route")
    with pytest.raises(KubeError, match="no route"):
        made.of()
    made.kube.fail.clear()
    made.kube.put(NODES, node("a"))
    assert groups(made.of()) == [(PRODUCT, 8, 1, None)]
    made.kube.fail["list", "nodes"] = KubeError(503, "ServiceUnavailable", "busy")
    assert made.refresh() == []
    assert groups(made.of()) == [(PRODUCT, 8, 1, None)]


NO_QUEUE = "LocalQueue team does not exist in namespace default. Create it, or correct spec.scheduling.queueName."
NO_CLUSTER_QUEUE = "LocalQueue team points to ClusterQueue 'cq', which does not exist. Create it."
NO_RIGHT = (
    "Queue team cannot be read: not for you. Allow the operator to read Kueue's objects (accelerators.readQueues of "
    "the chart's values), or describe the accelerators in accelerators.profiles."
)


@pytest.mark.parametrize(
    ("lack", "fault"), [(LOCAL_QUEUES, NO_QUEUE), (CLUSTER_QUEUES, NO_CLUSTER_QUEUE), (None, NO_RIGHT)]
)
def test_a_queue_that_cannot_be_read_is_named_and_nodes_count(rig: Make, lack: Any, fault: str) -> None:
    made = rig()
    made.kube.put(NODES, node("a"))
    made.put_queue()
    made.kube.objects = {key: obj for key, obj in made.kube.objects.items() if key[0] != lack}
    if lack is None:
        made.kube.fail["list", "clusterqueues"] = KubeError(403, "Forbidden", "not for you")
    found = made.of(experiment(**QUEUED))
    assert found is not None
    assert (groups(found), found.faults) == ([(PRODUCT, 8, 1, None)], (fault,))


def test_cohorts_that_are_not_served_are_none(rig: Make) -> None:
    made = rig()
    made.put_queue()
    made.kube.put(NODES, node("a"))
    made.kube.fail["list", COHORTS.plural] = KubeError(404, "NotFound", "the server could not find the resource")
    assert groups(made.of(experiment(**QUEUED))) == [(PRODUCT, 8, 1, 16)]


def test_many_experiments_share_one_list(rig: Make) -> None:
    made = rig()
    made.kube.put(NODES, node("a"))
    for number in range(20):
        made.of(experiment(f"e{number}"))
        made.clock.at += 1
    assert made.kube.calls == [("list", "nodes", "")]


def test_concurrent_experiments_share_one_request(rig: Make) -> None:
    made = rig()
    made.kube.put(NODES, node("a"))

    async def ask() -> None:
        await asyncio.gather(*(made.accelerators.of(experiment(f"e{number}")) for number in range(5)))

    asyncio.run(ask())
    assert made.kube.calls == [("list", "nodes", "")]


def test_only_experiments_whose_accelerators_change_are_reconciled_and_not_all_at_once(rig: Make) -> None:
    made = rig()
    made.kube.put(NODES, node("a"))
    made.kube.put(NODES, node("b"))
    for number in range(4):
        made.of(experiment(f"any{number}"))
    made.of(experiment("on-a", scheduling={"nodeSelector": {"pool": "a"}}))
    assert made.refresh() == []

    made.kube.put(NODES, node("b", ready="Unknown"))
    assert made.refresh() == ["any0", "any1", "any2", "any3"]
    assert [delay_s for _, delay_s in made.woken] == [SPREAD_S * place / 4 for place in range(4)]
    assert made.refresh() == []
    assert groups(made.of(experiment("any0"))) == [(PRODUCT, 8, 1, None)]


def test_a_node_that_vanishes_leaves_the_inventory(rig: Make) -> None:
    made = rig()
    made.kube.put(NODES, node("a"))
    made.of()
    made.kube.put(NODES, node("a", ready="Unknown"))
    assert made.refresh() == ["fusion"]
    found = made.of()
    assert found is not None
    assert (found.groups, found.faults) == (
        (),
        ("Node a with nvidia.com/gpu is not Ready. `kubectl describe node` shows why.",),
    )
    made.kube.objects.clear()
    assert made.refresh() == ["fusion"]
    assert made.of() == Inventory(source="the labels of 0 nodes")


def test_a_changed_quota_reconciles_the_experiments_of_the_queue(rig: Make) -> None:
    made = rig()
    made.kube.put(NODES, node("a"))
    made.put_queue(16)
    made.of(experiment("queued", **QUEUED))
    made.of(experiment("free"))
    made.put_queue(8)
    assert made.refresh() == ["queued"]
    assert groups(made.of(experiment("queued", **QUEUED))) == [(PRODUCT, 8, 1, 8)]


def test_nothing_is_listed_when_no_experiment_asks(rig: Make) -> None:
    made = rig()
    made.refresh()
    made.of()
    made.of(experiment("gone"))
    made.accelerators.forget(("default", "gone"))
    made.clock.at += ASKING_S
    made.kube.calls.clear()
    made.refresh()
    assert made.kube.calls == []
    made.of()
    assert made.kube.calls == [("list", "nodes", "")]


def test_five_thousand_nodes_take_little_memory(rig: Make) -> None:
    made = rig()
    plain = {"status": {"images": [{"names": ["x" * 500]}], "conditions": [{"type": "Ready", "status": "True"}]}}
    for number in range(5000):
        body = node(f"n{number}") if number % 10 == 0 else {"metadata": {"name": f"n{number}"}, **plain}
        made.kube.put(NODES, body)
    tracemalloc.start()
    try:
        found = made.of()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert groups(found) == [(PRODUCT, 8, 500, None)]
    assert held < 4 * 1024 * 1024


def test_the_planner_sees_the_inventory(kube: Any, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from wrpo_operator.runtime import reconciler as under_test

    seen: list[Inventory | None] = []
    whole = under_test.plan

    def note(snapshot: Any, now: Any) -> Any:
        seen.append(snapshot.accelerators)
        return whole(snapshot, now)

    monkeypatch.setattr(under_test, "plan", note)
    world = World(kube, clock)
    offered = Inventory(source="test")

    async def offer(_: Experiment) -> Inventory:
        return offered

    world.reconciler._host = replace(world.reconciler._host, accelerators=offer)
    world.put_experiment()
    world.reconcile()
    assert seen == [offered]
