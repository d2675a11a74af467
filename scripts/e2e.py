"""One whole experiment through the chart and the operator, from `helm install` to the last stage.

    make e2e                                              on a new embedded control plane
    make e2e CLUSTER=1 KUBECONFIG=~/.kube/config          on an existing cluster

On an existing cluster it creates two namespaces with a random suffix that admit only `restricted` pods. It installs the
chart in namespaced mode, and missing CRDs and controllers of PyTorchJobs. It runs an experiment with stand-ins for the
engine, checks status, children and deletion, and removes everything that it created, even after a failure or Ctrl-C.
The exit code is 0 on success, 1 on failure, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from e2e_console import raise_on_signals, say

if TYPE_CHECKING:
    from e2e_foreign import ForeignCluster
    from e2e_support import Kube

ROOT = Path(__file__).resolve().parents[1]
OWN_CRD = "wrpoexperiments.wrpo.ai"
SWEEP_CRD = "wrposweeps.wrpo.ai"
"""Installed by the chart."""
NAME = "whole"
POLL_S = 0.5
CRD_STATUS_DELAY_S = 2.0
"""Of the embedded control plane, which is to be as slow as real ones here."""


class CheckError(Exception):
    """Something is not as it should be; the message says what."""


def main() -> int:
    """Run the experiment once and return the exit code, which the text above describes."""
    flags = parse_flags()
    began = time.monotonic()
    raise_on_signals()
    try:
        with tempfile.TemporaryDirectory(prefix="wrpo-e2e-") as name, control_plane(flags, Path(name)):
            choose(flags)
            with Trial(Path(name)) as trial:
                trial.run(flags.timeout)
    except KeyboardInterrupt:
        say("interrupted; everything this run made was removed")
        return 130
    except (CheckError, AssertionError) as error:
        say(f"FAILED: {error}")
        return 1
    say(f"passed in {time.monotonic() - began:.0f} s")
    return 0


def parse_flags() -> argparse.Namespace:
    """Return the flags of the command line; exit with code 2 if they are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", action="store_true", help="use KUBECONFIG's cluster instead of an embedded one")
    parser.add_argument("--operator-image", metavar="REPOSITORY:TAG", help="run the operator in the cluster, from this")
    parser.add_argument("--operator-container", metavar="IMAGE", help="run the operator here, from this, with podman")
    parser.add_argument("--image", help="image of the stand-in stages; default python:3.11-slim")
    parser.add_argument("--command", help="their command line; default: tests/e2e/stand_in.py, which needs `python`")
    parser.add_argument("--pods", choices=["real", "simulated"], help="whether containers run; default: a pod decides")
    parser.add_argument("--storage-class", help="storage class of the claim, for pods that run")
    parser.add_argument("--timeout", type=float, default=900, help="seconds the experiment may take")
    return parser.parse_args()


def choose(flags: argparse.Namespace) -> None:
    """Pass the choices on to the modules of tests/e2e, which read them from the environment when they are imported."""
    os.environ["WRPO_E2E_CLUSTER"] = "1"
    chosen = {
        "WRPO_E2E_OPERATOR_IMAGE": flags.operator_image,
        "WRPO_E2E_OPERATOR_CONTAINER": flags.operator_container,
        "WRPO_E2E_IMAGE": flags.image,
        "WRPO_E2E_COMMAND": flags.command,
        "WRPO_E2E_PODS": flags.pods,
        "WRPO_E2E_STORAGE_CLASS": flags.storage_class,
    }
    os.environ.update({name: value for name, value in chosen.items() if value})
    sys.path[:0] = [str(ROOT / "operator"), str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "e2e")]


@contextlib.contextmanager
def control_plane(flags: argparse.Namespace, directory: Path) -> Iterator[None]:
    """Start an embedded control plane unless a cluster is given, and remove it again."""
    if flags.cluster:
        yield
        return
    sys.path[:0] = [str(ROOT / "operator"), str(ROOT)]
    from dataclasses import replace

    from wrpo_devcluster import lifecycle

    state_dir = directory / "cluster"
    # Without its PyTorchJob controller, whose init container `restricted` forbids: the run brings its own.
    config = replace(
        lifecycle.default_config(state_dir, gpus=8),
        without_controllers=("pytorchjob-controller",),
        crd_status_delay_s=CRD_STATUS_DELAY_S,
    )
    if flags.pods == "simulated":
        config = replace(config, simulated=True)
    say("starting an embedded control plane")
    try:
        os.environ["KUBECONFIG"] = str(lifecycle.up(state_dir, config=config, with_crds=()).kubeconfig)
        yield
    finally:
        lifecycle.reset(state_dir)


class Trial:
    """The installation and the experiment; leaving it removes both, even after an error."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cluster: ForeignCluster | None = None
        self._has_made_crd = False

    def __enter__(self) -> Self:
        from e2e_foreign import ForeignCluster

        self._cluster = ForeignCluster(self._directory)
        return self

    def run(self, timeout_s: float) -> None:
        """Install the chart, then run, check and delete the experiment.

        Raise CheckError if a check fails, or if the experiment has not ended after `timeout_s` seconds.
        """
        from e2e_support import NAMESPACE, SYSTEM, experiment

        assert self._cluster is not None
        kube = self._cluster.kube
        # The chart is installed in namespaced mode where the CRD is there already.
        if not kube.run("kubectl", "get", "crd", OWN_CRD, "--ignore-not-found", "-o", "name").strip():
            self._has_made_crd = True
            kube.run("kubectl", "apply", "--server-side", "-f", str(ROOT / "crds" / f"{OWN_CRD}.yaml"))
            kube.wait_condition("Established", f"crd/{OWN_CRD}")
        say(f"installing the chart in {SYSTEM}, for {NAMESPACE}")
        self._cluster.prepare()
        say(f"pods {'are simulated' if kube.simulated else 'run their containers'}")
        here = f"a container of {kube.local.image}" if kube.local and kube.local.image else "a process here"
        say(f"the operator is {here if kube.local else 'in the cluster'}")
        kube.apply(experiment(NAME, short=False))
        follow(kube, timeout_s)
        check(kube)
        check_deletion(kube)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cluster is None:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        kube = self._cluster.kube
        if error is not None and not isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(AssertionError):
                say(kube.kubectl("describe", "wrpoexperiment", NAME, check=False))
                say(kube.operator_log()[-4000:])
        say("removing everything this run made")
        self._cluster.remove()
        if self._has_made_crd:
            kube.run("kubectl", "delete", "crd", OWN_CRD, SWEEP_CRD, "--ignore-not-found", "--timeout=60s", check=False)


def follow(kube: Kube, timeout_s: float) -> None:
    """Print every change of a stage until the experiment has ended."""
    began = time.monotonic()
    told: dict[str, str] = {}
    while time.monotonic() - began < timeout_s:
        status = kube.status(NAME)
        states = {stage["name"]: stage["state"] for stage in status.get("stages") or ()}
        states |= {f"blocked: {entry['message']}": entry["reason"] for entry in status.get("blockers") or ()}
        for name, state in states.items():
            if told.get(name) != state and state not in {"Pending", "Skipped"}:
                percent = (status.get("progress") or {}).get("percent", 0)
                say(f"{time.monotonic() - began:6.1f} s {percent:3d}%  {name}: {state}")
        told = states
        if status.get("phase") in {"Succeeded", "Failed", "Invalid"}:
            return
        time.sleep(POLL_S)
    raise CheckError(f"the experiment has not ended after {timeout_s:g} s")


def check(kube: Kube) -> None:
    """Compare the outcome with what it has to be."""
    obj = kube.experiment(NAME)
    status: dict[str, Any] = obj.get("status") or {}
    conditions = {entry["type"]: entry["status"] for entry in status.get("conditions") or ()}
    expect("phase", status.get("phase"), "Succeeded")
    expect("observedGeneration", status.get("observedGeneration"), obj["metadata"]["generation"])
    expect("condition Succeeded", conditions.get("Succeeded"), "True")
    expect("condition Failed", conditions.get("Failed"), "False")
    expect("blockers", status.get("blockers") or [], [])
    expect("progress", (status.get("progress") or {}).get("percent"), 100)
    stages = status.get("stages") or []
    for stage in stages:
        expect(f"state of {stage['name']}", stage["state"], "Succeeded")
        expect(f"attempts of {stage['name']}", len(stage["attempts"]), 1)
        if not kube.simulated:
            expect(f"loss of {stage['name']}", (stage.get("metrics") or {}).get("loss"), 0.25)
    made = sorted(child["metadata"]["labels"]["wrpo.ai/stage"].replace(".", "/") for child in kube.children(NAME))
    expect("stages with a child", made, sorted(stage["name"] for stage in stages))
    say(f"checked: {len(stages)} stages succeeded, one child each")


def check_deletion(kube: Kube) -> None:
    """Delete the experiment; its children have to go with it."""
    from support.patience import LIMIT_S, wait_until

    kube.kubectl("delete", "wrpoexperiment", NAME, "--wait=true", f"--timeout={LIMIT_S:g}s")
    wait_until("the children are gone", lambda: not kube.children(NAME))
    say("checked: deleting the experiment deletes its children")


def expect(what: str, found: object, wanted: object) -> None:
    """Raise CheckError, which names `what`, unless both values are equal."""
    if found != wanted:
        raise CheckError(f"{what} is {found!r} but should be {wanted!r}")


if __name__ == "__main__":
    raise SystemExit(main())
