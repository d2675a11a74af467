"""`make e2e CLUSTER=1` on a bare control plane of another process: what it runs, and what it leaves there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from e2e_support import EXTERNAL, Kube
from foreign_cluster import config
from support.patience import LONG_S, wait_until

from wrpo_devcluster import lifecycle
from wrpo_operator.cli.install import CHECKOUT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(EXTERNAL, reason="makes a cluster of its own"),
]
KINDS = ("namespaces", "crds", "pv", "clusterroles", "clusterrolebindings", "priorityclasses")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """Simulated GPU nodes, no PyTorchJob controller, no CRDs, no binder of volumes."""
    state_dir = tmp_path_factory.mktemp("bare-cluster")
    try:
        yield Kube(lifecycle.up(state_dir, config=config(state_dir), with_crds=()).kubeconfig, state_dir)
    finally:
        lifecycle.reset(state_dir)


def left(kube: Kube) -> dict[str, list[str]]:
    return {
        kind: sorted(
            item["metadata"]["name"] for item in json.loads(kube.run("kubectl", "get", kind, "-o", "json"))["items"]
        )
        for kind in KINDS
    }


def start(kube: Kube) -> subprocess.Popen[str]:
    own = ("WRPO_", "PYTEST_", "KUBECONFIG")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return subprocess.Popen(
        [sys.executable, "scripts/e2e.py", "--cluster", "--pods", "simulated"],
        cwd=CHECKOUT,
        env={**env, "KUBECONFIG": str(kube.kubeconfig)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_whole_experiment_passes_under_restricted_pod_security_and_nothing_is_left(bare: Kube) -> None:
    before = left(bare)
    process = start(bare)
    output, _ = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, output[-6000:]
    assert "stages succeeded, one child each" in output
    assert "checked: deleting the experiment deletes its children" in output
    assert "100%  report: Succeeded" in output
    wait_until("nothing is left", lambda: left(bare) == before)


def test_ctrl_c_in_the_middle_leaves_nothing_either(bare: Kube) -> None:
    before = left(bare)
    process = start(bare)
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "prepare: " in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=LONG_S)
    assert process.returncode == 130, "".join(seen) + rest[-4000:]
    assert "interrupted; everything this run made was removed" in rest
    wait_until("nothing is left", lambda: left(bare) == before)
