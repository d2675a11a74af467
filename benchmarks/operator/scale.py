"""Operator scale: one process with more and more experiments, on the embedded cluster with simulated pods.

`python -m benchmarks.operator.scale [--quick] [--realistic] [--experiments 50,100,200,500] [--sources 10] [--rate 15]`
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.machine import describe_machine
from benchmarks.common.process import ROOT, WorkerError, free_port
from benchmarks.common.results import Table, save_result

NAME = "operator-scale"
COUNTS = (50, 500)
QUICK = (10,)
REALISTIC_COUNTS = (100,)
REALISTIC_SOURCES = 5
REALISTIC_RATE = 5.0
SPEED = 10.0
"""Seconds of the cluster's clock in a real second, by which pods start and end faster."""
RATE = 15.0
"""Average number of children that start in a second, regardless of the number of experiments. A higher rate would
measure the API server, which shares the processor with the operator."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", default="", help="numbers of experiments, e.g. 50,100,200,500")
    parser.add_argument("--sources", type=int, default=0, help="source models of each experiment")
    parser.add_argument("--rate", type=float, default=0.0, help="children that start in a second")
    parser.add_argument(
        "--realistic", action="store_true", help="the delays, status steps and Events of a real control plane"
    )
    parser.add_argument("--quick", action="store_true", help="ten experiments, to test that it runs")
    options = parser.parse_args()
    usual = REALISTIC_COUNTS if options.realistic else COUNTS
    counts = [int(part) for part in options.experiments.split(",") if part] or list(QUICK if options.quick else usual)
    sources = options.sources or (REALISTIC_SOURCES if options.realistic else 10)
    rate = options.rate or (REALISTIC_RATE if options.realistic else RATE)
    machine = describe_machine()
    console = Console(width=200)
    console.print(machine.line)
    rows = []
    for count in counts:
        console.print(f"{count} experiments ...")
        rows.append(measure(count, sources=sources, rate=rate, realistic=options.realistic))
        for table in tables({"rows": rows}):
            table.show(console)
    figures = {"rate": rate, "speed": 1.0 if options.realistic else SPEED, "rows": rows}
    name = NAME + ("-realistic" if options.realistic else "") + ("-quick" if options.quick else "")
    console.print(f"saved {save_result(name, machine, figures)}")


def experiment(number: int, *, sources: int, run_s: float) -> dict[str, Any]:
    """Return an experiment that shares no artifacts; each of its pods runs for `run_s` of the cluster's seconds.

    Its stages are sized, so that no stage inspects models.
    """
    on_cpu = {"limits": {"nvidia.com/gpu": 0}}
    return {
        "apiVersion": "wrpo.ai/v1alpha1",
        "kind": "WRPOExperiment",
        "metadata": {"name": f"e{number}"},
        "spec": {
            "target": {"model": "/models/target"},
            "sources": [{"name": f"s{index}", "model": f"/models/s{index}"} for index in range(sources)],
            "prompts": {"dataset": "org/prompts"},
            "reward": {"model": "/models/reward"},
            "training": {"objective": "SFTOnly", "gpusPerNode": 0},
            "resources": {"sample": on_cpu, "score": on_cpu},
            "evaluation": {"enabled": False},
            "report": {"enabled": False},
            "storage": {"volume": {"claimName": "artifacts"}},
            "reuse": {"salt": f"e{number}"},
            "podTemplate": {"metadata": {"annotations": {"fake.test/run-seconds": f"{run_s:.2f}"}}},
        },
    }


def inputs_of(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return stage -> the stages it waits for."""
    sys.path.insert(0, str(ROOT / "operator"))
    from wrpo_operator.api.parsing import parse_spec
    from wrpo_operator.plan.graph import build_graph

    return {str(node.id): [str(stage) for stage in node.inputs.values()] for node in build_graph(parse_spec(spec))}


def measure(count: int, *, sources: int, rate: float, realistic: bool = False) -> dict[str, Any]:
    """Run `count` experiments from creation to success; return the measurements.

    With `realistic` the cluster has the delays of a real one, its clock runs as fast as a real one, and pods run for a
    second. The cost of a child is then its way through the control plane.
    """
    inputs = inputs_of(experiment(0, sources=sources, run_s=1)["spec"])
    whole_s = count * len(inputs) / rate
    # The levels of the graph follow each other. Experiments are created evenly over half of the time.
    run_s = 1.0 if realistic else max(0.5, whole_s / 2 / levels(inputs) * SPEED - 1)
    specification = {
        "speed": 1.0 if realistic else SPEED,
        "realistic": realistic,
        "experiments": [experiment(number, sources=sources, run_s=run_s) for number in range(count)],
        "ramp_s": whole_s if realistic else whole_s / 2,
        "settle_s": 3.0,
        "idle_s": 10.0,
        "limit_s": 120 + whole_s * 4,
    }
    with tempfile.TemporaryDirectory(prefix="wrpo-bench-") as name:
        directory = Path(name)
        (directory / "spec.json").write_text(json.dumps(specification))
        result, operator = _run(directory, limit_s=240 + whole_s * 4)
    return {"experiments": count, "children": len(result["created"]), **_figures(count, inputs, result), **operator}


def levels(inputs: Mapping[str, Sequence[str]]) -> int:
    """Return the number of levels of the graph of stages."""
    depth: dict[str, int] = {}
    for stage, upstream in inputs.items():
        depth[stage] = 1 + max((depth[each] for each in upstream), default=0)
    return max(depth.values())


def _run(directory: Path, *, limit_s: float) -> tuple[dict[str, Any], dict[str, Any]]:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}", "OMP_NUM_THREADS": "1"}
    with (directory / "server.log").open("wb") as log, (directory / "operator.log").open("wb") as own:
        server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.operator.server", str(directory)],
            cwd=ROOT, env=environ, stdout=log, stderr=log,
        )  # fmt: skip
        operator: subprocess.Popen[bytes] | None = None
        try:
            _wait((directory / "ready").exists, server, directory / "server.log", 60)
            port = free_port()
            flags = [
                "--kubeconfig",
                (directory / "ready").read_text(),
                "--progress-port",
                "0",
                "--log-level",
                "warning",
            ]
            operator = subprocess.Popen(
                [sys.executable, "-m", "wrpo_operator", "run", *flags, "--health-port", str(port)],
                cwd=ROOT, env=environ, stdout=own, stderr=own,
            )  # fmt: skip
            _wait(lambda: server.poll() is not None, operator, directory / "operator.log", limit_s)
            if server.returncode != 0:
                raise WorkerError((directory / "server.log").read_text()[-3000:])
        finally:
            measured = _operator_figures(operator, port) if operator is not None and operator.poll() is None else {}
            for process in (operator, server):
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait()
        return json.loads((directory / "result.json").read_text()), measured


def _wait(condition: Any, process: subprocess.Popen[bytes], log: Path, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise WorkerError(f"not within {limit_s:.0f} s, or ended\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.2)


def _operator_figures(operator: subprocess.Popen[bytes], port: int) -> dict[str, Any]:
    status = Path(f"/proc/{operator.pid}/status").read_text()
    held = {field: int(size) / 1024 for field, size in re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB", status, re.MULTILINE)}
    ticks = Path(f"/proc/{operator.pid}/stat").read_text().rpartition(")")[2].split()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    return {
        "operator_peak_mib": held["VmHWM"],
        "operator_mib": held["VmRSS"],
        "operator_processor_s": (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK"),
        "reconciles": _metric(metrics, "wrpo_reconcile_seconds_count"),
        "reconcile_mean_s": _metric(metrics, "wrpo_reconcile_seconds_sum")
        / max(1.0, _metric(metrics, "wrpo_reconcile_seconds_count")),
    }


def _metric(metrics: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _figures(count: int, inputs: Mapping[str, Sequence[str]], result: Mapping[str, Any]) -> dict[str, Any]:
    completed = {(experiment, stage): at for experiment, stage, at in result["completed"]}
    waits = [
        at - max(completed[experiment, upstream] for upstream in inputs[stage])
        for experiment, stage, at in result["created"]
        if inputs[stage]
    ]
    writes = {what: n for what, n in result["requests"].items() if not what.startswith("GET")}
    status_writes = writes.get("PATCH wrpoexperiments/status", 0)
    children = len(result["created"])
    return {
        "took_s": result["took_s"],
        "next_p50_s": statistics.median(waits),
        "next_p99_s": quantile(waits, 0.99),
        "handling_p50_s": statistics.median(result["handling_s"]),
        "handling_p99_s": quantile(result["handling_s"], 0.99),
        "server_processor_s": result["server_processor_s"],
        "calls_per_experiment": {what: n / count for what, n in sorted(result["requests"].items())},
        "writes_per_child": sum(n for what, n in writes.items() if "leases" not in what) / children,
        "status_writes_per_child": status_writes / children,
        "event_lists": result["requests"].get("GET events", 0),
        "changes_per_child": {kind: number / children for kind, number in sorted(result["changes"].items())},
        "idle_writes": result["idle_writes"],
    }


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def tables(result: Mapping[str, Any]) -> list[Table]:
    rows = result["rows"]
    columns = ["experiments", "children", "next child p50", "p99", "server's handling p50", "p99", "reconcile, mean",
               "reconciles per child", "writes per child", "of status", "Event lists", "operator peak",
               "operator processor", "server processor", "took", "idle writes"]  # fmt: skip
    cells = [
        [
            str(row["experiments"]),
            str(row["children"]),
            f"{row['next_p50_s'] * 1e3:.0f} ms",
            f"{row['next_p99_s'] * 1e3:.0f} ms",
            f"{row['handling_p50_s'] * 1e3:.1f} ms",
            f"{row['handling_p99_s'] * 1e3:.0f} ms",
            f"{row['reconcile_mean_s'] * 1e3:.0f} ms",
            f"{row['reconciles'] / row['children']:.1f}",
            f"{row['writes_per_child']:.2f}",
            f"{row['status_writes_per_child']:.2f}",
            f"{row['event_lists']:.0f}",
            f"{row['operator_peak_mib']:.0f} MiB",
            f"{row['operator_processor_s']:.0f} s",
            f"{row['server_processor_s']:.0f} s",
            f"{row['took_s']:.0f} s",
            f"{row['idle_writes']:.0f}",
        ]
        for row in rows
    ]
    notes = [
        "next child: from the write of the status that completes a child's last input to the child's creation.",
        "server's handling: one request of the operator inside the server, watches left out.",
        *(f"{row['experiments']}: calls an experiment: {_calls(row)}" for row in rows),
        *(f"{row['experiments']}: changes a child: {_changes(row)}" for row in rows),
        *_growth(rows),
    ]
    return [Table("One operator, many experiments", columns, cells, notes)]


def _calls(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{what} {number:.1f}" for what, number in row["calls_per_experiment"].items() if number >= 0.05)


def _changes(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{kind} {number:.1f}" for kind, number in row["changes_per_child"].items())


def _growth(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(rows) < 2:
        return []
    first, last = rows[0], rows[-1]
    more = last["children"] / first["children"]
    processor = last["operator_processor_s"] / first["operator_processor_s"]
    return [f"{more:.1f} times the children take {processor:.1f} times the operator's processor time."]


if __name__ == "__main__":
    main()
