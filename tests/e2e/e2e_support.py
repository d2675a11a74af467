"""Driving a cluster under test with the real kubectl and helm, and the experiments that are run on it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from local_operator import LocalOperator
from support.kubectl_wait import wait_for_condition
from support.patience import LIMIT_S, wait_until

from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.backends import BACKENDS
from wrpo_operator.cli.install import CHECKOUT, find_tool

JsonObject = dict[str, Any]
EXTERNAL = os.environ.get("WRPO_E2E_CLUSTER") == "1"
RUN = f"r{secrets.token_hex(3)}"
"""In every name of this run, so that two runs on one cluster do not meet. A letter first: 3786e2 is a number."""
NAMESPACE = f"wrpo-e2e-{RUN}"
SYSTEM = f"wrpo-e2e-{RUN}-system"
RELEASE = f"wrpo-e2e-{RUN}" if EXTERNAL else "wrpo"
OPERATOR = RELEASE if EXTERNAL else "wrpo-operator"
"""Name of the chart's Deployment, ServiceAccount and roles."""
FOREVER_S = 60
HELD_ELSEWHERE_S = 20
OPERATOR_PODS = "app.kubernetes.io/name=wrpo-operator"
ON_CPU: JsonObject = {"limits": {"nvidia.com/gpu": 0}}
STAND_IN = (Path(__file__).parent / "stand_in.py").read_text(encoding="utf-8")


@dataclass
class Kube:
    """kubectl and helm against the cluster under test."""

    kubeconfig: Path
    state_dir: Path | None
    local: LocalOperator | None = None
    """The operator where it is a process of the tests; None where the Deployment runs it."""
    simulated: bool = False
    """Pods follow fake.test/ annotations and run no image."""
    own_training_crd: bool = False
    """This run has installed PyTorchJob's CRD."""

    def run(self, tool: str, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        env = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        done = subprocess.run(
            [find_tool(tool), *arguments],
            env=env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT_S,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{tool} {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout + ("" if check else done.stderr)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self.run("kubectl", "-n", NAMESPACE, *arguments, stdin=stdin, check=check)

    def wait_condition(self, condition: str, *what: str) -> None:
        """Wait until an object of the experiments' namespace, or of none, has a condition."""
        wait_for_condition(self.kubectl, condition, *what, timeout_s=LIMIT_S)

    def apply(self, *objects: JsonObject, server_side: bool = False) -> str:
        flags = ["--server-side", "--force-conflicts"] if server_side else []
        return self.kubectl("apply", *flags, "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str) -> JsonObject:
        found: JsonObject = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def list(self, kind: str, selector: str = "") -> Sequence[JsonObject]:
        answer: JsonObject = json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json"))
        return list(answer["items"])

    def experiment(self, name: str) -> JsonObject:
        return self.get("wrpoexperiments.wrpo.ai", name)

    def status(self, name: str) -> JsonObject:
        return self.experiment(name).get("status") or {}

    def stage(self, name: str, stage: str) -> JsonObject:
        stages = self.status(name).get("stages", [])
        return next((entry for entry in stages if entry["name"] == stage), {})

    def blocker(self, name: str, reason: str) -> JsonObject | None:
        """Return what blocks an experiment for a reason. Others may show before it."""
        return next((entry for entry in self.status(name).get("blockers") or [] if entry["reason"] == reason), None)

    def children(self, name: str, backend: str = "PyTorchJob") -> Sequence[JsonObject]:
        """Return the Jobs and the training backend's children of an experiment."""
        selector, resource = f"wrpo.ai/experiment={name}", BACKENDS[backend].resource
        return [*self.list("jobs", selector), *self.list(f"{resource.plural}.{resource.group}", selector)]

    def wait_phase(self, name: str, phase: str, timeout_s: float = LIMIT_S) -> JsonObject:
        def reached() -> JsonObject | None:
            obj = self.experiment(name)
            status = obj.get("status") or {}
            current = status.get("observedGeneration") == obj["metadata"]["generation"]
            return status if current and status.get("phase") == phase else None

        try:
            found: JsonObject = wait_until(f"{name} is {phase}", reached, timeout_s=timeout_s)
        except AssertionError as error:
            described = self.kubectl("describe", "wrpoexperiment", name, check=False)
            raise AssertionError(f"{error}\n{described}\n{self.operator_log()[-4000:]}") from None
        return found

    def wait_stage(self, name: str, stage: str, state: str) -> JsonObject:
        def reached() -> JsonObject | None:
            entry = self.stage(name, stage)
            return entry if entry.get("state") == state else None

        try:
            found: JsonObject = wait_until(f"{stage} of {name} is {state}", reached)
        except AssertionError as error:
            described = self.kubectl("describe", "wrpoexperiment", name, check=False)
            raise AssertionError(f"{error}\n{described}\n{self.operator_log()[-4000:]}") from None
        return found

    def behave(self, *, hold: str = "", slow: str = "", fail: str = "", crash: str = "") -> JsonObject:
        """Return the part of a spec that makes stages slow ("sft:6", seconds), fail for good, or crash.

        The stand-in does so in the stage named, and crashes once. Simulated pods do so in every stage, and every time,
        because all stages share one template: see `first`. There, a minute means for ever.

        `hold` ("sft:NAME") keeps a stage running until `release(NAME)`, so that no speed of the machine decides whether
        a test sees it run. Where the tests do not share the pods' volume, it is slow for HELD_ELSEWHERE_S instead.
        """
        stage, _, _ = hold.partition(":")
        if hold and (self.simulated or self.state_dir is None):
            hold, slow = "", f"{stage}:{HELD_ELSEWHERE_S}"
        if self.simulated:
            stage, _, seconds = slow.partition(":")
            wanted = {
                "run-seconds": ("forever" if float(seconds) >= FOREVER_S else seconds) if stage else "",
                "exit-code": "65" if fail else "1" if crash else "",
            }
            return simulate(**{key: value for key, value in wanted.items() if value})
        variables = {"STANDIN_HOLD": hold, "STANDIN_SLOW": slow, "STANDIN_FAIL": fail, "STANDIN_CRASH": crash}
        return {"env": [{"name": name, "value": value} for name, value in variables.items() if value]}

    def release(self, name: str) -> None:
        """Let the stage end that `behave(hold="STAGE:NAME")` holds."""
        if self.state_dir is not None and not self.simulated:
            released = self._claim_directory() / "released"
            released.mkdir(exist_ok=True)
            (released / name).touch()

    def first(self, stage: str) -> str:
        """Return the stage that shows what `behave` asks of `stage`: simulated, the experiment gets no further."""
        return "prepare" if self.simulated else stage

    def edit(self, name: str, **spec: Any) -> None:
        """Merge fields into an experiment's spec."""
        self.kubectl("patch", "wrpoexperiment", name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def operator_log(self) -> str:
        if self.local is not None:
            return self.local.log()
        return self.run("kubectl", "-n", SYSTEM, "logs", f"deployment/{OPERATOR}", "--tail=-1", check=False)

    def operator_pod(self) -> JsonObject:
        answer = json.loads(self.run("kubectl", "-n", SYSTEM, "get", "pods", "-l", OPERATOR_PODS, "-o", "json"))
        (pod,) = [pod for pod in answer["items"] if not pod["metadata"].get("deletionTimestamp")]
        found: JsonObject = pod
        return found

    def operator_ready(self) -> bool:
        if self.local is not None:
            return self.local.ready()
        statuses = self.operator_pod().get("status", {}).get("containerStatuses") or [{}]
        return bool(statuses[0].get("ready"))

    def restarts(self) -> int:
        return int(self.operator_pod()["status"]["containerStatuses"][0]["restartCount"])

    def kill_operator(self) -> None:
        """End the operator without warning; as its Deployment does, start it anew."""
        if self.local is not None:
            self.local.kill()
            self.local.start()
            return
        if self.state_dir is None:
            name = self.operator_pod()["metadata"]["name"]
            self.run("kubectl", "-n", SYSTEM, "delete", "pod", name, "--grace-period=0", "--force")
            return
        own = str(self.state_dir).encode()
        killed = 0
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(process.name)
                is_operator = b"wrpo_operator\0run" in (process / "cmdline").read_bytes()
                if is_operator and own in (process / "environ").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        assert killed, "no operator process was found"

    def runs_of(self, experiment: str, stage: str) -> int:
        """How often the stage's artifact was really computed (embedded cluster only)."""
        entry = self.stage(experiment, stage)
        return int((self._claim_directory() / stage / entry["hash"] / "runs").read_text())

    def _claim_directory(self) -> Path:
        """Return the directory of the claim of all experiments (embedded cluster only)."""
        from wrpo_devcluster.controllers.volumes import claim_directory

        assert self.state_dir is not None
        return claim_directory(self.state_dir, NAMESPACE, "artifacts")


def simulate(**annotations: str) -> JsonObject:
    """Return the part of a spec that tells simulated pods what to do, e.g. `run_seconds="5"`."""
    named = {f"fake.test/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return {"podTemplate": {"metadata": {"annotations": named}}} if named else {}


def experiment(name: str, *, short: bool = True, **spec: Any) -> JsonObject:
    """Return an experiment; `short` ends after SFT. Its artifacts are its own unless a `reuse` is given.

    Its stages run on the CPU as the spec says, so that no stage inspects models.
    """
    whole: JsonObject = {
        "target": {"model": "org/target"},
        "sources": [{"name": "a", "model": "org/a"}],
        "prompts": {"dataset": "org/prompts"},
        "reward": {"model": "org/reward"},
        "storage": {"volume": {"claimName": "artifacts"}},
        "reuse": {"salt": name},
        "retries": {"limit": 2, "backoffSeconds": 1},
    }
    if short:
        whole |= {"training": {"objective": "SFTOnly"}, "evaluation": {"enabled": False}, "report": {"enabled": False}}
    whole |= spec
    whole["training"] = {"gpusPerNode": 0} | whole.get("training", {})
    whole["resources"] = dict.fromkeys(("sample", "score", "evaluate"), ON_CPU) | whole.get("resources", {})
    return {
        "apiVersion": "wrpo.ai/v1alpha1",
        "kind": "WRPOExperiment",
        "metadata": {"name": name},
        "spec": whole,
    }


def stand_in_values() -> JsonObject:
    """Return values of the chart with which stages run the stand-in."""
    image = os.environ.get("WRPO_E2E_IMAGE", "python:3.11-slim")
    command = shlex.split(os.environ.get("WRPO_E2E_COMMAND", "")) or ["python", "-c", STAND_IN, "/etc/wrpo/stage.json"]
    return {
        "stageCommandOverrides": {kind: {"image": image, "command": command} for kind in STAGES},
        "auditSeconds": 15,
        "logLevel": "info",
    }


def make_namespace(kube: Kube, name: str, level: str) -> None:
    """Make a namespace that admits pods of a pod security level only."""
    labels = {"pod-security.kubernetes.io/enforce": level, "wrpo.ai/e2e-run": RUN}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    kube.run("kubectl", "create", "-f", "-", stdin=json.dumps(body))


@contextlib.contextmanager
def simulated_cluster(directory: Path) -> Iterator[Kube]:
    """An embedded cluster with simulated pods and CRDs but no chart: operators are processes of the test."""
    from wrpo_devcluster import lifecycle
    from wrpo_devcluster.config import simulated_config

    state_dir = directory / "cluster"
    config = simulated_config(state_dir, cpu="32", memory="128Gi", gpus=8)
    try:
        kube = Kube(lifecycle.up(state_dir, config=config).kubeconfig, state_dir, simulated=True)
        kube.run("kubectl", "apply", "--server-side", "-f", str(CHECKOUT / "crds" / "wrpoexperiments.wrpo.ai.yaml"))
        kube.wait_condition("Established", "crd/wrpoexperiments.wrpo.ai")
        make_namespace(kube, NAMESPACE, "restricted")
        kube.apply(claim())
        yield kube
    finally:
        lifecycle.reset(state_dir)


def break_api(kube: Kube, **command: Any) -> None:
    """Inject a fault into the embedded cluster."""
    kube.run("kubectl", "create", "--raw", "/devcluster/faults", "-f", "-", stdin=json.dumps(command))


def claim(**spec: Any) -> JsonObject:
    """Return the claim of all experiments."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "artifacts"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}, **spec},
    }
