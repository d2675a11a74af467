"""Installation of the chart and application of files with helm and kubectl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

RELEASE = "wrpo"
OPERATOR_NAMESPACE = "wrpo-system"
EMBEDDED_VALUES: Mapping[str, Any] = {"progress": {"tls": {"enabled": False}}}
"""The embedded cluster replaces names of Services by loopback addresses, which no certificate covers."""
CHECKOUT = Path(__file__).resolve().parents[3]


def find_tool(name: str) -> str:
    """Return the path of helm or kubectl, from PATH or from the directory of `make setup`."""
    found = shutil.which(name)
    if found:
        return found
    for directory in (Path.cwd() / ".bin", CHECKOUT / ".bin"):
        if os.access(directory / name, os.X_OK):
            return str(directory / name)
    raise click.ClickException(f"{name} is neither on PATH nor in .bin. Run `make setup` to download it.")


def find_chart() -> Path:
    """Return the directory of the chart: $WRPO_CHART or the checkout's."""
    chart = Path(os.environ.get("WRPO_CHART") or CHECKOUT / "charts" / "wrpo-operator")
    if not (chart / "Chart.yaml").is_file():
        raise click.ClickException(
            f"{chart} contains no chart. Run from a checkout, or set WRPO_CHART to the chart's directory."
        )
    return chart


def run_tool(name: str, *arguments: str, kubeconfig: Path, stdin: str | None = None) -> str:
    """Run helm or kubectl against a cluster; return its output, or raise ClickException with its error output."""
    command = [find_tool(name), *arguments]
    env = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    done = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip()
        raise click.ClickException(f"{name} {' '.join(arguments[:2])} failed:\n{output}")
    return done.stdout


def install_operator(
    kubeconfig: Path,
    *,
    namespace: str = OPERATOR_NAMESPACE,
    release: str = RELEASE,
    values: Mapping[str, Any] | None = None,
    timeout_s: int = 300,
) -> None:
    """Install or upgrade the chart and wait until the operator is ready; idempotent.

    `values` override those for the embedded cluster; set `progress` in them for any other cluster.
    """
    run_tool(
        "helm",
        "upgrade",
        "--install",
        release,
        str(find_chart()),
        "--namespace",
        namespace,
        "--create-namespace",
        "--values",
        "-",
        "--wait",
        "--timeout",
        f"{timeout_s}s",
        kubeconfig=kubeconfig,
        stdin=json.dumps({**EMBEDDED_VALUES, **(values or {})}),
    )


def apply_file(kubeconfig: Path, filename: str, *, namespace: str = "default") -> str:
    """`kubectl apply -f`; return what it printed."""
    return run_tool("kubectl", "apply", "--namespace", namespace, "-f", filename, kubeconfig=kubeconfig)
