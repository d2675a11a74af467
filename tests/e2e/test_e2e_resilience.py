"""What is killed goes on where it stopped, and what is missing is said and waited for."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
from e2e_support import EXTERNAL, Kube, experiment
from support.patience import wait_until

from wrpo_devcluster import lifecycle
from wrpo_devcluster.config import load_config, save_config
from wrpo_devcluster.rbac_delay import MESSAGE
from wrpo_operator.cli.install import CHECKOUT

pytestmark = pytest.mark.cluster
RBAC_DELAY_S = 10.0
"""Long enough that a stalled operator asks within it, too."""
embedded_only = pytest.mark.skipif(EXTERNAL, reason="does to the cluster what nobody should do to a shared one")


def assert_no_duplicates(kube: Kube, name: str) -> None:
    """Each stage has one attempt and one child."""
    status = kube.status(name)
    assert [len(entry["attempts"]) for entry in status["stages"]] == [1] * len(status["stages"])
    stages = [child["metadata"]["labels"]["wrpo.ai/stage"] for child in kube.children(name)]
    assert len(stages) == len(set(stages)) == len(status["stages"])


def test_a_killed_operator_goes_on_without_doing_anything_twice(kube: Kube) -> None:
    kube.apply(experiment("op-killed", **kube.behave(hold="sample/a:op-killed")))
    kube.wait_stage("op-killed", "sample/a", "Running")
    kube.kill_operator()
    kube.release("op-killed")
    kube.wait_phase("op-killed", "Succeeded")
    assert_no_duplicates(kube, "op-killed")


@embedded_only
def test_a_killed_control_plane_goes_on_without_doing_anything_twice(kube: Kube) -> None:
    """Its first answers after the restart are 403, as those of real servers that have not loaded RBAC yet."""
    assert kube.state_dir is not None
    before = kube.restarts()
    kube.apply(experiment("cp-killed", **kube.behave(hold="sample/a:cp-killed")))
    kube.wait_stage("cp-killed", "sample/a", "Running")
    state_dir = kube.state_dir
    assert state_dir is not None
    pid = lifecycle.status(state_dir).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until("the control plane is dead", lambda: not lifecycle.status(state_dir).is_running)
    config = load_config(kube.state_dir)
    assert config is not None
    lifecycle.up(kube.state_dir, config=replace(config, rbac_delay_s=RBAC_DELAY_S))
    save_config(config)
    kube.release("cp-killed")
    kube.wait_phase("cp-killed", "Succeeded")
    assert MESSAGE in kube.operator_log()
    assert kube.restarts() == before
    assert_no_duplicates(kube, "cp-killed")
    assert {stage: kube.runs_of("cp-killed", stage) for stage in ("prepare", "sample/a")} == {
        "prepare": 1,
        "sample/a": 1,
    }


def test_without_the_training_crd_the_experiment_waits_and_says_so_and_goes_on_once_it_is_there(kube: Kube) -> None:
    if EXTERNAL and not kube.own_training_crd:
        pytest.skip("PyTorchJob's CRD was there before: deleting it would delete what others run")
    crd = "pytorchjobs.kubeflow.org"
    kube.run("kubectl", "delete", "crd", crd, "--cascade=background", "--wait=true")
    try:
        kube.apply(experiment("no-crd"))
        blocker = wait_until("the blocker shows", lambda: kube.blocker("no-crd", "TrainingBackendMissing"))
        assert "PyTorchJob" in blocker["message"]
        conditions = {entry["type"]: entry for entry in kube.status("no-crd")["conditions"]}
        assert conditions["Blocked"]["status"] == "True"
    finally:
        manifest = CHECKOUT / "operator" / "wrpo_devcluster" / "manifests" / "pytorchjobs.yaml"
        kube.run("kubectl", "apply", "--server-side", "-f", str(manifest))
        kube.wait_condition("Established", f"crd/{crd}")
    kube.wait_phase("no-crd", "Succeeded")


@embedded_only
def test_without_its_own_crd_the_operator_is_not_ready_says_why_and_does_not_crash(kube: Kube) -> None:
    before = kube.restarts()
    kube.run("kubectl", "delete", "crd", "wrpoexperiments.wrpo.ai", "--wait=true")
    try:
        wait_until("the operator is not ready", lambda: not kube.operator_ready())
        assert "the CRD wrpoexperiments.wrpo.ai is not installed" in kube.operator_log()
    finally:
        kube.run("kubectl", "apply", "--server-side", "-f", str(CHECKOUT / "crds" / "wrpoexperiments.wrpo.ai.yaml"))
    wait_until("the operator is ready", kube.operator_ready)
    assert kube.restarts() == before
    kube.apply(experiment("after-crd"))
    kube.wait_phase("after-crd", "Succeeded")
