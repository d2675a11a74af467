"""The same experiment on every training backend: each does what PyTorchJob does, and ends as it does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from e2e_foreign import CONTROLLER_WAIT_S
from e2e_support import EXTERNAL, JsonObject, Kube, experiment
from support.patience import wait_until

from wrpo_operator.api.backends import BACKENDS, BackendKind, ResourceType
from wrpo_operator.cli.install import CHECKOUT

pytestmark = pytest.mark.cluster
MANIFESTS = CHECKOUT / "operator" / "wrpo_devcluster" / "manifests"
OTHERS = {kind: backend for kind, backend in BACKENDS.items() if kind != "PyTorchJob"}
"""PyTorchJob is the backend of all other end-to-end tests."""
TRAINER, JOBSET = OTHERS["TrainJob"], OTHERS["JobSet"]


def crd_of(resource: ResourceType) -> str:
    """Return the name of the CRD, by which kubectl also knows the resource."""
    return f"{resource.plural}.{resource.group}"


def is_installed(kube: Kube, backend: BackendKind) -> bool:
    crd = crd_of(backend.resource)
    return bool(kube.run("kubectl", "get", "crd", crd, "--ignore-not-found", "-o", "name").strip())


@pytest.fixture(params=list(OTHERS.values()), ids=list(OTHERS))
def backend(request: pytest.FixtureRequest, kube: Kube) -> BackendKind:
    """A training backend that somebody runs on the cluster."""
    found: BackendKind = request.param
    if not is_installed(kube, found):
        pytest.skip(f"the cluster has no CRD {crd_of(found.resource)}")
    if EXTERNAL and not _is_noticed(kube, found):
        pytest.skip(f"the cluster has the CRD of {found.kind}, but nobody takes note of a new one")
    return found


def _is_noticed(kube: Kube, backend: BackendKind) -> bool:
    """Whether a controller gives a suspended object a condition."""
    pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "node", "image": "none"}]}}
    replicated = {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": pod}}}]}
    companions: list[JsonObject] = []
    spec: JsonObject = {"suspend": True, **replicated}
    if backend is TRAINER:
        companions = [{"template": {"spec": replicated}}]
        spec = {"suspend": True, "runtimeRef": {"kind": backend.companions[0].kind, "name": "probe"}}
    for resource, body in zip((*backend.companions, backend.resource), (*companions, spec), strict=True):
        kube.apply(
            {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": "probe"}, "spec": body}
        )
    crd = crd_of(backend.resource)
    try:
        wait_until(
            "noticed",
            lambda: (kube.get(crd, "probe").get("status") or {}).get("conditions"),
            timeout_s=CONTROLLER_WAIT_S,
        )
    except AssertionError:
        return False
    finally:
        for resource in (backend.resource, *backend.companions):
            kube.kubectl("delete", crd_of(resource), "probe", "--cascade=background", "--wait=false")
    return True


def two_nodes(name: str, backend: str, **spec: Any) -> JsonObject:
    """Return an experiment that ends after SFT, which is a gang of two pods."""
    training = {"objective": "SFTOnly", "nodes": 2, "backend": backend}
    return experiment(name, training=training, scheduling={"gang": "BestEffort"}, **spec)


def children(kube: Kube, name: str, resource: ResourceType) -> Sequence[JsonObject]:
    return kube.list(crd_of(resource), f"wrpo.ai/experiment={name}")


def has_none(kube: Kube, name: str, resource: ResourceType) -> bool:
    return not children(kube, name, resource)


def pods_of(kube: Kube, name: str, stage: str) -> Sequence[JsonObject]:
    return kube.list("pods", f"wrpo.ai/experiment={name},wrpo.ai/stage={stage}")


def running_pods(kube: Kube, name: str, stage: str) -> list[JsonObject]:
    return [pod for pod in pods_of(kube, name, stage) if pod["status"].get("phase") == "Running"]


def long_name(backend: BackendKind) -> str:
    """Return a name as long as they may be: JobSet refuses a JobSet whose name leaves no room for those of its pods."""
    return f"by-{backend.kind.lower()}-".ljust(63, "n")


def artifacts(kube: Kube, backend: BackendKind) -> dict[str, str]:
    """Return the artifacts by stage of an experiment on a backend, in a directory of its own."""
    name = long_name(backend)
    storage = {"volume": {"claimName": "artifacts", "path": backend.kind}}
    kube.apply(two_nodes(name, backend.kind, storage=storage, reuse={"salt": "backends"}))
    status = kube.wait_phase(name, "Succeeded")
    return {entry["name"]: entry["artifact"] for entry in status["stages"]}


@pytest.fixture(scope="module")
def expected(kube: Kube) -> dict[str, str]:
    """The artifacts that PyTorchJob leaves."""
    return artifacts(kube, BACKENDS["PyTorchJob"])


def test_every_backend_makes_the_same_artifacts(kube: Kube, backend: BackendKind, expected: dict[str, str]) -> None:
    assert artifacts(kube, backend) == expected
    name = long_name(backend)
    (child,) = children(kube, name, backend.resource)
    assert {entry["type"]: entry["status"] for entry in child["status"]["conditions"]}[backend.succeeded] == "True"
    attempts = kube.stage(name, "sft")["attempts"]
    assert [(entry["state"], entry["child"]) for entry in attempts] == [("Succeeded", child["metadata"]["name"])]
    pods = pods_of(kube, name, "sft")
    index = "batch.kubernetes.io/job-completion-index"
    assert sorted(pod["metadata"]["annotations"][index] for pod in pods) == ["0", "1"]


@pytest.mark.usefixtures("real_pods")
def test_a_gang_is_suspended_resumed_and_recreated_when_it_loses_a_pod(kube: Kube, backend: BackendKind) -> None:
    name = f"life-{backend.kind.lower()}"
    kube.apply(two_nodes(name, backend.kind, **kube.behave(slow="sft:600")))
    first = wait_until("both pods run", lambda: _both(kube, name, "sft"))
    kube.edit(name, suspend=True)
    kube.wait_phase(name, "Suspended")
    wait_until("no pod runs", lambda: not running_pods(kube, name, "sft"))
    kube.edit(name, suspend=False)
    resumed = wait_until("both pods run again", lambda: _both(kube, name, "sft"))
    assert not first & resumed
    assert len(kube.stage(name, "sft")["attempts"]) == 1
    pod = running_pods(kube, name, "sft")[0]["metadata"]["name"]
    kube.kubectl("delete", "pod", pod, "--grace-period=1", "--wait=false")
    attempts = wait_until(
        "the next attempt runs",
        lambda: (a := kube.stage(name, "sft")["attempts"]) and a[-1]["state"] == "Running" and a[1:] and a,
    )
    assert [(entry["number"], entry["state"]) for entry in attempts] == [(1, "Failed"), (2, "Running")]
    wait_until("both pods run in the next attempt", lambda: _both(kube, name, "sft"))
    kube.kubectl("delete", "wrpoexperiment", name, "--cascade=background", "--wait=true")
    for resource in (backend.resource, *backend.companions):
        wait_until(f"its {resource.plural} are gone", partial(has_none, kube, name, resource))
    wait_until("its pods are gone", lambda: not pods_of(kube, name, "sft"))


def _both(kube: Kube, name: str, stage: str) -> set[str]:
    uids = {pod["metadata"]["uid"] for pod in running_pods(kube, name, stage)}
    return uids if len(uids) == 2 else set()


@pytest.mark.usefixtures("real_pods")
def test_a_gang_that_crashes_is_tried_again(kube: Kube, backend: BackendKind) -> None:
    name = f"crash-{backend.kind.lower()}"
    kube.apply(two_nodes(name, backend.kind, **kube.behave(crash="sft")))
    kube.wait_phase(name, "Succeeded")
    attempts = kube.stage(name, "sft")["attempts"]
    assert [(entry["number"], entry["state"]) for entry in attempts] == [(1, "Failed"), (2, "Succeeded")]
    assert attempts[0]["exitCode"] == 1
    assert len(children(kube, name, backend.resource)) == 2


@pytest.mark.usefixtures("real_pods")
def test_bad_data_in_a_gang_is_told_in_the_engines_words(kube: Kube, backend: BackendKind) -> None:
    name = f"bad-{backend.kind.lower()}"
    kube.apply(two_nodes(name, backend.kind, **kube.behave(fail="sft")))
    status = kube.wait_phase(name, "Failed")
    (failed,) = [entry for entry in status["conditions"] if entry["type"] == "Failed"]
    assert "there is no model named nobody/nothing." in failed["message"]
    attempts = kube.stage(name, "sft")["attempts"]
    assert [(entry["state"], entry["exitCode"], entry["failure"]) for entry in attempts] == [("Failed", 65, "Config")]
    if backend is JOBSET and not EXTERNAL:
        (child,) = children(kube, name, backend.resource)
        (condition,) = [entry for entry in child["status"]["conditions"] if entry["type"] == backend.failed]
        assert condition["reason"] == backend.final_reason


def test_without_trainjobs_crd_the_blocker_names_what_is_installed(kube: Kube) -> None:
    crd = crd_of(TRAINER.resource)
    if EXTERNAL and is_installed(kube, TRAINER):
        pytest.skip("TrainJob's CRD was there before: deleting it would delete what others run")
    if not EXTERNAL:
        kube.run("kubectl", "delete", "crd", crd, "--cascade=background", "--wait=true")
    try:
        kube.apply(two_nodes("no-trainer", "TrainJob"))
        # The operator may not know yet that the kind is gone; then the API server's refusal shows first.
        blocker = wait_until("the blocker shows", lambda: kube.blocker("no-trainer", "TrainingBackendMissing"))
        assert (blocker["object"], blocker["stage"]) == ("CustomResource/TrainJob", "sft")
        assert "Install Kubeflow Trainer" in blocker["message"]
        installed = ["JobSet", "PyTorchJob"] if is_installed(kube, JOBSET) else ["PyTorchJob"]
        assert f"set training.backend to an installed one: {', '.join(installed)}." in blocker["message"]
    finally:
        if not EXTERNAL:
            kube.run("kubectl", "apply", "--server-side", "-f", str(MANIFESTS / "trainjobs.yaml"))
            kube.wait_condition("Established", f"crd/{crd}")
    # What the blocker advises.
    kube.edit("no-trainer", training={"backend": "PyTorchJob"})
    kube.wait_phase("no-trainer", "Succeeded")
