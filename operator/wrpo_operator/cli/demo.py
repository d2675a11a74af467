"""`wrpo demo`: the quick start from nothing to its results, each step idempotent.

Every step looks at what is there and does what is missing, so running it again continues where it stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

EXPERIMENT = "quickstart"
NAMESPACE = "default"
CLAIM = "wrpo-storage"
ASSETS_JOB = "quickstart-assets"


class DemoError(Exception):
    """A step failed; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class Demo:
    """The binaries and files a demo works with. `kubectl` and `helm` are commands with their kubeconfig."""

    root: Path
    state_dir: Path
    kubeconfig: Path
    kubectl: Path
    helm: Path
    console: Console

    def run_kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        return self._run([str(self.kubectl), "--kubeconfig", str(self.kubeconfig), *arguments], text, check=check)

    def run_helm(self, *arguments: str) -> str:
        return self._run([str(self.helm), "--kubeconfig", str(self.kubeconfig), *arguments], None, check=True)

    @staticmethod
    def _run(command: list[str], text: str | None, *, check: bool) -> str:
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if check and result.returncode:
            shown = " ".join(command)
            raise DemoError(f"`{shown}` failed:\n{result.stderr.strip() or result.stdout.strip()}")
        return result.stdout

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object, or None when there is none."""
        out = self.run_kubectl("-n", NAMESPACE, "get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(out) if out.strip() else None


def install_operator(demo: Demo) -> None:
    """Install or upgrade the chart and wait until the operator is available."""
    chart = demo.root / "charts" / "wrpo-operator"
    demo.run_helm("upgrade", "--install", "wrpo", str(chart), "-n", NAMESPACE, "--wait", "--timeout", "120s")


def prepare_assets(demo: Demo) -> None:
    """Apply the assets Job and wait for it, showing its log."""
    if (job := demo.get("job", ASSETS_JOB)) and condition(job, "Failed"):
        demo.run_kubectl("-n", NAMESPACE, "delete", "job", ASSETS_JOB, "--wait")
    demo.run_kubectl("-n", NAMESPACE, "apply", "-f", str(demo.root / "examples" / "quickstart-assets.yaml"))
    log = LogTail(demo)
    while True:
        job = demo.get("job", ASSETS_JOB) or {}
        log.show_new()
        if condition(job, "Complete"):
            return
        if condition(job, "Failed"):
            raise DemoError(
                "building the quick start's models failed; "
                f"see `kubectl --kubeconfig {demo.kubeconfig} logs job/{ASSETS_JOB}`"
            )
        time.sleep(1)


class LogTail:
    """Shows each log line of the assets Job once."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._shown = 0

    def show_new(self) -> None:
        out = self._demo.run_kubectl("-n", NAMESPACE, "logs", f"job/{ASSETS_JOB}", check=False)
        lines = out.splitlines()
        if len(lines) < self._shown:
            self._shown = 0
        for line in lines[self._shown :]:
            self._demo.console.print(f"      {line}", markup=False, highlight=False)
        self._shown = len(lines)


def apply_experiment(demo: Demo, backend: str) -> None:
    """Apply examples/quickstart.yaml, with the sampling backend this machine has."""
    manifest = yaml.safe_load((demo.root / "examples" / "quickstart.yaml").read_text())
    if backend != manifest["spec"]["sampling"].get("backend", "vLLM"):
        demo.console.print(f"      this machine has no vLLM: sampling with the {backend} backend instead")
        manifest["spec"]["sampling"]["backend"] = backend
    text = yaml.safe_dump(manifest, sort_keys=False)
    demo.run_kubectl("-n", NAMESPACE, "apply", "-f", "-", text=text)


def condition(obj: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """Return the condition of that type if it is True."""
    for entry in obj.get("status", {}).get("conditions", []):
        if entry["type"] == kind and entry["status"] == "True":
            return dict(entry)
    return None


def stage_of(experiment: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the status of one stage, empty when it has none."""
    stages = experiment.get("status", {}).get("stages", [])
    return next((dict(stage) for stage in stages if stage["name"] == name), {})


def volume_directory(demo: Demo) -> Path:
    """Return the directory behind the quick start's claim."""
    claim = demo.get("pvc", CLAIM) or {}
    volume = json.loads(demo.run_kubectl("get", "pv", claim["spec"]["volumeName"], "-o", "json"))
    source = volume["spec"].get("hostPath") or volume["spec"]["local"]
    return Path(source["path"])


def evaluation_table(result: dict[str, Any]) -> Table:
    """Return mean rewards and win rates as evaluation.json has them."""
    table = Table(title=f"Held-out prompts: {result['num_prompts']}", title_justify="left")
    for heading in ("model", "mean reward", "WRPO's win rate against it (95 % CI)"):
        table.add_column(heading)
    for label, reward in result["mean_reward"].items():
        win = result["win_rates"].get(label)
        shown = f"{win['rate']:.2f} ({win['ci_low']:.2f} to {win['ci_high']:.2f})" if win else ""
        table.add_row(label, f"{reward:.4f}", shown)
    return table


def show_results(demo: Demo) -> None:
    """Print what the experiment measured and where its artifacts lie."""
    experiment = demo.get("wrpoexperiment", EXPERIMENT) or {}
    directory = volume_directory(demo)
    evaluation = directory / str(stage_of(experiment, "evaluate")["artifact"]) / "evaluation.json"
    demo.console.print()
    demo.console.print(evaluation_table(json.loads(evaluation.read_text())))
    model = directory / str(stage_of(experiment, "train")["artifact"]) / "model"
    report = directory / str(stage_of(experiment, "report")["artifact"]) / "report.html"
    wide = {"markup": False, "highlight": False, "soft_wrap": True}
    demo.console.print(f"\ntrained model  {model}\nreport         {report}\n", **wide)  # type: ignore[arg-type]
    demo.console.print("Look around:", **wide)  # type: ignore[arg-type]
    demo.console.print(f"  export KUBECONFIG={demo.kubeconfig} PATH={demo.kubectl.parent}:$PATH", **wide)  # type: ignore[arg-type]
    for command in (
        f"kubectl get wrpoexperiments {EXPERIMENT} -o wide",
        f"kubectl describe wrpoexperiment {EXPERIMENT}",
        "kubectl get jobs,pytorchjobs,pods",
        f"wrpo status {EXPERIMENT}        # in .venv/bin",
        "make demo-clean                # removes all of it",
    ):
        demo.console.print(f"  {command}", **wide)  # type: ignore[arg-type]


def timed(console: Console, number: int, title: str, action: Callable[[], None]) -> None:
    """Run one step and print how long it took."""
    console.print(
        f"[bold][{number}/5][/bold] {title}" if console.is_terminal else f"[{number}/5] {title}",
        markup=console.is_terminal,
    )
    started = time.monotonic()
    action()
    console.print(f"      done in {time.monotonic() - started:.0f} s", highlight=False)


def sampling_backend(root: Path) -> str:
    """Return the sampling backend that set-up found; vLLM when set-up left no word."""
    with suppress(OSError, ValueError):
        profile = json.loads((root / ".venv" / "wrpo-profile.json").read_text())
        return str(profile["sampling_backend"])
    return "vLLM"


def find_root() -> Path:
    """Return the checkout that holds the chart and the examples."""
    for candidate in (Path.cwd(), Path(__file__).resolve().parents[3]):
        if (candidate / "charts" / "wrpo-operator").is_dir() and (candidate / "examples").is_dir():
            return candidate
    print("wrpo demo needs the checkout (charts/ and examples/); run it there", file=sys.stderr)
    raise SystemExit(2)
