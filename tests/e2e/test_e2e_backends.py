"""The same experiment on either training backend: TrainJob does what PyTorchJob does, and ends as it does."""

from __future__ import annotations

from typing import Any

import pytest
from e2e_foreign import CONTROLLER_WAIT_S
from e2e_support import EXTERNAL, JsonObject, Kube, experiment, wait_until

from wrpo_operator.cli.install import CHECKOUT

pytestmark = pytest.mark.cluster
CRD = "trainjobs.trainer.kubeflow.org"
RUNTIME_CRD = "trainingruntimes.trainer.kubeflow.org"
MANIFEST = CHECKOUT / "operator" / "wrpo_devcluster" / "manifests" / "trainjobs.yaml"
API_VERSION = "trainer.kubeflow.org/v1alpha1"


def has_trainjobs(kube: Kube) -> bool:
    return bool(kube.run("kubectl", "get", "crd", CRD, "--ignore-not-found", "-o", "name").strip())


@pytest.fixture(scope="module")
def trainer(kube: Kube) -> Kube:
    """A cluster on which somebody runs TrainJobs."""
    if not has_trainjobs(kube):
        pytest.skip(f"the cluster has no CRD {CRD}")
    if EXTERNAL and not _is_noticed(kube):
        pytest.skip("the cluster has TrainJob's CRD, but nobody takes note of a new TrainJob")
    return kube


def _is_noticed(kube: Kube) -> bool:
    pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "node", "image": "none"}]}}
    jobs = [{"name": "node", "template": {"spec": {"template": pod}}}]
    name = {"metadata": {"name": "probe"}}
    template = {"spec": {"replicatedJobs": jobs}}
    kube.apply({"apiVersion": API_VERSION, "kind": "TrainingRuntime", **name, "spec": {"template": template}})
    spec = {"suspend": True, "runtimeRef": {"kind": "TrainingRuntime", "name": "probe"}}
    kube.apply({"apiVersion": API_VERSION, "kind": "TrainJob", **name, "spec": spec})
    try:
        wait_until("noticed", lambda: (kube.get(CRD, "probe").get("status") or {}).get("conditions"), CONTROLLER_WAIT_S)
    except AssertionError:
        return False
    finally:
        kube.kubectl("delete", CRD, "probe", "--cascade=background", "--wait=false")
        kube.kubectl("delete", RUNTIME_CRD, "probe", "--wait=false")
    return True


def two_nodes(name: str, backend: str, **spec: Any) -> JsonObject:
    """Return an experiment that ends after SFT, which is a gang of two pods."""
    training = {"objective": "SFTOnly", "nodes": 2, "backend": backend}
    return experiment(name, training=training, scheduling={"gang": "BestEffort"}, **spec)


def trainjobs(kube: Kube, name: str) -> list[JsonObject]:
    return kube.list(CRD, f"wrpo.ai/experiment={name}")


def pods_of(kube: Kube, name: str, stage: str) -> list[JsonObject]:
    return kube.list("pods", f"wrpo.ai/experiment={name},wrpo.ai/stage={stage}")


def running_pods(kube: Kube, name: str, stage: str) -> list[JsonObject]:
    return [pod for pod in pods_of(kube, name, stage) if pod["status"].get("phase") == "Running"]


def test_either_backend_makes_the_same_artifacts(trainer: Kube) -> None:
    kube = trainer
    for backend in ("PyTorchJob", "TrainJob"):
        storage = {"volume": {"claimName": "artifacts", "path": backend.lower()}}
        kube.apply(two_nodes(f"by-{backend.lower()}", backend, storage=storage, reuse={"salt": "backends"}))
    stages = {
        name: {entry["name"]: entry["artifact"] for entry in kube.wait_phase(name, "Succeeded", 120)["stages"]}
        for name in ("by-pytorchjob", "by-trainjob")
    }
    assert stages["by-trainjob"] == stages["by-pytorchjob"]
    assert [child["kind"] for child in kube.children("by-pytorchjob")].count("PyTorchJob") == 1
    (child,) = trainjobs(kube, "by-trainjob")
    assert {entry["type"]: entry["status"] for entry in child["status"]["conditions"]}["Complete"] == "True"
    attempts = kube.stage("by-trainjob", "sft")["attempts"]
    assert [(entry["state"], entry["child"]) for entry in attempts] == [("Succeeded", child["metadata"]["name"])]
    pods = pods_of(kube, "by-trainjob", "sft")
    index = "batch.kubernetes.io/job-completion-index"
    assert sorted(pod["metadata"]["annotations"][index] for pod in pods) == ["0", "1"]


@pytest.mark.usefixtures("real_pods")
def test_a_gang_is_suspended_resumed_and_made_anew_when_it_loses_a_pod(trainer: Kube) -> None:
    kube = trainer
    kube.apply(two_nodes("gang-life", "TrainJob", **kube.behave(slow="sft:600")))
    first = wait_until("both pods run", lambda: _both(kube, "gang-life", "sft"), 90)
    kube.edit("gang-life", suspend=True)
    kube.wait_phase("gang-life", "Suspended")
    wait_until("no pod runs", lambda: not running_pods(kube, "gang-life", "sft"), 30)
    kube.edit("gang-life", suspend=False)
    resumed = wait_until("both pods run again", lambda: _both(kube, "gang-life", "sft"), 60)
    assert not first & resumed
    assert len(kube.stage("gang-life", "sft")["attempts"]) == 1
    name = running_pods(kube, "gang-life", "sft")[0]["metadata"]["name"]
    kube.kubectl("delete", "pod", name, "--grace-period=1", "--wait=false")
    attempts = wait_until(
        "the next attempt runs",
        lambda: (a := kube.stage("gang-life", "sft")["attempts"]) and a[-1]["state"] == "Running" and a[1:] and a,
        90,
    )
    assert [(entry["number"], entry["state"]) for entry in attempts] == [(1, "Failed"), (2, "Running")]
    wait_until("both pods run in the next attempt", lambda: _both(kube, "gang-life", "sft"), 60)
    kube.kubectl("delete", "wrpoexperiment", "gang-life", "--cascade=background", "--wait=true")
    wait_until("its TrainJobs are gone", lambda: not trainjobs(kube, "gang-life"), 60)
    wait_until("its runtimes are gone", lambda: not kube.list(RUNTIME_CRD, "wrpo.ai/experiment=gang-life"), 60)
    wait_until("its pods are gone", lambda: not pods_of(kube, "gang-life", "sft"), 60)


def _both(kube: Kube, name: str, stage: str) -> set[str]:
    uids = {pod["metadata"]["uid"] for pod in running_pods(kube, name, stage)}
    return uids if len(uids) == 2 else set()


@pytest.mark.usefixtures("real_pods")
def test_a_gang_that_crashes_is_tried_again(trainer: Kube) -> None:
    trainer.apply(two_nodes("gang-crash", "TrainJob", **trainer.behave(crash="sft")))
    trainer.wait_phase("gang-crash", "Succeeded")
    attempts = trainer.stage("gang-crash", "sft")["attempts"]
    assert [(entry["number"], entry["state"]) for entry in attempts] == [(1, "Failed"), (2, "Succeeded")]
    assert attempts[0]["exitCode"] == 1
    assert len(trainjobs(trainer, "gang-crash")) == 2


@pytest.mark.usefixtures("real_pods")
def test_bad_data_in_a_gang_is_told_in_the_engines_words(trainer: Kube) -> None:
    trainer.apply(two_nodes("gang-bad", "TrainJob", **trainer.behave(fail="sft")))
    status = trainer.wait_phase("gang-bad", "Failed")
    (failed,) = [entry for entry in status["conditions"] if entry["type"] == "Failed"]
    assert "there is no model named nobody/nothing." in failed["message"]
    attempts = trainer.stage("gang-bad", "sft")["attempts"]
    assert [(entry["state"], entry["exitCode"], entry["failure"]) for entry in attempts] == [("Failed", 65, "Config")]


def test_without_trainjobs_crd_the_blocker_names_what_is_installed(kube: Kube) -> None:
    if EXTERNAL and has_trainjobs(kube):
        pytest.skip("TrainJob's CRD was there before: deleting it would delete what others run")
    if not EXTERNAL:
        kube.run("kubectl", "delete", "crd", CRD, "--cascade=background", "--wait=true")
    try:
        kube.apply(two_nodes("no-trainer", "TrainJob"))
        # The operator may not know yet that the kind is gone; then the API server's refusal shows first.
        blocker = wait_until("the blocker shows", lambda: _blocker(kube, "no-trainer", "TrainingBackendMissing"), 60)
        assert (blocker["object"], blocker["stage"]) == ("CustomResource/TrainJob", "sft")
        assert "Install Kubeflow Trainer" in blocker["message"]
        assert "set training.backend to what is installed: PyTorchJob." in blocker["message"]
    finally:
        if not EXTERNAL:
            kube.run("kubectl", "apply", "--server-side", "-f", str(MANIFEST))
            kube.wait_condition("Established", f"crd/{CRD}")
    # What the blocker advises.
    kube.edit("no-trainer", training={"backend": "PyTorchJob"})
    kube.wait_phase("no-trainer", "Succeeded", 120)


def _blocker(kube: Kube, name: str, reason: str) -> JsonObject | None:
    blockers = kube.status(name).get("blockers") or []
    return next((entry for entry in blockers if entry["reason"] == reason), None)
