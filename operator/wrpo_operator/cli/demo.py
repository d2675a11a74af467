"""`wrpo demo`: the quick start from nothing to its results.

Every step looks at what is there and does what is missing, so running it again continues where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from wrpo_devcluster import lifecycle
from wrpo_operator.cli.connect import STATE_DIR, Target, errors_to_click
from wrpo_operator.cli.install import CHECKOUT, find_tool, install_operator, run_tool
from wrpo_operator.cli.show import REPORT_FILE, locate_artifact

EXPERIMENT = "quickstart"
NAMESPACE = "default"
ASSETS_JOB = "quickstart-assets"
POLL_S = 1.0


@dataclass(slots=True)
class Demo:
    """What the steps share."""

    console: Console
    kubeconfig: Path = field(default_factory=lambda: STATE_DIR.resolve() / "kubeconfig")

    def say(self, text: str) -> None:
        """Print one line as it is: no markup, no wrapping."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return run_tool("kubectl", "-n", NAMESPACE, *arguments, kubeconfig=self.kubeconfig, stdin=stdin)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object; empty when there is none."""
        out = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        return dict(json.loads(out)) if out.strip() else {}

    @property
    def target(self) -> Target:
        return Target(str(self.kubeconfig), None, NAMESPACE, embedded=True)

    def artifact(self, experiment: dict[str, Any], stage: str) -> Path:
        """Return the directory of this machine that holds a finished stage's artifact."""
        where = locate_artifact(experiment, stage, self.target)
        if where is None:
            raise click.ClickException(f"stage {stage} has made nothing; `wrpo status {EXPERIMENT}` says why")
        return Path(where)

    def step(self, number: int, title: str, action: Callable[[], None]) -> None:
        """Do one step and print how long it took."""
        self.say(f"[{number}/4] {title}")
        started = time.monotonic()
        action()
        self.say(f"      {time.monotonic() - started:.0f} s")


@click.command("demo")
@errors_to_click
def demo_command() -> None:
    """Run the quick start on the embedded cluster and say what it measured.

    It starts the embedded cluster, installs the operator with helm, builds the quick start's models and prompts,
    applies examples/quickstart.yaml and follows it to the end. Ctrl-C stops everything and keeps what is done; the same
    command again continues. `wrpo dev reset --yes` (or `make demo-clean`) removes it all.
    """
    demo = Demo(Console())
    try:
        demo.step(1, "embedded control plane", lambda: start(demo))
        demo.step(2, "operator (helm install charts/wrpo-operator)", lambda: install_operator(demo.kubeconfig))
        demo.step(3, "models and prompts (examples/quickstart-assets.yaml)", lambda: build_assets(demo))
        demo.step(4, "experiment (examples/quickstart.yaml)", lambda: run_experiment(demo))
    except KeyboardInterrupt:
        demo.say("\nstopping; what is done is kept ...")
        lifecycle.down(STATE_DIR)
        demo.say("stopped. `make demo` continues where it stopped, `make demo-clean` removes everything.")
        raise SystemExit(130) from None
    show_results(demo)


def start(demo: Demo) -> None:
    """Start the embedded cluster unless it runs."""
    try:
        info = lifecycle.up(STATE_DIR)
    except lifecycle.LifecycleError as error:
        raise click.ClickException(str(error)) from error
    demo.say(f"      {info.url}, state in {info.state_dir}")


def build_assets(demo: Demo) -> None:
    """Apply the assets Job and wait for it, showing its log."""
    if condition(demo.get("job", ASSETS_JOB), "Failed"):
        demo.kubectl("delete", "job", ASSETS_JOB, "--wait")
    demo.kubectl("apply", "-f", str(CHECKOUT / "examples" / "quickstart-assets.yaml"))
    shown, said = 0, ""
    while True:
        job = demo.get("job", ASSETS_JOB)
        shown = show_new_lines(demo, shown)
        why = "" if shown else waiting_reason(demo)
        if why not in {"", said}:
            demo.say(f"      waiting: {why}")
            said = why
        if condition(job, "Complete"):
            return
        if failed := condition(job, "Failed"):
            raise click.ClickException(
                f"building the quick start's models failed: {failed.get('message', '')}\n"
                f"See `kubectl --kubeconfig {demo.kubeconfig} logs job/{ASSETS_JOB}`; `make demo` tries again."
            )
        time.sleep(POLL_S)


def show_new_lines(demo: Demo, shown: int) -> int:
    """Print the lines of the Job's log after the first `shown`; return how many there are now."""
    try:
        lines = demo.kubectl("logs", f"job/{ASSETS_JOB}").splitlines()
    except click.ClickException:  # its container has not started
        return shown
    first = shown if len(lines) >= shown else 0  # shorter: another pod took over
    for line in lines[first:]:
        demo.say(f"      {line}")
    return len(lines)


def waiting_reason(demo: Demo) -> str:
    """Return why the Job's pod does not run, in the cluster's words; empty when nothing keeps it."""
    pods = json.loads(demo.kubectl("get", "pods", "-l", f"job-name={ASSETS_JOB}", "-o", "json"))["items"]
    for pod in pods:
        for status in pod.get("status", {}).get("containerStatuses", []):
            waiting = status.get("state", {}).get("waiting", {})
            if waiting.get("message"):
                return f"{waiting['reason']}: {waiting['message']}"
        for entry in pod.get("status", {}).get("conditions", []):
            if entry["type"] == "PodScheduled" and entry["status"] == "False":
                return str(entry.get("message", ""))
    return ""


def run_experiment(demo: Demo) -> None:
    """Apply the experiment, with the sampling backend of this machine, and follow it to its end."""
    from wrpo_operator.cli.watch import GoneError, follow

    manifest = yaml.safe_load((CHECKOUT / "examples" / "quickstart.yaml").read_text(encoding="utf-8"))
    backend = sampling_backend(CHECKOUT / ".venv" / "wrpo-profile.json")
    if backend == "Transformers":
        demo.say("      no vLLM on this machine (see `make setup`): sampling with Transformers, which is slower")
        manifest["spec"].setdefault("sampling", {})["backend"] = backend
        manifest["spec"].get("evaluation", {}).pop("backend", None)
    demo.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest, sort_keys=False))
    try:
        outcome = follow(EXPERIMENT, demo.target, console=demo.console)
    except GoneError as error:
        raise click.ClickException(str(error)) from error
    if not outcome.succeeded:
        raise click.ClickException(
            f"{outcome.message}\n`wrpo status {EXPERIMENT}` and `wrpo logs {EXPERIMENT}` say more."
        )


def sampling_backend(profile: Path) -> str:
    """Return the sampling backend that set-up found; vLLM when set-up left no word."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads(profile.read_text(encoding="utf-8"))["sampling_backend"])
    return "vLLM"


def show_results(demo: Demo) -> None:
    """Print what the experiment measured, where its artifacts lie, and how to look around."""
    experiment = demo.get("wrpoexperiment", EXPERIMENT)
    evaluation = json.loads((demo.artifact(experiment, "evaluate") / "evaluation.json").read_text(encoding="utf-8"))
    demo.console.print()
    demo.console.print(evaluation_table(evaluation))
    demo.say("Small models and few prompts: this shows that the machinery works, not how good the method is.\n")
    demo.say(f"trained model  {demo.artifact(experiment, 'train') / 'model'}")
    demo.say(f"report         {demo.artifact(experiment, 'report') / REPORT_FILE}\n")
    demo.say("Look around:")
    demo.say(f"  export KUBECONFIG={demo.kubeconfig} PATH={Path(find_tool('kubectl')).parent}:$PATH")
    demo.say(f"  kubectl get wrpoexperiment {EXPERIMENT} -o wide")
    demo.say(f"  kubectl describe wrpoexperiment {EXPERIMENT}")
    demo.say("  kubectl get jobs,pytorchjobs,pods")
    demo.say(f"  .venv/bin/wrpo status {EXPERIMENT}")
    demo.say("The embedded cluster still runs: `.venv/bin/wrpo dev down` stops it, `make demo-clean` removes it all.")


def evaluation_table(evaluation: dict[str, Any]) -> Table:
    """Lay out evaluation.json: mean reward of each model, and the last model's win rates."""
    last = list(evaluation["mean_reward"])[-1]
    table = Table(title=f"{evaluation['num_prompts']} held-out prompts", title_justify="left")
    for heading in ("model", "mean reward", f"{last}'s win rate against it", "95 % interval"):
        table.add_column(heading)
    for label, reward in evaluation["mean_reward"].items():
        win = evaluation["win_rates"].get(label)
        rate = f"{win['rate']:.1%}" if win else ""
        interval = f"{win['ci_low']:.1%} to {win['ci_high']:.1%}" if win else ""
        table.add_row(label, f"{reward:.4f}", rate, interval)
    return table


def condition(obj: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the condition of that type if it is True; else an empty one."""
    conditions = obj.get("status", {}).get("conditions", [])
    return next((dict(c) for c in conditions if c["type"] == kind and c["status"] == "True"), {})
