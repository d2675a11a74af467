"""A cluster that is not ours: finds out what it has, brings what it lacks, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path

from e2e_support import (
    NAMESPACE,
    OPERATOR,
    RELEASE,
    RUN,
    SYSTEM,
    JsonObject,
    Kube,
    claim,
    make_namespace,
    stand_in_values,
)
from local_operator import LocalOperator
from support.patience import wait_until
from training_controller import TrainingController

from wrpo_operator.cli.install import CHECKOUT, find_chart, find_tool, install_operator

TRAINING_CRD = "pytorchjobs.kubeflow.org"
OWN_CRD = "wrpoexperiments.wrpo.ai"
SWEEP_CRD = "wrposweeps.wrpo.ai"
TRAINING_MANIFEST = CHECKOUT / "operator" / "wrpo_devcluster" / "manifests" / "pytorchjobs.yaml"
VOLUME = f"wrpo-e2e-{RUN}"
PROBE_EXIT = 3
POD_WAIT_S = float(os.environ.get("WRPO_E2E_POD_WAIT_SECONDS", "120"))
CONTROLLER_WAIT_S = 30.0
RESTRICTED_POD: JsonObject = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_FLATTENED = ("config", "view", "--raw", "--minify", "--flatten", "-o", "json")
RESTRICTED: JsonObject = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


class ForeignCluster:
    """What a run makes on the cluster of KUBECONFIG; `remove` undoes it, wherever `prepare` got to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # As kubectl finds it: KUBECONFIG may name several files, or none.
        flattened = subprocess.run(
            [find_tool("kubectl"), *_FLATTENED], check=True, capture_output=True, text=True
        ).stdout
        self.kube = Kube(self._write("admin.kubeconfig", flattened), None)
        self._controller: TrainingController | None = None
        self._installed_crds: list[str] = []
        self._has_volume = False

    def prepare(self) -> Kube:
        kube = self.kube
        make_namespace(kube, SYSTEM, "restricted")
        make_namespace(kube, NAMESPACE, "restricted")
        if not self._exists("crd", TRAINING_CRD):
            self._installed_crds.append(TRAINING_CRD)
            kube.own_training_crd = True
            kube.run("kubectl", "apply", "--server-side", "-f", str(TRAINING_MANIFEST))
            self.kube.wait_condition("Established", f"crd/{TRAINING_CRD}")
        kube.simulated = self._pods_are_simulated()
        self._make_claim()
        if self._training_is_ours():
            self._controller = TrainingController(kube.kubeconfig, NAMESPACE)
            self._controller.start()
        else:
            # The init container that Kubeflow's controller gives to workers is not restricted.
            kube.run("kubectl", "label", "ns", NAMESPACE, "pod-security.kubernetes.io/enforce=baseline", "--overwrite")
        self._install()
        return kube

    # The operator

    def _install(self) -> None:
        values = {**stand_in_values(), "fullnameOverride": OPERATOR}
        if self._exists("crd", OWN_CRD):
            # Someone uses it: their experiments are no business of this operator.
            values |= {"crds": {"install": False}, "mode": "namespaced", "watchNamespace": NAMESPACE}
        else:
            self._installed_crds += [OWN_CRD, SWEEP_CRD]
        image = os.environ.get("WRPO_E2E_OPERATOR_IMAGE")
        if image:
            repository, _, tag = image.rpartition(":")
            values |= {"image": {"repository": repository, "tag": tag}, "progress": {"tls": {"enabled": True}}}
            install_operator(self.kube.kubeconfig, namespace=SYSTEM, release=RELEASE, values=values)
            return
        values["replicas"] = 0
        # Without --wait: helm would wait for a ReplicaSet, which a control plane without that controller never makes.
        command = ("upgrade", "--install", RELEASE, str(find_chart()), "--namespace", SYSTEM, "--values", "-")
        self.kube.run("helm", *command, stdin=json.dumps(values))
        self.kube.wait_condition("Established", f"crd/{OWN_CRD}")
        self.kube.local = self.local_operator("operator-0")
        self.kube.local.start()
        wait_until("the operator is ready", self.kube.local.ready)

    def local_operator(self, identity: str) -> LocalOperator:
        kube = self.kube
        deployment = json.loads(kube.run("kubectl", "-n", SYSTEM, "get", "deployment", OPERATOR, "-o", "json"))
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        env = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        log_file = self._directory / f"{identity}.log"
        image = os.environ.get("WRPO_E2E_OPERATOR_CONTAINER", "")
        return LocalOperator(self._credentials(), env, SYSTEM, identity, log_file, image)

    def _credentials(self) -> Path:
        """Write a kubeconfig of the chart's ServiceAccount: what its roles do not grant is refused."""
        kube = self.kube
        token = kube.run("kubectl", "-n", SYSTEM, "create", "token", OPERATOR, "--duration=4h").strip()
        config = json.loads(kube.run("kubectl", *_FLATTENED))
        config["users"] = [{"name": "operator", "user": {"token": token}}]
        for context in config["contexts"]:
            context["context"]["user"] = "operator"
        return self._write("operator.kubeconfig", json.dumps(config))

    def _write(self, name: str, text: str) -> Path:
        path = self._directory / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        return path

    # What the cluster has

    def _pods_are_simulated(self) -> bool:
        chosen = os.environ.get("WRPO_E2E_PODS", "")
        if chosen:
            assert chosen in {"real", "simulated"}, f"WRPO_E2E_PODS is {chosen!r} but must be real or simulated"
            return chosen == "simulated"
        kube = self.kube
        account: JsonObject = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "probe"}}
        kube.apply(account)
        wait_until("a probe pod is admitted", lambda: "created" in self._create(_probe_pod()), every_s=1)
        deadline = time.monotonic() + POD_WAIT_S
        code: int | None = None
        while code is None and time.monotonic() < deadline:
            status = kube.get("pod", "probe").get("status") or {}
            states = [entry.get("state") or {} for entry in status.get("containerStatuses") or []]
            ended = [state["terminated"] for state in states if state.get("terminated")]
            code = int(ended[0]["exitCode"]) if ended else None
            time.sleep(0.5)
        kube.kubectl("delete", "pod", "probe", "--wait=false", "--grace-period=0", "--force", check=False)
        return code != PROBE_EXIT

    def _training_is_ours(self) -> bool:
        """Tell whether no controller of PyTorchJobs is there: nobody takes note of a new, suspended one."""
        if os.environ.get("WRPO_E2E_PYTORCHJOB") == "ours" or self.kube.own_training_crd:
            return True
        self.kube.apply(_probe_job())
        deadline = time.monotonic() + CONTROLLER_WAIT_S
        noticed = False
        while not noticed and time.monotonic() < deadline:
            noticed = bool((self.kube.get(TRAINING_CRD, "probe").get("status") or {}).get("conditions"))
            time.sleep(0.5)
        self.kube.kubectl("delete", TRAINING_CRD, "probe", "--cascade=background", "--wait=false")
        return not noticed

    def _make_claim(self) -> None:
        """Make the claim of all experiments. Nobody may be there to bind it, and simulated pods need no more."""
        kube = self.kube
        if not kube.simulated:
            storage = os.environ.get("WRPO_E2E_STORAGE_CLASS")
            kube.apply(claim(**({"storageClassName": storage} if storage else {})))
            return
        kube.apply(claim(storageClassName="", volumeName=VOLUME))
        made = kube.get("pvc", "artifacts")
        self._has_volume = True
        kube.apply(_volume(made))
        with contextlib.suppress(AssertionError):
            wait_until("the claim is bound", self._claim_is_bound, timeout_s=10)
        if not self._claim_is_bound():
            kube.kubectl("annotate", "pvc", "artifacts", "pv.kubernetes.io/bind-completed=yes", "--overwrite")
            status = {"phase": "Bound", "accessModes": ["ReadWriteMany"], "capacity": {"storage": "1Gi"}}
            patch = json.dumps({"status": status})
            kube.kubectl("patch", "pvc", "artifacts", "--subresource=status", "--type=merge", "-p", patch)

    def _claim_is_bound(self) -> bool:
        return bool((self.kube.get("pvc", "artifacts").get("status") or {}).get("phase") == "Bound")

    def _create(self, body: JsonObject) -> str:
        return self.kube.kubectl("create", "-f", "-", stdin=json.dumps(body), check=False)

    def _exists(self, kind: str, name: str) -> bool:
        return bool(self.kube.run("kubectl", "get", kind, name, "--ignore-not-found", "-o", "name").strip())

    # Leaving

    def remove(self) -> None:
        """Remove all that was made; what hangs is told, not waited for without end."""
        kube = self.kube
        if kube.local is not None:
            kube.local.stop()
        for name in (NAMESPACE, SYSTEM):
            if name == SYSTEM:
                # Before its namespace: the release's record lies in there, and the roles do not.
                kube.run("helm", "uninstall", RELEASE, "-n", SYSTEM, check=False)
            flags = ("--ignore-not-found", "--cascade=background", "--wait=false")
            kube.run("kubectl", "delete", "namespace", name, *flags, check=False)
        if self._controller is not None:
            self._controller.stop()
        with contextlib.suppress(AssertionError):
            wait_until("the namespaces are gone", self._namespaces_gone, timeout_s=45, every_s=1)
        if not self._namespaces_gone():
            self._unstick()
        for crd in self._installed_crds:
            kube.run("kubectl", "delete", "crd", crd, "--ignore-not-found", "--wait=false", check=False)
        if self._has_volume:
            kube.run("kubectl", "delete", "pv", VOLUME, "--ignore-not-found", "--wait=false", check=False)
            # Its finalizer is a controller's that may not run.
            self._drop_finalizers("pv", VOLUME)
        wait_until("the namespaces are gone", self._namespaces_gone, every_s=1)

    def _namespaces_gone(self) -> bool:
        return not any(self._exists("namespace", name) for name in (NAMESPACE, SYSTEM))

    def _unstick(self) -> None:
        """Do what a kubelet and the claim-protection controller would, where they do not run."""
        self._drop_finalizers("-n", NAMESPACE, "pvc", "artifacts")
        for name in (NAMESPACE, SYSTEM):
            flags = ("--all", "--force", "--grace-period=0", "--wait=false")
            self.kube.run("kubectl", "-n", name, "delete", "pods", *flags, check=False)

    def _drop_finalizers(self, *what: str) -> None:
        self.kube.run("kubectl", "patch", *what, "--type=merge", "-p", '{"metadata":{"finalizers":null}}', check=False)


def _probe_pod() -> JsonObject:
    image = os.environ.get("WRPO_E2E_IMAGE", "python:3.11-slim")
    container = {
        "name": "probe",
        "image": image,
        "command": ["python", "-c", f"raise SystemExit({PROBE_EXIT})"],
        "securityContext": RESTRICTED,
    }
    spec = {
        "serviceAccountName": "probe",
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "securityContext": RESTRICTED_POD,
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec}


def _probe_job() -> JsonObject:
    container = {"name": "pytorch", "image": "none", "securityContext": RESTRICTED}
    template = {"spec": {"securityContext": RESTRICTED_POD, "containers": [container]}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "probe"},
        "spec": {
            "runPolicy": {"suspend": True},
            "pytorchReplicaSpecs": {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}},
        },
    }


def _volume(made: JsonObject) -> JsonObject:
    reference = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": NAMESPACE, "name": "artifacts"}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": VOLUME, "labels": {"wrpo.ai/e2e-run": RUN}},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {**reference, "uid": made["metadata"]["uid"]},
            # Nothing mounts it: simulated pods run no container.
            "nfs": {"server": "127.0.0.1", "path": "/nothing"},
        },
    }
