"""`python -m benchmarks.orchestration`: the time of a finished experiment by stage, and how much of it is not work."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.common.machine import describe_machine
from benchmarks.common.results import Table, save_result
from benchmarks.orchestration.timeline import PARTS, Pod, StageTime, ended_well, idle_seconds, moment, pod_of, timeline
from wrpo_operator.api.names import LABEL_EXPERIMENT, LABEL_STAGE
from wrpo_operator.cli.connect import STATE_DIR
from wrpo_operator.cli.install import run_tool

NAME = "orchestration"
_CHILDREN = "jobs,pytorchjobs.kubeflow.org"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__)
    parser.add_argument("--experiment", default="quickstart", metavar="NAME")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--kubeconfig", type=Path, default=STATE_DIR.resolve() / "kubeconfig")
    arguments = parser.parse_args(argv)
    console, machine = Console(width=160), describe_machine()
    try:
        stages = read(arguments.experiment, arguments.namespace, arguments.kubeconfig)
    except click.ClickException as error:
        console.print(f"error: {error.message}", markup=False)
        return 1
    if not stages:
        console.print(f"error: {arguments.experiment} has no pod that ended well. Run it first: `make demo`.")
        return 1
    measured = figures(arguments.experiment, stages)
    for table in tables(measured):
        table.show(console)
    console.print(machine.line)
    save_result(NAME, machine, measured)
    return 0


def read(experiment: str, namespace: str, kubeconfig: Path) -> list[StageTime]:
    """Return the stages of an experiment whose pods exist. Raises ClickException if the cluster does not respond."""

    def kubectl(*words: str) -> str:
        return run_tool("kubectl", "-n", namespace, *words, kubeconfig=kubeconfig)

    def labelled(kinds: str) -> list[dict[str, Any]]:
        found = kubectl("get", kinds, "-l", f"{LABEL_EXPERIMENT}={experiment}", "-o", "json")
        return list(json.loads(found)["items"])

    created: dict[str, float] = {}
    for child in labelled(_CHILDREN):
        begun = moment(child["metadata"]["creationTimestamp"])
        stage = child["metadata"]["labels"][LABEL_STAGE]
        # A retry is not the way that a stage takes.
        created[stage] = max(begun, created.get(stage, begun))
    pods: list[Pod] = []
    for obj in labelled("pods"):
        stage = obj["metadata"]["labels"][LABEL_STAGE]
        if stage in created and (ended := ended_well(obj)):
            pods.append(pod_of(stage, ended, kubectl("logs", obj["metadata"]["name"], "--timestamps")))
    return timeline(created, pods)


def figures(experiment: str, stages: Sequence[StageTime]) -> dict[str, Any]:
    """Return what is saved: the stages, the wall time, and the part of it in which no container ran."""
    return {
        "experiment": experiment,
        "stages": [stage.to_json() for stage in stages],
        "wall": max(stage.ended for stage in stages) - min(stage.created for stage in stages),
        "idle": idle_seconds(stages),
    }


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the split of each stage, and their sum against the wall time."""
    rows = [
        [stage["stage"], str(stage["pods"]), *(f"{stage[part]:.1f}" for part in PARTS)] for stage in result["stages"]
    ]
    sums = {part: sum(stage[part] for stage in result["stages"]) for part in PARTS}
    rows.append(["sum", str(sum(stage["pods"] for stage in result["stages"])), *(f"{sums[p]:.1f}" for p in PARTS)])
    total = sum(sums.values())
    share = 100 * (total - sums["work"]) / total if total else 0.0
    note = (
        f"Sum {total:.0f} s, of it {share:.0f} % not own work; wall time {result['wall']:.0f} s, because stages run "
        f"side by side. In {result['idle']:.0f} s of it no container ran."
    )
    columns = ["stage", "pods", "wait for a pod", "start and imports", "engine start", "own work", "next stage"]
    return [Table(f"{result['experiment']}: seconds by stage", columns, rows, [note])]


if __name__ == "__main__":
    raise SystemExit(main())
