"""Deployments, garbage collection, endpoints: the pure parts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import timestamp
from wrpo_devcluster.controllers.garbage import Keep, OwnerState, Remove, decide_dependent
from wrpo_devcluster.controllers.network import endpoint_subsets, pick_address, proxy_address
from wrpo_devcluster.controllers.sweep import expired, orphans
from wrpo_devcluster.controllers.volumes import bound_status
from wrpo_devcluster.controllers.workloads import Rollout, absolute, rollout_sizes, surplus_pods
from wrpo_devcluster.kubelet.proxy import ready_targets

ROLLOUTS: dict[str, tuple[Rollout, tuple[int, int]]] = {
    "first pods": (Rollout(wanted=3, new=0, new_ready=0, old=0), (3, 0)),
    "one more before one less": (Rollout(wanted=1, new=0, new_ready=0, old=1), (1, 1)),
    "the old one goes when the new one is ready": (Rollout(wanted=1, new=1, new_ready=1, old=1), (1, 0)),
    "half-way": (Rollout(wanted=3, new=1, new_ready=1, old=3), (1, 2)),
    "done": (Rollout(wanted=3, new=3, new_ready=3, old=0), (3, 0)),
}


@pytest.mark.parametrize(("state", "sizes"), ROLLOUTS.values(), ids=ROLLOUTS.keys())
def test_a_rolling_update_never_drops_below_what_is_wanted(state: Rollout, sizes: tuple[int, int]) -> None:
    assert rollout_sizes(state, max_surge=1, max_unavailable=0) == sizes


def test_percentages_of_replicas() -> None:
    assert absolute("25%", 3, round_up=True) == 1
    assert absolute("25%", 3, round_up=False) == 0
    assert absolute(None, 8, round_up=True) == 2
    assert absolute(2, 8, round_up=True) == 2


OWNERS: dict[str, tuple[dict[str, OwnerState], bool, Keep | Remove]] = {
    "no owners": ({}, False, Keep()),
    "a living owner": ({"a": OwnerState.SOLID}, False, Keep()),
    "one of two is gone": ({"a": OwnerState.SOLID, "b": OwnerState.ABSENT}, False, Keep(frozenset({"b"}))),
    "all are gone": ({"a": OwnerState.ABSENT}, False, Remove(foreground=False)),
    "the owner waits": ({"a": OwnerState.WAITING}, False, Remove(foreground=False)),
    "the owner waits, and others wait for this": ({"a": OwnerState.WAITING}, True, Remove(foreground=True)),
}


@pytest.mark.parametrize(("owners", "has_dependents", "expected"), OWNERS.values(), ids=OWNERS.keys())
def test_what_becomes_of_owned_objects(
    owners: dict[str, OwnerState], has_dependents: bool, expected: Keep | Remove
) -> None:
    assert decide_dependent(owners, has_dependents=has_dependents) == expected


def make_pod(name: str, *, ready: bool, **more: Any) -> JsonObject:
    return {
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "w"}, "creationTimestamp": "t"},
        "spec": {
            "nodeName": "n",
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": f"127.64.0.{len(name)}",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            **more,
        },
    }


def test_endpoints_hold_ready_and_unready_addresses_by_port_name() -> None:
    service = {"spec": {"selector": {"app": "w"}, "ports": [{"name": "web", "port": 80, "targetPort": "http"}]}}
    subsets = endpoint_subsets(service, [make_pod("a", ready=True), make_pod("bb", ready=False)])
    assert subsets[0]["ports"] == [{"name": "web", "port": 8080, "protocol": "TCP"}]
    assert [a["ip"] for a in subsets[0]["addresses"]] == ["127.64.0.1"]
    assert [a["ip"] for a in subsets[0]["notReadyAddresses"]] == ["127.64.0.2"]
    assert ready_targets({"subsets": subsets}, "web") == [("127.64.0.1", 8080)]


def test_finished_pods_are_no_endpoints() -> None:
    service = {"spec": {"selector": {"app": "w"}, "ports": []}}
    assert endpoint_subsets(service, [make_pod("a", ready=False, phase="Succeeded")]) == []


def test_unready_pods_go_first_when_there_are_too_many() -> None:
    names = [p["metadata"]["name"] for p in surplus_pods([make_pod("a", ready=True), make_pod("b", ready=False)], 1)]
    assert names == ["b"]


def test_addresses_are_stable_and_unique() -> None:
    first = pick_address("127.64", "uid-1", [])
    assert first == pick_address("127.64", "uid-1", [])
    assert pick_address("127.64", "uid-1", [first]) != first
    assert first.startswith("127.64.")


def test_the_proxy_listens_on_loopback_for_a_cluster_address() -> None:
    assert proxy_address({"spec": {"clusterIP": "10.96.3.4"}}) == "127.96.3.4"
    assert proxy_address({"spec": {"clusterIP": "None"}}) is None


def test_a_claim_is_bound_with_what_it_asked_for() -> None:
    claim = {"spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}}}
    assert bound_status(claim) == {
        "phase": "Bound",
        "accessModes": ["ReadWriteMany"],
        "capacity": {"storage": "5Gi"},
    }


def test_only_pods_of_vanished_nodes_are_orphans() -> None:
    pods: list[JsonObject] = [{"spec": {"nodeName": "n"}}, {"spec": {"nodeName": "gone"}}, {"spec": {}}]
    here, there, waiting = pods
    assert orphans([here, there, waiting], {"n"}) == [there]


def test_events_live_for_an_hour_after_they_last_happened() -> None:
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    old = {"metadata": {}, "lastTimestamp": timestamp(now - timedelta(minutes=61))}
    young = {"metadata": {}, "lastTimestamp": timestamp(now - timedelta(minutes=59))}
    assert expired([old, young], now) == [old]
