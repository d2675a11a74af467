"""`make image-test`: build the operator's image and run it against the embedded control plane.

Needs buildah or podman to build, and podman to run. WRPO_BASE_IMAGE names another base image, WRPO_CONTAINER_FLAGS
further flags of `podman run` and WRPO_BUILD_FLAGS of the build, for machines that need them.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGE = "localhost/wrpo/operator:image-test"
READY_S = 60.0
PORT = 18080


def main() -> None:
    builder = shutil.which("buildah") or shutil.which("podman")
    podman = shutil.which("podman")
    if builder is None or podman is None:
        missing = "buildah or podman" if builder is None else "podman"
        sys.exit(f"image-test needs {missing}, which this machine does not have. Nothing was built or tested.")
    build(builder)
    check_contents(podman)
    with tempfile.TemporaryDirectory() as directory:
        run_operator(podman, Path(directory))
    print(f"{IMAGE} was built, runs as 65532 without torch, and is ready on the embedded control plane")


def build(builder: str) -> None:
    """Build from the checkout; the date of the last commit makes repeated builds alike."""
    base = os.environ.get("WRPO_BASE_IMAGE")
    arguments = ["--build-arg", f"BASE_IMAGE={base}"] if base else []
    stamp = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    if stamp:
        arguments += ["--timestamp", stamp]
    extra = shlex.split(os.environ.get("WRPO_BUILD_FLAGS", ""))
    file = "images/operator/Containerfile"
    subprocess.run([builder, "build", *extra, *arguments, "-f", file, "-t", IMAGE, "."], cwd=ROOT, check=True)


def podman_run(podman: str, *arguments: str) -> list[str]:
    return [podman, "run", "--rm", *shlex.split(os.environ.get("WRPO_CONTAINER_FLAGS", "")), *arguments]


def check_contents(podman: str) -> None:
    """Fail unless the image runs as an ordinary user and holds no torch."""
    script = "import importlib.util as u, json, os; print(json.dumps([os.getuid(), u.find_spec('torch') is None]))"
    command = podman_run(podman, "--entrypoint", "python", IMAGE, "-c", script)
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if found != [65532, True]:
        sys.exit(f"user and absence of torch are {found} but must be [65532, true]")


def run_operator(podman: str, directory: Path) -> None:
    """Start the container with the control plane's admin credentials until it is ready."""
    sys.path.insert(0, str(ROOT / "operator"))
    from wrpo_devcluster import lifecycle

    info = lifecycle.up(directory / "cluster")
    try:
        environment = {**os.environ, "KUBECONFIG": str(info.kubeconfig)}
        crd = ["kubectl", "apply", "--server-side", "-f", str(ROOT / "crds" / "wrpoexperiments.wrpo.ai.yaml")]
        subprocess.run(crd, env=environment, check=True)
        # The files belong to this user; the container's is another.
        credentials = directory / "credentials"
        flat = ["kubectl", "config", "view", "--raw", "--flatten"]
        credentials.write_bytes(subprocess.run(flat, env=environment, capture_output=True, check=True).stdout)
        credentials.chmod(0o644)
        directory.chmod(0o755)
        mount = f"{credentials}:/credentials:ro"
        flags = ["--network", "host", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "-v", mount]  # noqa: S108
        arguments = ["run", "--kubeconfig", "/credentials", "--health-port", str(PORT), "--progress-port", "0"]
        process = subprocess.Popen(podman_run(podman, *flags, IMAGE, *arguments))
        try:
            wait_ready(process)
        finally:
            process.terminate()
            process.wait(60)
    finally:
        lifecycle.reset(directory / "cluster")


def wait_ready(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"the operator's container has ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"the operator's container was not ready within {READY_S:g} s")


if __name__ == "__main__":
    main()
