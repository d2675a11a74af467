"""The tests and scripts wait for conditions also where a server writes them late."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from e2e_support import EXTERNAL, Kube
from foreign_cluster import config
from support.kubectl_wait import wait_for_condition

from wrpo_devcluster import lifecycle
from wrpo_operator.cli.install import CHECKOUT

MANIFESTS = {
    "wrpoexperiments.wrpo.ai": CHECKOUT / "crds" / "wrpoexperiments.wrpo.ai.yaml",
    "pytorchjobs.kubeflow.org": CHECKOUT / "operator" / "wrpo_devcluster" / "manifests" / "pytorchjobs.yaml",
}
BARE_WAIT = re.compile(r"[\"']wait[\"'],\s*(f?[\"']--for|\*)")


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Kube]:
    """A control plane whose new CRDs have no conditions before it is restarted."""
    state_dir = tmp_path / "cluster"
    late = replace(config(state_dir), crd_status_delay_s=86_400.0)
    try:
        yield Kube(lifecycle.up(state_dir, config=late, with_crds=()).kubeconfig, state_dir)
    finally:
        lifecycle.reset(state_dir)


@pytest.mark.cluster
@pytest.mark.skipif(EXTERNAL, reason="makes a cluster of its own")
def test_a_crd_whose_status_comes_late_is_waited_for(slow: Kube) -> None:
    assert slow.state_dir is not None
    for crd, manifest in MANIFESTS.items():
        slow.run("kubectl", "apply", "--server-side", "-f", str(manifest))

        said = slow.run("kubectl", "wait", "--for=condition=Established", f"crd/{crd}", "--timeout=60s", check=False)
        assert "error: .status.conditions accessor error: <nil> is of the type <nil>" in said

    with ThreadPoolExecutor(len(MANIFESTS)) as waiting:
        waits = [waiting.submit(slow.wait_condition, "Established", f"crd/{crd}") for crd in MANIFESTS]
        lifecycle.down(slow.state_dir)
        lifecycle.up(slow.state_dir, with_crds=())
        for wait in waits:
            wait.result()

    for crd in MANIFESTS:
        status = json.loads(slow.run("kubectl", "get", "crd", crd, "-o", "json"))["status"]
        conditions = {entry["type"]: entry["status"] for entry in status["conditions"]}
        assert conditions == {"NamesAccepted": "True", "Established": "True"}
        assert slow.run("kubectl", "get", crd) == ""


def test_a_wait_that_fails_at_first_is_repeated() -> None:
    answers = ["error: no matching resources found", "error: accessor error", ""]
    asked = []

    def kubectl(*arguments: str) -> str:
        asked.append(arguments)
        problem = answers.pop(0)
        assert not problem, problem
        return "condition met"

    wait_for_condition(kubectl, "Established", "crd/x", timeout_s=60, every_s=0)

    assert [arguments[:3] for arguments in asked] == [("wait", "--for=condition=Established", "crd/x")] * 3


def test_a_wait_that_never_succeeds_ends_with_what_kubectl_said() -> None:
    def kubectl(*arguments: str) -> str:
        raise AssertionError(f"kubectl {arguments[0]}: error: timed out")

    with pytest.raises(AssertionError, match="kubectl wait: error: timed out"):
        wait_for_condition(kubectl, "Established", "crd/x", timeout_s=0, every_s=0)


def test_nothing_waits_with_kubectl_but_the_helper() -> None:
    allowed = {Path(__file__), CHECKOUT / "tests" / "support" / "kubectl_wait.py"}
    sources = [*(CHECKOUT / "tests").rglob("*.py"), *(CHECKOUT / "scripts").rglob("*.py")]

    found = [str(path) for path in sources if path not in allowed and BARE_WAIT.search(path.read_text("utf-8"))]

    assert found == [], "use wait_for_condition of support.kubectl_wait: kubectl wait fails where a status is late"
