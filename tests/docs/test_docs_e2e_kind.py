"""`make e2e-kind` as far as it goes without containers: what it runs, in which order, what it says without tools."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.patience import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "e2e_kind.py"
STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
case "$(basename "$0") $*" in
    *"{fails}"*) exit 3;;
    *"get nodes"*) echo kind-node;;
    *"get node kind-node"*) echo 8;;
esac
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def run(tmp_path: Path, *flags: str, tools: tuple[str, ...], fails: str = "nothing") -> tuple[int, str]:
    """Run the script where PATH has only stubs of `tools`."""
    tools_dir = tmp_path / "bin"
    tools_dir.mkdir()
    for name in (*tools, "python"):
        stub = tools_dir / name
        stub.write_text(STUB.format(log=tmp_path / "log", fails=fails), encoding="utf-8")
        stub.chmod(0o755)
    (tools_dir / "basename").symlink_to("/usr/bin/basename")
    # The script's own interpreter runs it; what it starts as sys.executable is told apart by its stub.
    program = f"import runpy, sys; sys.executable = {str(tools_dir / 'python')!r}; sys.argv[0] = {str(SCRIPT)!r}; "
    program += f"sys.path.insert(0, {str(SCRIPT.parent)!r}); "
    program += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program, *flags],
        env={"PATH": str(tools_dir), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    return done.returncode, done.stdout + done.stderr


ALL = ("kind", "docker", "kubectl", "helm", "make")


def test_without_kind_and_an_engine_it_names_both_and_the_way_out(tmp_path: Path) -> None:
    code, said = run(tmp_path, tools=("kubectl", "helm"))

    assert code == 69
    assert "e2e-kind: kind, docker (or podman) not found on PATH. Install them (https://kind.sigs.k8s.io" in said
    assert "Without containers, `make e2e` runs the same on an embedded control plane." in said


def test_an_engine_that_does_not_answer_is_named(tmp_path: Path) -> None:
    code, said = run(tmp_path, tools=ALL, fails="docker info")

    assert code == 69
    assert "`docker info` fails: the container engine does not run. Start it." in said


def test_it_makes_a_cluster_runs_everything_on_it_and_deletes_it(tmp_path: Path, log: Path) -> None:
    code, said = run(tmp_path, "--node-image", "kindest/node:v1", tools=ALL)

    assert code == 0, said
    calls = log.read_text().splitlines()
    assert calls[:2] == [
        "docker info",
        "kind create cluster --name wrpo-e2e --wait 180s --image kindest/node:v1",
    ]
    assert calls[-3:] == [
        "make e2e CLUSTER=1 E2E_FLAGS=--pods real",
        "python -m pytest -m cluster tests/e2e",
        "kind delete cluster --name wrpo-e2e",
    ]
    assert any("patch node kind-node --subresource=status" in call for call in calls)
    assert any("patch configmap local-path-config" in call for call in calls)


@pytest.mark.parametrize("fails", ["kind create", "make e2e", "rollout status"])
def test_a_failure_is_told_and_the_cluster_is_deleted(tmp_path: Path, log: Path, fails: str) -> None:
    code, said = run(tmp_path, tools=ALL, fails=fails)

    assert code == 1
    assert "FAILED: " in said
    assert fails in said
    assert "exit code 3" in said
    calls = log.read_text().splitlines()
    assert calls[-1] == "kind delete cluster --name wrpo-e2e"
    assert "python -m pytest -m cluster tests/e2e" not in calls


def test_a_cluster_can_be_kept_and_one_half_chosen(tmp_path: Path, log: Path) -> None:
    code, _ = run(tmp_path, "--keep", "--only", "experiment", tools=ALL)

    assert code == 0
    assert log.read_text().splitlines()[-1] == "make e2e CLUSTER=1 E2E_FLAGS=--pods real"


def test_what_it_calls_exists() -> None:
    planned = subprocess.run(
        ["make", "-n", "e2e-kind", "e2e", "CLUSTER=1", "KIND_FLAGS=--keep"],
        cwd=ROOT, env={**os.environ, "MAKEFLAGS": ""}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "scripts/e2e_kind.py --keep" in planned
    assert "scripts/e2e.py --cluster" in planned
    assert (ROOT / "tests" / "e2e" / "test_e2e_experiments.py").is_file()


def test_the_workflow_runs_it_in_a_fork_without_secrets() -> None:
    text = (ROOT / ".github" / "workflows" / "e2e-kind.yaml").read_text(encoding="utf-8")
    workflow = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506  (a safe loader; `on` stays text)

    assert set(workflow["on"]) == {"workflow_dispatch", "pull_request"}
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in text
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1]["run"].startswith("make e2e-kind ")
    # An input reaches the shell as a variable, not as text of the command.
    assert "${{" not in job["steps"][-1]["run"]
