"""Two real operator processes: calls fail, watches end, and the leader is stopped in the middle and wakes up later."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_support import EXTERNAL, Kube, break_api, experiment, simulate, simulated_cluster
from local_operator import LocalOperator
from support.patience import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(EXTERNAL, reason="does to the cluster what nobody should do to a shared one"),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Kube]:
    with simulated_cluster(tmp_path) as kube:
        yield kube


@pytest.fixture
def operators(cluster: Kube, tmp_path: Path) -> Iterator[dict[str, LocalOperator]]:
    started = {
        name: LocalOperator(cluster.kubeconfig, {}, "default", name, tmp_path / f"{name}.log")
        for name in ("one", "two")
    }
    try:
        for operator in started.values():
            operator.start()
        for operator in started.values():
            wait_until("an operator is ready", operator.ready)
        yield started
    finally:
        for operator in started.values():
            operator.send(signal.SIGCONT)
            operator.kill()


def leader(kube: Kube) -> str:
    lease: dict[str, Any] = json.loads(
        kube.run("kubectl", "-n", "default", "get", "lease", "wrpo-operator", "-o", "json")
    )
    return str(lease["spec"].get("holderIdentity"))


def test_a_stopped_leader_is_replaced_and_writes_nothing_when_it_wakes_up(
    cluster: Kube, operators: dict[str, LocalOperator]
) -> None:
    kube = cluster
    for code, resource in ((500, "configmaps"), (429, "jobs"), (409, "wrpoexperiments"), (503, "wrpoexperiments")):
        break_api(kube, refuse={"code": code, "verb": "patch", "resource": resource, "times": 2})
    kube.apply(experiment("fusion", **simulate(run_seconds="2")))
    wait_until("prepare has begun", lambda: kube.stage("fusion", "prepare").get("attempts"))
    break_api(kube, closeWatches={"gone": True})
    first = leader(kube)
    (second,) = set(operators) - {first}
    operators[first].send(signal.SIGSTOP)
    kube.wait_phase("fusion", "Succeeded")
    assert leader(kube) == second
    status = kube.status("fusion")
    assert [len(stage["attempts"]) for stage in status["stages"]] == [1] * 5
    assert len(kube.children("fusion")) == 5

    before = kube.experiment("fusion")["metadata"]["resourceVersion"]
    children = sorted(child["metadata"]["resourceVersion"] for child in kube.children("fusion"))
    operators[first].send(signal.SIGCONT)
    wait_until("the first one stands by", lambda: "standby" in operators[first].log())
    assert leader(kube) == second
    assert kube.experiment("fusion")["metadata"]["resourceVersion"] == before
    assert sorted(child["metadata"]["resourceVersion"] for child in kube.children("fusion")) == children
