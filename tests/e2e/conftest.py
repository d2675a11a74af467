"""One control plane and one operator for all end-to-end tests.

By default the embedded control plane is started with pods as processes. With WRPO_E2E_CLUSTER=1 the cluster of
KUBECONFIG is used as it is (nothing embedded is started): stages run WRPO_E2E_IMAGE (default python:3.11-slim), the
operator runs WRPO_E2E_OPERATOR_IMAGE (default: the chart's), and a ReadWriteMany storage class must be the default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_support import EXTERNAL, KINDS, NAMESPACE, STAND_IN, SYSTEM, JsonObject, Kube

from wrpo_devcluster import lifecycle
from wrpo_operator.cli.install import CHECKOUT, install_operator


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    state_dir: Path | None = None
    if EXTERNAL:
        kubeconfig = Path(os.environ["KUBECONFIG"])
    else:
        state_dir = tmp_path_factory.mktemp("cluster")
        kubeconfig = lifecycle.up(state_dir).kubeconfig
    cluster = Kube(kubeconfig, state_dir)
    try:
        _prepare(cluster)
        yield cluster
        if os.environ.get("WRPO_E2E_KEEP_LOG"):
            Path(os.environ["WRPO_E2E_KEEP_LOG"]).write_text(cluster.operator_log(), encoding="utf-8")
    finally:
        if state_dir is not None:
            lifecycle.reset(state_dir)
        else:
            cluster.run("kubectl", "delete", "namespace", NAMESPACE, "--wait=false", check=False)
            cluster.run("helm", "uninstall", "wrpo", "-n", SYSTEM, check=False)


def _prepare(cluster: Kube) -> None:
    if "pytorchjobs" not in cluster.run(
        "kubectl", "api-resources", "--api-group=kubeflow.org", "-o", "name", check=False
    ):
        crd = CHECKOUT / "operator" / "wrpo_devcluster" / "manifests" / "pytorchjobs.yaml"
        cluster.run("kubectl", "apply", "--server-side", "-f", str(crd))
    image = os.environ.get("WRPO_E2E_IMAGE", "python:3.11-slim")
    command = ["python", "-c", STAND_IN, "/etc/wrpo/stage.json"]
    values: JsonObject = {
        "stageCommandOverrides": {kind: {"image": image, "command": command} for kind in KINDS},
        "auditSeconds": 15,
        "logLevel": "info",
    }
    if EXTERNAL and "WRPO_E2E_OPERATOR_IMAGE" in os.environ:
        repository, _, tag = os.environ["WRPO_E2E_OPERATOR_IMAGE"].rpartition(":")
        values["image"] = {"repository": repository, "tag": tag}
    install_operator(cluster.kubeconfig, namespace=SYSTEM, values=values)
    cluster.run("kubectl", "create", "namespace", NAMESPACE, check=False)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "artifacts"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    cluster.apply(claim)
