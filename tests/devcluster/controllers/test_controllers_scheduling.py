"""Scheduler: fit of pods on nodes, and the messages if none fits."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from devcluster.memory_api import MemoryClient
from devcluster.rig import GPU_NODES, simulated, until
from hypothesis import given
from hypothesis import strategies as st

from wrpo_devcluster import quantity
from wrpo_devcluster.client import PODS, JsonObject, WatchEvent
from wrpo_devcluster.scheduler.fit import NodeView, Verdict, choose, requests_of, total
from wrpo_devcluster.scheduler.ledger import Ledger


def make_node(name: str, *, gpus: int = 8, labels: JsonObject | None = None, **spec: Any) -> JsonObject:
    allocatable = {"cpu": "8", "memory": "64Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": spec,
        "status": {"allocatable": allocatable},
    }


def make_pod(gpus: int = 0, cpu: str = "1", **spec: Any) -> JsonObject:
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    return {"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": limits}}], **spec}}


NODES = [NodeView(make_node("gpu-0")), NodeView(make_node("gpu-1"))]
BUSY = NodeView(make_node("gpu-0"), requests_of(make_pod(8)))
TAINT = {"key": "gpu", "value": "only", "effect": "NoSchedule"}
PREEMPTION = "no new claims to deallocate, preemption: 0/{n} nodes are available: {why}."
NOT_HELPFUL = "{n} Preemption is not helpful for scheduling"
NO_VICTIMS = "{n} No preemption victims found for incoming pod"


def refusal(nodes: int, text: str, why: str) -> Verdict:
    tail = PREEMPTION.format(n=nodes, why=why.format(n=nodes))
    return Verdict(None, f"0/{nodes} nodes are available: {text}. {tail}")


def in_zone(zone: str) -> JsonObject:
    terms = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


CASES: dict[str, tuple[JsonObject, list[NodeView], Verdict]] = {
    "the emptiest node": (make_pod(1), [BUSY, NODES[1]], Verdict("gpu-1")),
    "more than any node has": (
        make_pod(99),
        NODES,
        refusal(2, "2 Insufficient nvidia.com/gpu", NOT_HELPFUL),
    ),
    "more than is free": (make_pod(1), [BUSY], refusal(1, "1 Insufficient nvidia.com/gpu", NO_VICTIMS)),
    "a taint keeps it away": (
        make_pod(),
        [NodeView(make_node("a", taints=[TAINT]))],
        refusal(1, "1 node(s) had untolerated taint {gpu: only}", NOT_HELPFUL),
    ),
    "a toleration lets it in": (
        make_pod(tolerations=[{"key": "gpu", "operator": "Exists"}]),
        [NodeView(make_node("a", taints=[TAINT]))],
        Verdict("a"),
    ),
    "a node selector": (
        make_pod(nodeSelector={"zone": "b"}),
        [NodeView(make_node("a", labels={"zone": "a"})), NodeView(make_node("b", labels={"zone": "b"}))],
        Verdict("b"),
    ),
    "a required affinity no node meets": (
        make_pod(affinity=in_zone("c")),
        [NodeView(make_node("a", labels={"zone": "a"}))],
        refusal(1, "1 node(s) didn't match Pod's node affinity/selector", NOT_HELPFUL),
    ),
    "a cordoned node": (
        make_pod(),
        [NodeView(make_node("a", unschedulable=True))],
        refusal(1, "1 node(s) were unschedulable", NOT_HELPFUL),
    ),
    "no nodes at all": (make_pod(), [], Verdict(None, "no nodes available to schedule pods")),
}


@pytest.mark.parametrize(("pod", "nodes", "verdict"), CASES.values(), ids=CASES.keys())
def test_where_a_pod_goes(pod: JsonObject, nodes: list[NodeView], verdict: Verdict) -> None:
    assert choose(pod, nodes) == verdict


def test_an_init_container_counts_when_it_asks_for_more() -> None:
    init = [{"name": "i", "resources": {"requests": {"cpu": "3"}}}]
    assert requests_of(make_pod(cpu="500m", initContainers=init))["cpu"] == 3


def test_quantities() -> None:
    texts = {"500m": "0.5", "2Gi": "2147483648", "1k": "1000", "1e3": "1000", "3": "3"}
    assert {text: quantity.parse(text) for text in texts} == {text: Decimal(value) for text, value in texts.items()}


def node_of(pod: JsonObject) -> str:
    return str(pod["spec"].get("nodeName", ""))


@given(data=st.data())
def test_the_ledger_holds_what_the_bound_pods_ask_for(data: st.DataObject) -> None:
    """Pods are bound, reported in an older state, end, are deleted and are counted again, in any order."""
    ledger, pods = Ledger(), {}
    for number in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["create", "bind", "news", "end", "delete", "count"])):
            case "create":
                pods[number] = {**make_pod(number % 3), "metadata": {"uid": str(number)}, "status": {}}
                ledger.heard(WatchEvent("ADDED", PODS, pods[number]))
            case "bind" if waiting := [each for each in pods if not pods[each]["status"] and not node_of(pods[each])]:
                chosen = data.draw(st.sampled_from(waiting))
                before, node = pods[chosen], data.draw(st.sampled_from(["a", "b"]))
                pods[chosen] = {**before, "spec": {**before["spec"], "nodeName": node}}
                ledger.add(before, node)
                if data.draw(st.booleans()):
                    ledger.heard(WatchEvent("MODIFIED", PODS, before))
            case "news" if pods:
                ledger.heard(WatchEvent("MODIFIED", PODS, data.draw(st.sampled_from(list(pods.values())))))
            case "end" if pods:
                chosen = data.draw(st.sampled_from(list(pods)))
                phase = data.draw(st.sampled_from(["Succeeded", "Failed"]))
                pods[chosen] = {**pods[chosen], "status": {"phase": phase}}
                ledger.heard(WatchEvent("MODIFIED", PODS, pods[chosen]))
            case "delete" if pods:
                ledger.heard(WatchEvent("DELETED", PODS, pods.pop(data.draw(st.sampled_from(list(pods))))))
            case "count":
                ledger.count(pods.values())
    for node in ("a", "b"):
        held = [requests_of(pod) for pod in pods.values() if node_of(pod) == node and not pod["status"]]
        assert {name: amount for name, amount in ledger.used(node).items() if amount} == total(held)


def test_room_that_a_silent_watch_hides_is_found_before_a_pod_is_refused() -> None:
    """The watch misses the deletion of a pod. The next pod that needs its place is scheduled nevertheless."""

    def pod(name: str, gpus: int) -> JsonObject:
        return {**make_pod(gpus), "metadata": {"name": name}}

    async def place(client: MemoryClient, name: str) -> str:
        return node_of(await client.get(PODS, name, "ns"))

    async def scenario() -> str:
        async with simulated(lambda *_: []) as (client, _):
            for number, _ in enumerate(GPU_NODES):
                await client.create(PODS, pod(f"p{number}", 8), "ns")
                await until(partial(place, client, f"p{number}"))
            client.objects.pop((PODS, "ns", "p0"))
            await client.create(PODS, pod("late", 8), "ns")
            return str(await until(lambda: place(client, "late")))

    assert asyncio.run(scenario()) in {node.name for node in GPU_NODES}


def test_pods_of_one_second_get_room_in_the_order_of_their_creation() -> None:
    """They did in the order of their names, so that a stage on the critical path waited for others."""

    async def scenario() -> list[str]:
        async with simulated(lambda *_: []) as (client, _):

            async def placed(*names: str) -> list[str]:
                return [name for name in names if node_of(await client.get(PODS, name, "ns"))]

            async def make(*names: str) -> None:
                for name in names:
                    await client.create(PODS, {**make_pod(8), "metadata": {"name": name}}, "ns")

            async def are_placed() -> bool:
                return len(await placed("p0", "p1")) == len(GPU_NODES)

            await make("p0", "p1")
            await until(are_placed)
            await make("b", "c", "a")
            order: list[str] = []
            for ending in ("p0", "b", "c"):
                await client.patch(PODS, ending, "ns", {"status": {"phase": "Succeeded"}})

                async def more(before: tuple[str, ...] = tuple(order)) -> list[str]:
                    return [name for name in await placed("a", "b", "c") if name not in before]

                order += await until(more)
            return order

    assert asyncio.run(scenario()) == ["b", "c", "a"]
