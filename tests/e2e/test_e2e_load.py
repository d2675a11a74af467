"""What the operator asks of a cluster whose parts take as long as real ones, and of one that it changes its mode on."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from e2e_support import EXTERNAL, claim, experiment, simulate
from rbac_world import OPEN_CRDS, SYSTEM, TEAM, World

from wrpo_devcluster.delays import REALISTIC
from wrpo_operator.cli.install import find_chart

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(EXTERNAL, reason="reads the request log of the embedded control plane"),
]
EXPERIMENTS, SOURCES = 3, 4
ANSWER_TTL_S = 15.0
USUAL_S = 45.0
"""Seconds from the experiments to their ends on a machine that is not busy. On a busy one, changes that the operator
otherwise sees together come one by one: the limits grow with the time."""
LEASE, DISCOVERY = "leases", "discovery"


def sources() -> list[dict[str, str]]:
    return [{"name": f"s{number}", "model": f"org/s{number}"} for number in range(SOURCES)]


def metric(world: World, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", world.metrics(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_a_child_costs_few_requests_and_looks_on_a_cluster_with_real_delays(tmp_path: Path) -> None:
    with World(tmp_path / "world", "cluster", {}, delays=REALISTIC) as world:
        world.apply(*OPEN_CRDS)
        world.run("kubectl", "create", "namespace", TEAM)
        world.helm(find_chart())
        world.apply(claim())
        world.start_operator()
        world.calls.clear()
        looks, began = metric(world, "wrpo_reconcile_seconds_count"), time.monotonic()
        names = [f"e{number}" for number in range(EXPERIMENTS)]
        world.apply(*(experiment(name, sources=sources(), **simulate(run_seconds="1")) for name in names))
        world.wait("all end", lambda: all(world.status(name).get("phase") == "Succeeded" for name in names))
        looks = metric(world, "wrpo_reconcile_seconds_count") - looks
        elapsed_s = time.monotonic() - began
        calls: Counter[tuple[str, str]] = Counter((call.verb, call.resource) for call in list(world.calls))
        statuses = [world.status(name) for name in names]
    children = calls["patch", "jobs"] + calls["patch", "pytorchjobs"]
    assert children == EXPERIMENTS * (2 * SOURCES + 3)
    attempts = [attempt for status in statuses for stage in status["stages"] for attempt in stage["attempts"]]
    assert [attempt["state"] for attempt in attempts] == ["Succeeded"] * children
    writes = {what: n for what, n in calls.items() if what[0] not in {"get", "list", "watch"} and what[1] != LEASE}
    slowness = max(1.0, elapsed_s / USUAL_S)
    assert sum(writes.values()) / children <= 5 * slowness, writes
    assert calls["patch", "wrpoexperiments/status"] / children <= 1.2 * slowness
    assert looks / children <= 2 * slowness
    # Three questions: Events of Jobs, of PyTorchJobs and of pods. An answer is good for a while.
    assert calls["list", "events"] <= 3 * (elapsed_s / ANSWER_TTL_S + 1)


def account_labels(world: World) -> Any:
    return json.loads(world.run("kubectl", "-n", TEAM, "get", "serviceaccount", "wrpo-stage", "-o", "json"))[
        "metadata"
    ]["labels"]


def test_an_installation_goes_from_one_mode_to_the_other_and_back(tmp_path: Path) -> None:
    with World(tmp_path / "world", "cluster", {}) as world:
        world.apply(*OPEN_CRDS)
        world.run("kubectl", "create", "namespace", TEAM)
        world.helm(find_chart())
        world.apply(claim())
        world.start_operator()
        world.apply(experiment("one", **simulate(run_seconds="0")))
        world.wait("it ends", lambda: world.status("one").get("phase") == "Succeeded")
        world.stop_operator()
        made_by_operator = account_labels(world)
        assert made_by_operator["app.kubernetes.io/managed-by"] == "wrpo-operator"

        world.mode, world.values = "namespaced", {"watchNamespace": TEAM}
        for _ in range(2):  # the second upgrade is one of a release that does not hold the account
            world.helm(find_chart())
            assert account_labels(world) == made_by_operator
        world.start_operator()
        world.apply(experiment("two", **simulate(run_seconds="0")))
        world.wait("it ends", lambda: world.status("two").get("phase") == "Succeeded")
        world.stop_operator()

        world.mode, world.values = "cluster", {}
        world.helm(find_chart())
        assert account_labels(world) == made_by_operator


def test_the_account_that_the_chart_made_stays_its_own(tmp_path: Path) -> None:
    with World(tmp_path / "world", "namespaced", {"watchNamespace": TEAM}) as world:
        world.run("kubectl", "create", "namespace", TEAM)
        for _ in range(2):
            world.helm(find_chart())
            assert account_labels(world)["app.kubernetes.io/managed-by"] == "Helm"
        world.run("helm", "uninstall", "wrpo", "-n", SYSTEM)
        assert "wrpo-stage" not in world.run("kubectl", "-n", TEAM, "get", "serviceaccounts", "-o", "name")
