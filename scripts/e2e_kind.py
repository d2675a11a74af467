"""The end-to-end tests on a real control plane in containers: a kind cluster made for them, and removed again.

    make e2e-kind                                         needs kind, kubectl, helm, and docker or podman
    make e2e-kind KIND_FLAGS="--keep --node-image kindest/node:v1.34.0"

Makes a cluster of one node that says it has GPUs, runs `make e2e CLUSTER=1` and the cluster tests
(WRPO_E2E_CLUSTER=1) against it, and deletes it, also after a failure or Ctrl-C. The exit code is 0 if all passed, 1 if
not, 69 if a tool is missing, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from e2e_console import raise_on_signals, say

ROOT = Path(__file__).resolve().parents[1]
GPUS = 8
ENGINES = ("docker", "podman")
UNAVAILABLE = 69
NODE_WAIT = "180s"
GPU_WAIT_S = 60.0
# The claim of the tests is shared by pods, which kind's provisioner allows on a file system that all nodes share: its
# only node's.
SHARED_STORAGE = {"nodePathMap": [], "sharedFileSystemPath": "/var/local-path-provisioner"}
PROVISIONER = ("-n", "local-path-storage")


class MissingToolError(Exception):
    """Something that has to be installed is not; the message names it and what to do."""


def main() -> int:
    """Run the tests on a new cluster, remove it, and return the exit code, which the text above describes."""
    flags = parse_flags()
    raise_on_signals()
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(ROOT / ".bin")])
    try:
        engine = find_engine()
    except MissingToolError as problem:
        say(f"e2e-kind: {problem}")
        return UNAVAILABLE
    if engine == "podman":
        os.environ["KIND_EXPERIMENTAL_PROVIDER"] = "podman"
    with tempfile.TemporaryDirectory(prefix="wrpo-kind-") as directory:
        os.environ["KUBECONFIG"] = str(Path(directory) / "kubeconfig")
        try:
            run_tests(flags)
        except KeyboardInterrupt:
            return 130
        except subprocess.CalledProcessError as failure:
            say(f"FAILED: {' '.join(failure.cmd)}: exit code {failure.returncode}")
            return 1
        finally:
            if not flags.keep:
                delete = ["kind", "delete", "cluster", "--name", flags.name]
                subprocess.run(delete, check=False, cwd=ROOT)
    say("passed")
    return 0


def parse_flags() -> argparse.Namespace:
    """Return the flags of the command line; exit with code 2 if they are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="wrpo-e2e", help="name of the kind cluster")
    parser.add_argument("--node-image", help="image of the node, which chooses the version of Kubernetes")
    parser.add_argument("--keep", action="store_true", help="leave the cluster when done")
    parser.add_argument("--only", choices=["experiment", "suite"], help="run one half of the tests")
    return parser.parse_args()


def find_engine() -> str:
    """Return a container engine that works; raise if a tool is missing."""
    missing = [name for name in ("kind", "kubectl", "helm") if shutil.which(name) is None]
    found = [name for name in ENGINES if shutil.which(name) is not None]
    if not found:
        missing.append("docker (or podman)")
    remedy = "Without containers, `make e2e` runs the same on an embedded control plane."
    if missing:
        raise MissingToolError(
            f"{', '.join(missing)} not found on PATH. Install them (https://kind.sigs.k8s.io, and `make setup` for"
            f" kubectl and helm). {remedy}"
        )
    for name in found:
        if subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return name
    raise MissingToolError(f"`{found[0]} info` fails: the container engine does not run. Start it. {remedy}")


def run_tests(flags: argparse.Namespace) -> None:
    """Make the cluster, prepare its node and run the tests on it."""
    image = ["--image", flags.node_image] if flags.node_image else []
    call("kind", "create", "cluster", "--name", flags.name, "--wait", NODE_WAIT, *image)
    share_storage()
    pretend_gpus()
    pods = {"WRPO_E2E_PODS": "real", "WRPO_E2E_CLUSTER": "1"}
    if flags.only != "suite":
        call("make", "e2e", "CLUSTER=1", "E2E_FLAGS=--pods real")
    if flags.only != "experiment":
        call(sys.executable, "-m", "pytest", "-m", "cluster", "tests/e2e", env=pods)


def share_storage() -> None:
    """Let claims be ReadWriteMany."""
    patch = {"data": {"config.json": json.dumps(SHARED_STORAGE)}}
    call("kubectl", *PROVISIONER, "patch", "configmap", "local-path-config", "--type=merge", "-p", json.dumps(patch))
    call("kubectl", *PROVISIONER, "rollout", "restart", "deployment/local-path-provisioner")
    call("kubectl", *PROVISIONER, "rollout", "status", "deployment/local-path-provisioner", "--timeout=120s")


def pretend_gpus() -> None:
    """Advertise GPUs that the stand-in stages ask for and do not use."""
    node = output("kubectl", "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
    amounts = {"capacity": {"nvidia.com/gpu": str(GPUS)}, "allocatable": {"nvidia.com/gpu": str(GPUS)}}
    patch = json.dumps({"status": amounts})
    call("kubectl", "patch", "node", node, "--subresource=status", "--type=merge", "-p", patch)
    # The kubelet writes the same status: only what it leaves as it is will be scheduled on.
    deadline = time.monotonic() + GPU_WAIT_S
    while output("kubectl", "get", "node", node, "-o", r"jsonpath={.status.allocatable.nvidia\.com/gpu}") != str(GPUS):
        if time.monotonic() > deadline:
            raise subprocess.CalledProcessError(1, ["kubectl", "get", "node", node])
        time.sleep(1)


def call(*command: str, env: dict[str, str] | None = None) -> None:
    """Print and run a command with `env` added to the environment; CalledProcessError if it fails."""
    say(f"$ {' '.join(command)}")
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **(env or {})})


def output(*command: str) -> str:
    """Return the stripped standard output of a command; CalledProcessError if it fails."""
    return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
