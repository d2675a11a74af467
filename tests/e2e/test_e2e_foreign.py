"""WRPO_E2E_CLUSTER=1 itself: these tests on a bare control plane of another process, and what they leave there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_support import EXTERNAL, Kube
from foreign_cluster import config
from support.patience import LONG_S, wait_until

from wrpo_devcluster import lifecycle
from wrpo_operator.cli.install import CHECKOUT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(EXTERNAL, reason="this run is already one on a foreign cluster"),
]
CHOSEN = "a_gang_is_suspended or every_call_of_the_operator or may_do_nothing or reach_the_status_while"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    state_dir = tmp_path_factory.mktemp("foreign-cluster")
    try:
        yield Kube(lifecycle.up(state_dir, config=config(state_dir), with_crds=()).kubeconfig, state_dir)
    finally:
        lifecycle.reset(state_dir)


def left(foreign: Kube) -> dict[str, list[str]]:
    kinds = ("namespaces", "crds", "pv", "clusterroles", "clusterrolebindings")
    return {
        kind: sorted(
            item["metadata"]["name"] for item in json.loads(foreign.run("kubectl", "get", kind, "-o", "json"))["items"]
        )
        for kind in kinds
    }


def test_the_tests_run_on_a_bare_control_plane_and_leave_it_as_it_was(foreign: Kube, tmp_path: Path) -> None:
    before = left(foreign)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("WRPO_", "PYTEST_"))},
        "WRPO_E2E_CLUSTER": "1",
        "KUBECONFIG": str(foreign.kubeconfig),
    }
    command = [sys.executable, "-m", "pytest", "-m", "cluster", "tests/e2e/test_e2e_experiments.py", "-q"]
    done = subprocess.run(
        [*command, "-k", CHOSEN, "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inner'}"],
        cwd=CHECKOUT,
        env=env,
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "3 passed, 1 skipped" in done.stdout, done.stdout[-2000:]
    assert "pods of this cluster are simulated" in done.stdout
    wait_until("nothing is left", lambda: left(foreign) == before)
