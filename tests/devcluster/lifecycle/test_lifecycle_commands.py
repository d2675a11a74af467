"""Life cycle of the control plane as a background process, also after it was killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.kubectl_wait import wait_for_condition
from support.patience import LIMIT_S

from wrpo_devcluster import lifecycle
from wrpo_devcluster.__main__ import main
from wrpo_devcluster.config import load_config, save_config
from wrpo_devcluster.lifecycle import LifecycleError
from wrpo_devcluster.ports import PORTS

KUBECTL = Path(__file__).resolve().parents[3] / ".bin" / "kubectl"

JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: slow}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: c
        image: any
        command: [sh, -c, 'echo started; until [ -e GO ]; do sleep 0.05; done; echo finished']
"""


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "dev"
    yield directory
    lifecycle.reset(directory)


def kubectl(state_dir: Path, *arguments: str, given: str | None = None) -> str:
    if not KUBECTL.exists():
        pytest.skip(f"{KUBECTL} is missing; `make tools` unpacks it")
    env = {"KUBECONFIG": str(state_dir / "kubeconfig"), "PATH": os.environ["PATH"], "HOME": str(state_dir.parent)}
    done = subprocess.run(
        [str(KUBECTL), *arguments], input=given, capture_output=True, text=True, env=env, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.cluster
def test_up_is_idempotent_private_and_survives_a_kill_with_its_pods(state_dir: Path) -> None:
    first = lifecycle.up(state_dir)
    assert first.pid is not None
    assert lifecycle.up(state_dir) == first
    # No connection takes it while the control plane is down.
    assert int(first.url.rpartition(":")[2]) in PORTS
    for name in ("kubeconfig", "admin-token"):
        assert stat.S_IMODE((state_dir / name).stat().st_mode) == 0o600
    go = state_dir.parent / "go"
    kubectl(state_dir, "apply", "-f", "-", given=JOB.replace("GO", str(go)))
    wait_for_condition(partial(kubectl, state_dir), "Ready", "pod", "-l", "job-name=slow", timeout_s=LIMIT_S)
    os.kill(first.pid, signal.SIGKILL)
    while lifecycle.status(state_dir).is_running:
        time.sleep(0.01)
    second = lifecycle.up(state_dir)
    assert (second.url, second.pid != first.pid) == (first.url, True)
    go.touch()
    wait_for_condition(partial(kubectl, state_dir), "Complete", "job/slow", timeout_s=LIMIT_S)
    assert kubectl(state_dir, "logs", "job/slow") == "started\nfinished\n"
    assert kubectl(state_dir, "get", "job", "slow", "-o", "jsonpath={.status.failed}") == ""


@pytest.mark.cluster
def test_down_keeps_objects_and_reset_removes_everything(state_dir: Path) -> None:
    lifecycle.up(state_dir, with_crds=())
    kubectl(state_dir, "create", "configmap", "kept", "--from-literal=k=v")
    assert lifecycle.down(state_dir)
    assert not lifecycle.down(state_dir)
    lifecycle.up(state_dir, with_crds=())
    assert kubectl(state_dir, "get", "configmap", "kept", "-o", "jsonpath={.data.k}") == "v"
    lifecycle.reset(state_dir)
    assert not state_dir.exists()


@pytest.mark.cluster
def test_a_control_plane_that_cannot_start_shows_its_log(state_dir: Path) -> None:
    with pytest.raises(LifecycleError, match=r"the control plane exited while it started") as caught:
        lifecycle.up(state_dir, with_crds=("no-such-file",))
    rule = "must be a file, a directory or one of: jobset, pytorchjob, trainjob"
    assert f"--with-crds is 'no-such-file' but {rule}" in str(caught.value)


def test_a_state_directory_belongs_to_one_control_plane(tmp_path: Path) -> None:
    with (
        lifecycle.single_instance(tmp_path),
        pytest.raises(LifecycleError, match="another control plane is using"),
        lifecycle.single_instance(tmp_path),
    ):
        pass


def test_a_configuration_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    config = lifecycle.default_config(tmp_path, cpu="3", gpus=2)
    config = lifecycle.with_images(config, ("worker=python -m worker",))
    save_config(config)
    assert load_config(tmp_path) == config


def test_an_image_without_a_command_is_refused() -> None:
    with pytest.raises(LifecycleError) as caught:
        lifecycle.with_images(lifecycle.default_config(Path()), ("worker",))
    assert str(caught.value) == "--image is 'worker' but must be IMAGE=COMMAND, e.g. worker='python -m worker'"


def test_reset_leaves_what_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    (tmp_path / "volumes" / "ns").mkdir(parents=True)
    lifecycle.reset(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_status_says_when_nothing_runs(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["status", "--state-dir", str(tmp_path)])
    assert (result.exit_code, result.output) == (3, f"not running (state: {tmp_path})\n")
