"""The `wrpo` command, `helm test`, and a second operator standing by."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from e2e_support import NAMESPACE, OPERATOR, OPERATOR_PODS, RELEASE, SYSTEM, Kube, experiment
from support.patience import wait_until

from wrpo_operator.cli.main import main

pytestmark = pytest.mark.cluster


def wrpo(kube: Kube, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, [*arguments, "--kubeconfig", str(kube.kubeconfig), "-n", NAMESPACE])
    return result.exit_code, result.output


@pytest.mark.usefixtures("real_pods")
def test_wrpo_follows_shows_and_prints_logs(kube: Kube) -> None:
    kube.apply(experiment("seen", **kube.behave(slow="sample/a:2", crash="sft")))
    code, output = wrpo(kube, "status", "seen", "--watch")
    assert code == 0, output
    assert "sft: Succeeded (attempt 2" in output
    assert output.splitlines()[-1].endswith(f"{NAMESPACE}/seen  Succeeded")
    code, tree = wrpo(kube, "status", "seen")
    assert code == 0
    assert "attempt 1  Failed exit 1" in tree
    assert "attempt 2  Succeeded exit 0" in tree
    code, logs = wrpo(kube, "logs", "seen", "sample/a")
    assert code == 0
    assert "] stage sample/a hash" in logs
    assert "score/a" not in logs
    code, words = wrpo(kube, "logs", "seen", "train")
    assert code == 1
    assert f"there is no pod of stage train of seen in namespace {NAMESPACE}" in words
    code, words = wrpo(kube, "report", "seen")
    assert code == 1
    assert "not part of this experiment (spec.report.enabled)" in words


@pytest.mark.usefixtures("simulated_pods")
def test_wrpo_follows_an_experiment_and_shows_its_stages(kube: Kube) -> None:
    kube.apply(experiment("seen"))
    code, output = wrpo(kube, "status", "seen", "--watch")
    assert code == 0, output
    assert output.splitlines()[-1].endswith(f"{NAMESPACE}/seen  Succeeded")
    code, tree = wrpo(kube, "status", "seen")
    assert code == 0
    assert tree.count("Succeeded") >= 5
    for stage in ("prepare", "sample/a", "score/a", "curate-sft", "sft"):
        assert stage in tree
    code, words = wrpo(kube, "report", "seen")
    assert code == 1
    assert "not part of this experiment (spec.report.enabled)" in words


@pytest.mark.usefixtures("real_pods")
def test_wrpo_follows_the_logs_of_pods_to_come(kube: Kube) -> None:
    kube.apply(experiment("tailed"))
    code, output = wrpo(kube, "logs", "tailed", "-f")
    assert code == 0, output
    for stage in ("prepare", "sample/a", "score/a", "curate-sft", "sft"):
        assert f"] stage {stage} hash" in output
    assert kube.status("tailed")["phase"] == "Succeeded"


def test_a_failed_experiment_is_exit_code_1_and_its_words(kube: Kube) -> None:
    kube.apply(experiment("unlucky", **kube.behave(fail="prepare")))
    code, output = wrpo(kube, "status", "unlucky", "-w")
    assert code == 1
    assert ("exited with code 65" if kube.simulated else "there is no model named nobody/nothing.") in output


@pytest.mark.usefixtures("real_pods", "operator_in_cluster")
def test_helm_test_reaches_the_progress_endpoint(kube: Kube) -> None:
    assert "Succeeded" in kube.run("helm", "test", RELEASE, "-n", SYSTEM)


@pytest.mark.usefixtures("operator_in_cluster")
def test_a_standby_takes_over_when_the_leader_goes(kube: Kube) -> None:
    def ready() -> int:
        answer = json.loads(kube.run("kubectl", "-n", SYSTEM, "get", "deployment", OPERATOR, "-o", "json"))
        return int(answer["status"].get("readyReplicas") or 0)

    def leader() -> str:
        lease = kube.run("kubectl", "-n", SYSTEM, "get", "lease", f"{OPERATOR}-leader", "-o", "json")
        return str(json.loads(lease)["spec"]["holderIdentity"])

    scale = ("-n", SYSTEM, "scale", f"deployment/{OPERATOR}")
    kube.run("kubectl", *scale, "--replicas=2")
    try:
        wait_until("both are ready", lambda: ready() == 2)
        kube.apply(experiment("handed-over", **kube.behave(hold="sample/a:handed-over")))
        kube.wait_stage("handed-over", "sample/a", "Running")
        first = leader()
        kube.run("kubectl", "-n", SYSTEM, "delete", "pod", first)
        wait_until("another leads", lambda: leader() not in {first, ""})
        kube.release("handed-over")
        status = kube.wait_phase("handed-over", "Succeeded")
        assert [len(entry["attempts"]) for entry in status["stages"]] == [1] * 5
    finally:
        kube.run("kubectl", *scale, "--replicas=1")
    wait_until("one is left", lambda: _operators(kube) == 1)


def _operators(kube: Kube) -> int:
    return len(json.loads(kube.run("kubectl", "-n", SYSTEM, "get", "pods", "-l", OPERATOR_PODS, "-o", "json"))["items"])
