"""The operator as a process of the tests, with the chart's environment and the rights of the chart's ServiceAccount."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from wrpo_operator.cli.install import CHECKOUT

_NOT_HERE = frozenset(
    {
        *("WRPO_PROGRESS_URL", "WRPO_PROGRESS_PORT", "WRPO_PROGRESS_CERT_FILE", "WRPO_PROGRESS_KEY_FILE"),
        *("WRPO_PROGRESS_CA_FILE", "WRPO_HEALTH_PORT", "WRPO_BIND", "WRPO_LOG_FORMAT"),
    }
)
"""What the Deployment says about a pod's network: pods of the cluster do not reach a process of this machine."""


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
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _port: int = field(default=0, init=False)

    def start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
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
        command = [sys.executable, "-m", "wrpo_operator", "run", "--kubeconfig", str(self.kubeconfig)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the operator has ended:\n{self.log()[-4000:]}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self._port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200 and json.load(answer)["ok"])
        except OSError:  # refused, or 503
            return False

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
            self._process = None

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""
