"""One control plane and one operator for all end-to-end tests; docs/guides/testing.md tells the two modes apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_foreign import ForeignCluster
from e2e_support import EXTERNAL, NAMESPACE, SYSTEM, Kube, claim, make_namespace, stand_in_values

from wrpo_devcluster import lifecycle
from wrpo_operator.cli.install import install_operator


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    if EXTERNAL:
        foreign = ForeignCluster(tmp_path_factory.mktemp("foreign"))
        try:
            yield foreign.prepare()
            _keep_log(foreign.kube)
        finally:
            foreign.remove()
        return
    state_dir = tmp_path_factory.mktemp("cluster")
    cluster = Kube(lifecycle.up(state_dir).kubeconfig, state_dir)
    try:
        make_namespace(cluster, SYSTEM, "restricted")
        # Not `restricted`: the init container that Kubeflow's, and so this, controller gives to workers is not.
        make_namespace(cluster, NAMESPACE, "baseline")
        install_operator(cluster.kubeconfig, namespace=SYSTEM, values=stand_in_values())
        cluster.apply(claim())
        yield cluster
        _keep_log(cluster)
    finally:
        lifecycle.reset(state_dir)


def _keep_log(cluster: Kube) -> None:
    if os.environ.get("WRPO_E2E_KEEP_LOG"):
        Path(os.environ["WRPO_E2E_KEEP_LOG"]).write_text(cluster.operator_log(), encoding="utf-8")


@pytest.fixture
def real_pods(kube: Kube) -> None:
    """For tests of what only a container that runs can do."""
    if kube.simulated:
        pytest.skip("pods of this cluster are simulated: no logs, termination messages or progress posts")


@pytest.fixture
def simulated_pods(kube: Kube) -> None:
    """For tests that drive pods by annotations."""
    if not kube.simulated:
        pytest.skip("pods of this cluster run for real and follow no fake.test/ annotations")


@pytest.fixture
def operator_in_cluster(kube: Kube) -> None:
    """For tests of the chart's Deployment and Service."""
    if kube.local is not None:
        pytest.skip("the operator is a process of the tests here; WRPO_E2E_OPERATOR_IMAGE runs it in the cluster")
