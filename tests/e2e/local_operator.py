"""The operator as a process of the tests, with the chart's environment and the rights of the chart's ServiceAccount.

Given an image, the process is podman, which runs the operator from it.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from support.patience import LIMIT_S

from wrpo_devcluster.ports import free_ports
from wrpo_operator.cli.install import CHECKOUT

_NOT_HERE = frozenset(
    {
        *("WRPO_PROGRESS_URL", "WRPO_PROGRESS_PORT", "WRPO_PROGRESS_CERT_FILE", "WRPO_PROGRESS_KEY_FILE"),
        *("WRPO_PROGRESS_CA_FILE", "WRPO_HEALTH_PORT", "WRPO_BIND", "WRPO_LOG_FORMAT"),
    }
)
"""What the Deployment says about a pod's network: pods of the cluster do not reach a process of this machine."""
CONTAINER_FLAGS = (
    *("--network", "host", "--read-only", "--tmpfs", "/tmp:mode=1777"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--env", "WRPO_*", "--env", "WATCH_*", "--env", "POD_*"),
)
"""What the chart's Deployment asks of a pod; the network is this machine's."""


def podman_run(*arguments: str) -> list[str]:
    """Return a command of podman's that fetches nothing and leaves nothing behind.

    podman asks for more open files and processes than some machines may give. WRPO_CONTAINER_FLAGS holds further flags.
    """
    own = ["--rm", "--pull", "never", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
    return ["podman", "run", *own, *shlex.split(os.environ.get("WRPO_CONTAINER_FLAGS", "")), *arguments]


@dataclass
class LocalOperator:
    """One operator; started anew it has the same identity, as a restarted container has."""

    kubeconfig: Path
    """Credentials of the operator's ServiceAccount."""
    chart_env: dict[str, str]
    """The literal variables of the chart's Deployment."""
    namespace: str
    identity: str
    log_file: Path
    image: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _port: int = field(default=0, init=False)
    _container: str = field(default="", init=False)

    def start(self) -> None:
        (self._port,) = free_ports(1)
        passed = {k: v for k, v in os.environ.items() if not k.startswith(("WRPO_", "KUBE", "WATCH_", "POD_"))}
        chart = {name: value for name, value in self.chart_env.items() if name not in _NOT_HERE}
        env = {
            **passed,
            **chart,
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "operator")]),
            "PYTHONUNBUFFERED": "1",
            "POD_NAMESPACE": self.namespace,
            "POD_NAME": self.identity,
            "WRPO_BIND": "127.0.0.1",
            "WRPO_HEALTH_PORT": str(self._port),
            "WRPO_PROGRESS_PORT": "0",
        }
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(self._command(), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _command(self) -> list[str]:
        if not self.image:
            return [sys.executable, "-m", "wrpo_operator", "run", "--kubeconfig", str(self.kubeconfig)]
        self._container = f"wrpo-operator-{secrets.token_hex(4)}"
        # Read by the container's user. On this machine the directory it lies in is closed to others.
        self.kubeconfig.chmod(0o644)
        mount = ("--volume", f"{self.kubeconfig}:/kubeconfig:ro")
        flags = ("--name", self._container, *CONTAINER_FLAGS, *mount)
        return podman_run(*flags, self.image, "run", "--kubeconfig", "/kubeconfig")

    def ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the operator has ended:\n{self.log()[-4000:]}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self._port}/readyz", timeout=LIMIT_S) as answer:
                return bool(answer.status == 200 and json.load(answer)["ok"])
        except OSError:  # refused, or 503
            return False

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            if self._container:
                # podman killed would leave its container running.
                subprocess.run(["podman", "kill", self._container], capture_output=True, check=False)
            else:
                self._process.kill()
            self._process.wait(LIMIT_S)
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""
