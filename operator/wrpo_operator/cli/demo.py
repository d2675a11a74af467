"""`wrpo demo`: the quick start from an empty cluster to its results.

Each step checks the existing state and does only what is missing, so a second run continues where the first stopped.
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
from wrpo_devcluster.s3_server import S3Server
from wrpo_operator.cli import demo_s3
from wrpo_operator.cli.connect import STATE_DIR, Target, engine_errors_to_click, errors_to_click
from wrpo_operator.cli.install import CHECKOUT, find_tool, install_operator, run_tool
from wrpo_operator.cli.job_log import JobRun
from wrpo_operator.cli.local import WARM
from wrpo_operator.cli.show import REPORT_FILE, locate_artifact, read_artifact_file

EXPERIMENT = "quickstart"
EXAMPLES = CHECKOUT / "examples"
ASSETS_JOB = "quickstart-assets"


@dataclass(slots=True)
class Demo:
    """State shared by the steps."""

    console: Console
    on_s3: bool = False
    """Whether the storage is a bucket instead of a volume."""
    kubeconfig: Path = field(default_factory=lambda: STATE_DIR.resolve() / "kubeconfig")

    @property
    def namespace(self) -> str:
        """Namespace of the experiment."""
        return demo_s3.NAMESPACE if self.on_s3 else "default"

    @property
    def command(self) -> str:
        """The command that the user runs."""
        return "make demo-s3" if self.on_s3 else "make demo"

    @property
    def server(self) -> S3Server:
        """The S3 server, once the first step has started it."""
        server = lifecycle.status(STATE_DIR).s3
        assert server is not None
        return server

    def say(self, text: str) -> None:
        """Print one line without markup or wrapping."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace; return its output. Raises ClickException if it fails."""
        return run_tool("kubectl", "-n", self.namespace, *arguments, kubeconfig=self.kubeconfig, stdin=stdin)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object; empty when there is none."""
        out = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        return dict(json.loads(out)) if out.strip() else {}

    @property
    def target(self) -> Target:
        """The embedded cluster, as a target of other commands."""
        return Target(str(self.kubeconfig), None, self.namespace, embedded=True)

    def artifact(self, experiment: dict[str, Any], stage: str) -> str:
        """Return the directory of this machine or the S3 URI that holds a finished stage's artifact."""
        where = locate_artifact(experiment, stage, self.target)
        if where is None:
            raise click.ClickException(f"stage {stage} has no artifact; `wrpo status {named(self)}` shows why")
        return where

    def step(self, number: int, title: str, action: Callable[[], None]) -> None:
        """Run one step and print its duration."""
        self.say(f"[{number}/4] {title}")
        started = time.monotonic()
        action()
        self.say(f"      {time.monotonic() - started:.0f} s")


@click.command("demo")
@click.option("--s3", "on_s3", is_flag=True, help="Use an S3 server on loopback instead of a volume.")
@errors_to_click
def demo_command(on_s3: bool) -> None:
    """Run the quick start on the embedded cluster and print its results.

    It starts the embedded cluster, installs the operator with helm, builds the quick start's models and prompts,
    applies examples/quickstart.yaml and follows it to the end. Ctrl-C stops everything and keeps finished work; running
    the command again resumes. `wrpo dev reset --yes` (or `make demo-clean`) removes everything.

    With --s3 it runs in the namespace quickstart-s3, and only spec.storage differs: models, prompts and artifacts are
    stored in a bucket, and no pod has a volume that outlives it.
    """
    demo = Demo(Console(), on_s3=on_s3)
    place = f", to {demo_s3.URI}" if on_s3 else ""
    try:
        demo.step(1, f"embedded control plane{' and S3 server' if on_s3 else ''}", lambda: start(demo))
        demo.step(2, "operator (helm install charts/wrpo-operator)", lambda: install_operator(demo.kubeconfig))
        demo.step(3, f"models and prompts (examples/quickstart-assets.yaml){place}", lambda: build_assets(demo))
        demo.step(4, f"experiment (examples/quickstart.yaml){place}", lambda: run_experiment(demo))
    except KeyboardInterrupt:
        demo.say("\nstopping; finished work is kept ...")
        lifecycle.down(STATE_DIR)
        demo.say(f"stopped. `{demo.command}` resumes, `make demo-clean` removes everything.")
        raise SystemExit(130) from None
    show_results(demo)


def start(demo: Demo) -> None:
    """Start the embedded cluster unless it runs; with S3 also the server, its bucket and the Secret."""
    try:
        info = lifecycle.up(STATE_DIR, s3=demo.on_s3, warm=WARM)
    except lifecycle.LifecycleError as error:
        raise click.ClickException(str(error)) from error
    demo.say(f"      {info.url}, state in {info.state_dir}")
    if not demo.on_s3:
        return
    server = demo.server
    demo.say(f"      {server.endpoint}, bucket {demo_s3.BUCKET}")
    credentials = server.environ()
    demo_s3.use_credentials(credentials)
    with engine_errors_to_click():
        demo_s3.make_bucket(server.endpoint)
    apply(demo, demo_s3.surroundings(credentials))


def apply(demo: Demo, documents: list[dict[str, Any]]) -> None:
    """Apply objects that are not in a file with `kubectl apply`."""
    demo.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents, sort_keys=False))


def build_assets(demo: Demo) -> None:
    """Apply the assets Job and wait for it, showing its log."""
    documents = list(yaml.safe_load_all((EXAMPLES / "quickstart-assets.yaml").read_text(encoding="utf-8")))
    placed = demo_s3.assets_on_s3(documents, demo.server.endpoint) if demo.on_s3 else documents
    flags = f"--kubeconfig {demo.kubeconfig} -n {demo.namespace}"
    JobRun(ASSETS_JOB, demo.kubectl, demo.say, flags, demo.command).run(yaml.safe_dump_all(placed, sort_keys=False))


def run_experiment(demo: Demo) -> None:
    """Apply the experiment, with the sampling backend of this machine, and follow it to its end."""
    from wrpo_operator.cli.watch import GoneError, follow

    manifest = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text(encoding="utf-8"))
    if demo.on_s3:
        manifest = demo_s3.experiment_on_s3(manifest, demo.server.endpoint)
    backend = sampling_backend(CHECKOUT / ".venv" / "wrpo-profile.json")
    if backend == "Transformers":
        demo.say("      no vLLM on this machine (see `make setup`): sampling with Transformers, which is slower")
        manifest["spec"].setdefault("sampling", {})["backend"] = backend
        manifest["spec"].get("evaluation", {}).pop("backend", None)
    apply(demo, [manifest])
    try:
        outcome = follow(EXPERIMENT, demo.target, console=demo.console)
    except GoneError as error:
        raise click.ClickException(str(error)) from error
    if not outcome.succeeded:
        raise click.ClickException(
            f"{outcome.message}\n`wrpo status {named(demo)}` and `wrpo logs {named(demo)}` show details."
        )


def sampling_backend(profile: Path) -> str:
    """Return the sampling backend that `make setup` recorded; vLLM if it recorded none."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads(profile.read_text(encoding="utf-8"))["sampling_backend"])
    return "vLLM"


def show_results(demo: Demo) -> None:
    """Print the results of the experiment, the locations of its artifacts, and commands for further inspection."""
    experiment = demo.get("wrpoexperiment", EXPERIMENT)
    artifact = demo.artifact(experiment, "evaluate")
    demo.console.print()
    demo.console.print(evaluation_table(json.loads(read_artifact_file(experiment, artifact, "evaluation.json"))))
    for table in benchmark_tables(json.loads(read_artifact_file(experiment, artifact, "benchmarks.json"))):
        demo.console.print(table)
    demo.say("Small models and few prompts: this shows that the system works, not the quality of the method.\n")
    demo.say(f"trained model  {demo.artifact(experiment, 'train')}/model")
    demo.say(f"report         {demo.artifact(experiment, 'report')}/{REPORT_FILE}\n")
    demo.say("Commands for inspection:")
    for line in look_around(demo):
        demo.say(f"  {line}")
    demo.say(
        "The embedded cluster still runs: `.venv/bin/wrpo dev down` stops it, `make demo-clean` removes everything."
    )


def look_around(demo: Demo) -> list[str]:
    """Return commands that show the objects of the demo."""
    kubectl = f"kubectl -n {demo.namespace}" if demo.on_s3 else "kubectl"
    lines = [
        f"export KUBECONFIG={demo.kubeconfig} PATH={Path(find_tool('kubectl')).parent}:$PATH",
        f"{kubectl} get wrpoexperiment {EXPERIMENT} -o wide",
        f"{kubectl} describe wrpoexperiment {EXPERIMENT}",
        f"{kubectl} get jobs,pytorchjobs,pods",
        f".venv/bin/wrpo status {named(demo)}",
    ]
    if demo.on_s3:
        lines += [
            f"{kubectl} get persistentvolumeclaims",
            f"export AWS_SHARED_CREDENTIALS_FILE={demo.server.credentials_file}",
            f".venv/bin/wrpo artifacts ls {named(demo)}",
            f".venv/bin/wrpo report {named(demo)} --save report.html",
        ]
    return lines


def named(demo: Demo) -> str:
    """Return the experiment as arguments of `wrpo`."""
    return f"{EXPERIMENT} -n {demo.namespace}" if demo.on_s3 else EXPERIMENT


def evaluation_table(evaluation: dict[str, Any]) -> Table:
    """Format evaluation.json as a table: mean reward of each model, and the last model's win rates."""
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


def benchmark_tables(content: dict[str, Any]) -> list[Table]:
    """Format the judged columns of benchmarks.json, each labelled with its judge and the share of invalid verdicts."""
    labels = {system["name"]: system["label"] for system in content["systems"]}
    columns = [column for column in content["columns"] if column["by"] == "judge"]
    return [_benchmark_table(column, labels) for column in columns]


def _benchmark_table(column: dict[str, Any], labels: dict[str, str]) -> Table:
    invalid = max((cell["invalid_share"] for cell in column["cells"]), default=0.0)
    title = (
        f"benchmark {column['benchmark']}, protocol {column['protocol']}\n"
        f"judge {_judge(column)}\n"
        f"{column['items']} items, score in {column['unit']}, invalid {invalid:.1%}"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("model", "score", "95 % interval", "length-controlled"):
        table.add_column(heading)
    for cell in column["cells"]:
        if cell["score"] is None:
            continue
        interval, controlled = cell["interval"], cell["length_controlled"]
        table.add_row(
            labels[cell["system"]],
            f"{cell['score']:.1f}",
            f"{interval['low']:.1f} to {interval['high']:.1f}",
            f"{controlled['form']} {controlled['score']:.1f}" if controlled else "",
        )
    return table


def _judge(column: dict[str, Any]) -> str:
    """Return the judge's name, and what it is."""
    about = column["identity"]
    what = "a served reward" if about.get("serve_reward") else f"the model {about.get('model')}"
    return f"{column['judge']} ({what})"
