"""Life cycle of the control plane as a background process, for `wrpo dev up|down|status|reset`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wrpo_devcluster import background, s3_server
from wrpo_devcluster.bootstrap import PRESETS
from wrpo_devcluster.config import ClusterConfig, default_environment, default_node, load_config, save_config
from wrpo_devcluster.kubelet.records import is_running, kill_strays, last_attempt
from wrpo_devcluster.kubelet.shim import start_ticks

DEFAULT_STATE_DIR = Path(".wrpo/dev")
_OWN_ENTRIES = (
    "admin-token",
    "apiserver",
    "bin",
    "cluster.json",
    "control-plane.json",
    "control-plane.log",
    "dns",
    "kubeconfig",
    "lock",
    "pki",
    "pods",
    "port",
    s3_server.DIRECTORY,
    "volumes",
    "warm",
)
START_S = 300.0
"""Seconds that a start may take on a slow machine. A start that fails ends before."""
_STOP_KEEPING_PODS = "keep-pods"


class LifecycleError(Exception):
    """The control plane could not be started or stopped; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Info:
    """A control plane: running or not, and how to reach it."""

    state_dir: Path
    is_running: bool
    pid: int | None
    url: str
    kubeconfig: Path
    log_file: Path
    s3: s3_server.S3Server | None = None
    """Its S3 server, if it has one."""


def default_config(
    state_dir: Path, *, cpu: str | None = None, memory: str | None = None, gpus: int = 0
) -> ClusterConfig:
    """Return the configuration of a cluster of one node: the size of this machine, or the requested one."""
    node = default_node()
    node = replace(node, cpu=cpu or node.cpu, memory=memory or node.memory, gpus=gpus)
    return ClusterConfig(state_dir=state_dir, nodes=(node,), environment=default_environment(os.environ))


def with_images(config: ClusterConfig, choices: tuple[str, ...]) -> ClusterConfig:
    """Add entrypoints given as IMAGE=COMMAND to the configuration."""
    images = dict(config.images)
    for choice in choices:
        image, separator, command = choice.partition("=")
        if not separator or not image or not command.strip():
            raise LifecycleError(f"--image is {choice!r} but must be IMAGE=COMMAND, e.g. worker='python -m worker'")
        images[image] = tuple(shlex.split(command))
    return replace(config, images=images)


def up(  # noqa: PLR0913  # as the options of the command
    state_dir: Path = DEFAULT_STATE_DIR,
    *,
    config: ClusterConfig | None = None,
    with_crds: tuple[str, ...] = tuple(PRESETS),
    s3: bool = False,
    warm: str | None = None,
    timeout_s: float = START_S,
) -> Info:
    """Start the control plane unless it runs, and wait until it is ready.

    `config` replaces the last configuration of the state directory; without either, defaults are used.
    A running control plane is left as it is. With `s3` an S3 server also runs, from then on at every start.
    `warm` replaces that part of the configuration.
    """
    state_dir = state_dir.resolve()
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    current = status(state_dir)
    if s3 or current.s3 is not None:
        try:
            s3_server.up(state_dir, timeout_s=timeout_s)
        except s3_server.S3ServerError as error:
            raise LifecycleError(str(error)) from error
        current = status(state_dir)
    if current.is_running:
        return _wait_ready(current, timeout_s)
    saved = load_config(state_dir)
    if config is None and saved is not None:
        # The checkout or its interpreter may have moved since.
        saved = replace(saved, environment={**saved.environment, **default_environment(os.environ)})
    chosen = replace(config or saved or default_config(state_dir), state_dir=state_dir)
    if warm is not None:
        chosen = replace(chosen, warm=warm)
    save_config(chosen)
    crds = [part for choice in with_crds for part in ("--with-crds", choice)]
    command = [sys.executable, "-m", "wrpo_devcluster", "serve", "--state-dir", str(state_dir), *crds]
    # The package may be found through PYTHONPATH only; the child needs the same.
    own = str(Path(__file__).resolve().parent.parent)
    paths = [own, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    log_file = state_dir / "control-plane.log"
    pid = background.start(command, env=env, log_file=log_file)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if background.has_ended(pid):
            raise LifecycleError(f"the control plane exited while it started.\n{background.log_tail(log_file)}")
        current = status(state_dir)
        if current.is_running:
            return _wait_ready(current, deadline - time.monotonic())
        time.sleep(0.05)
    raise LifecycleError(f"the control plane was not ready after {timeout_s:g} s.\n{background.log_tail(log_file)}")


def down(state_dir: Path = DEFAULT_STATE_DIR, *, keep_pods: bool = False, timeout_s: float = 180.0) -> bool:
    """Stop the control plane, and unless `keep_pods` the pods and the S3 server. Return False if it did not run.

    With `keep_pods` the processes keep running, and the next `up` adopts them.
    """
    state_dir = state_dir.resolve()
    record = _read_record(state_dir)
    runs = record is not None and is_running(int(record["pid"]), int(record["start"]))
    if record is not None and runs:
        flag = state_dir / _STOP_KEEPING_PODS
        if keep_pods:
            flag.touch()
        try:
            background.stop(int(record["pid"]), int(record["start"]), timeout_s=timeout_s)
        finally:
            flag.unlink(missing_ok=True)
    if not keep_pods:
        _kill_pods(state_dir)
        # Last, because pods may save to it when they terminate.
        s3_server.down(state_dir)
    return runs


def status(state_dir: Path = DEFAULT_STATE_DIR) -> Info:
    """Return the state of the control plane of a directory; nothing is started."""
    state_dir = state_dir.resolve()
    record = _read_record(state_dir)
    alive = record is not None and is_running(int(record["pid"]), int(record["start"]))
    return Info(
        state_dir=state_dir,
        is_running=alive,
        pid=int(record["pid"]) if record is not None and alive else None,
        url=str(record["url"]) if record is not None else "",
        kubeconfig=state_dir / "kubeconfig",
        log_file=state_dir / "control-plane.log",
        s3=s3_server.status(state_dir),
    )


def reset(state_dir: Path = DEFAULT_STATE_DIR) -> None:
    """Stop everything and remove all data of the control plane, volumes included."""
    state_dir = state_dir.resolve()
    down(state_dir)
    for name in _OWN_ENTRIES:
        path = state_dir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        # Only if it holds no files of the user.
        state_dir.rmdir()


@contextlib.contextmanager
def single_instance(state_dir: Path) -> Iterator[None]:
    """Lock the state directory. Raises LifecycleError if another control plane uses it."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LifecycleError(
                f"another control plane is using {state_dir}; stop it with `wrpo dev down` or choose another directory"
            ) from error
        yield


def write_record(state_dir: Path, url: str) -> None:
    """Record how others find this process; `serve` calls it when it listens."""
    record = {"pid": os.getpid(), "start": start_ticks(os.getpid()), "url": url}
    path = state_dir / "control-plane.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record), encoding="ascii")
    temporary.replace(path)


def should_keep_pods(state_dir: Path) -> bool:
    """Return whether `down(keep_pods=True)` requested the stop in progress."""
    return (state_dir / _STOP_KEEPING_PODS).exists()


def _read_record(state_dir: Path) -> dict[str, Any] | None:
    try:
        return json.loads((state_dir / "control-plane.json").read_text(encoding="ascii"))  # type: ignore[no-any-return]
    except (FileNotFoundError, ValueError):
        return None


def _wait_ready(info: Info, timeout_s: float) -> Info:
    deadline = time.monotonic() + max(timeout_s, 1.0)
    why = "no answer"
    while time.monotonic() < deadline:
        try:
            context = ssl.create_default_context(cafile=str(info.state_dir / "pki" / "ca.crt"))
            token = (info.state_dir / "admin-token").read_text(encoding="ascii").strip()
            request = urllib.request.Request(f"{info.url}/readyz", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
            )
            with opener.open(request, timeout=5) as response:
                if response.status == 200:
                    return info
        except (OSError, urllib.error.URLError) as error:
            why = str(error)
        if not status(info.state_dir).is_running:
            raise LifecycleError(f"the control plane exited.\n{background.log_tail(info.log_file)}")
        time.sleep(0.05)
    raise LifecycleError(f"the control plane at {info.url} is not ready: {why}.\n{background.log_tail(info.log_file)}")


def _kill_pods(state_dir: Path) -> None:
    """Kill the pods' processes that a killed control plane has left running."""
    pods = state_dir / "pods"
    for pod in pods.iterdir() if pods.is_dir() else ():
        # The supervisors first: without an exit record the next start sees a disruption, not a failure.
        for container in pod.iterdir():
            attempt = last_attempt(container) if container.is_dir() else None
            process = attempt.process() if attempt is not None else None
            if process is not None and process.is_alive():
                os.kill(process.shim_pid, signal.SIGKILL)
        kill_strays(f"{pod.name}/")
