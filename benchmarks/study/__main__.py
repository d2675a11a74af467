"""The miniature study on the embedded cluster: models, sweep, comparison, page.

`python -m benchmarks.study [--quick] [--page]`. A second run resumes: finished stages are not repeated.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks.common.machine import describe_machine
from benchmarks.common.process import ROOT
from benchmarks.common.results import RESULTS, load_result, save_result
from benchmarks.study.claims import MARGINS
from benchmarks.study.page import page
from wrpo_operator.cli.connect import STATE_DIR
from wrpo_operator.cli.demo import sampling_backend
from wrpo_operator.cli.install import run_tool
from wrpo_operator.cli.job_log import JobRun
from wrpo_operator.cli.local import start_embedded

NAME = "study"
QUICK_NAME = "study-quick"
SWEEP = ROOT / "examples" / "study.yaml"
ASSETS = ROOT / "examples" / "quickstart-assets.yaml"
PAGE = ROOT / "docs" / "study.md"
BASELINE = "sft-dpo"
QUICK_VARIANTS = ("wrpo", "sft-dpo", "no-y-ws", "no-y-wt")
QUICK_SOURCES = ("smollm2", "chatterbot", "facts")
QUICK_PROMPTS, QUICK_HELD_OUT = 192, 96
ASSETS_JOB = "study-assets"
Document = dict[str, Any]


def quick(sweep: Document) -> Document:
    """Return the part of the sweep that `make study-quick` runs: one seed, fewer variants, sources and prompts."""
    spec = sweep["spec"]
    common = spec["experiment"]
    experiment = {
        **common,
        "sources": [source for source in common["sources"] if source["name"] in QUICK_SOURCES],
        "prompts": {**common["prompts"], "limit": QUICK_PROMPTS, "evaluation": {"prompts": QUICK_HELD_OUT}},
    }
    variants = [variant for variant in spec["variants"] if variant["name"] in QUICK_VARIANTS]
    kept = {name: value for name, value in spec.items() if name != "grid"}
    return {
        **sweep,
        "metadata": {**sweep["metadata"], "name": QUICK_NAME},
        "spec": {**kept, "seeds": spec["seeds"][:1], "variants": variants, "experiment": experiment},
    }


def with_backend(sweep: Document, backend: str) -> Document:
    """Return the sweep with another sampling backend."""
    common = sweep["spec"]["experiment"]
    experiment = {**common, "sampling": {**common["sampling"], "backend": backend}}
    return {**sweep, "spec": {**sweep["spec"], "experiment": experiment}}


def assets(documents: Sequence[Document]) -> list[Document]:
    """Return the claim and the Job of the quick start's models, with those of the study as well."""
    made = copy.deepcopy(list(documents))
    for job in (document for document in made if document["kind"] == "Job"):
        job["metadata"]["name"] = ASSETS_JOB
        job["spec"]["template"]["spec"]["containers"][0]["command"].append("--study")
    return made


def runs_of(experiments: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names of the succeeded experiments by variant, in the order of their seeds, and variants without all.

    A variant of which a run failed is left out, because its seeds would not be those of the other rows.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    failed = set()
    for experiment in experiments:
        about = experiment["metadata"]
        variant, seed = about["labels"]["wrpo.ai/variant"], int(about["labels"]["wrpo.ai/seed"])
        if (experiment.get("status") or {}).get("phase") == "Succeeded":
            found.setdefault(variant, []).append((seed, about["name"]))
        else:
            failed.add(variant)
    kept = {name: [run for _, run in sorted(runs)] for name, runs in found.items() if name not in failed}
    return kept, sorted(failed)


def compare_command(runs: Mapping[str, Sequence[str]], out: Path) -> list[str]:
    """Return the command that compares variants, each with all of its runs."""
    baseline = BASELINE if BASELINE in runs else next(iter(runs))
    systems = [f"{name}={','.join(experiments)}" for name, experiments in runs.items()]
    return ["wrpo", "compare", *systems, "--baseline", baseline, "--out", str(out)]


def margins_command(runs: Mapping[str, Sequence[str]], out: Path) -> list[str]:
    """Return the command that compares every run of the variants whose margins are tested as a separate row."""
    systems = [f"{run}={run}" for name in MARGINS for run in runs.get(name, ())]
    return ["wrpo", "compare", *systems, "--out", str(out)]


@contextmanager
def timed(path: Path) -> Iterator[Callable[[], list[float]]]:
    """Give a function that returns the seconds of this run and of those that it resumes, which `path` records.

    The file is part of the cluster's state: a reset removes it with the artifacts.
    """
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    started = time.monotonic()
    try:
        yield lambda: [*earlier, time.monotonic() - started]
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([*earlier, time.monotonic() - started]), encoding="utf-8")


def run(*, is_quick: bool, console: Console) -> Document:
    """Run the study and return what to save; raises SystemExit if no variant succeeded."""
    with timed(STATE_DIR / f"{QUICK_NAME if is_quick else NAME}-seconds.json") as spent:
        return {**_run(is_quick=is_quick, console=console), "seconds": spent()}


def _run(*, is_quick: bool, console: Console) -> Document:
    started = time.monotonic()
    name, out = (QUICK_NAME if is_quick else NAME), RESULTS / (QUICK_NAME if is_quick else NAME)
    out.mkdir(parents=True, exist_ok=True)
    sweep = yaml.safe_load(SWEEP.read_text(encoding="utf-8"))
    sweep = with_backend(quick(sweep) if is_quick else sweep, sampling_backend(ROOT / ".venv" / "wrpo-profile.json"))
    path = out / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
    kubeconfig = start_embedded()
    _stage(console, "models and prompts", started)
    documents = list(yaml.safe_load_all(ASSETS.read_text(encoding="utf-8")))
    kubectl = partial(run_tool, "kubectl", kubeconfig=kubeconfig)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    build = JobRun(ASSETS_JOB, kubectl, say, f"--kubeconfig {kubeconfig}", f"make {name}")
    build.run(yaml.safe_dump_all(assets(documents)))
    _stage(console, "sweep", started)
    follow = ["wrpo", "sweep", "run", "-f", str(path.relative_to(ROOT))]
    _wrpo(follow, must_succeed=False)
    listed = kubectl("get", "wrpoexperiments", "-l", f"wrpo.ai/sweep={name}", "-o", "json")
    runs, missing = runs_of(json.loads(listed)["items"])
    if not runs:
        raise SystemExit(f"no variant of the sweep {name} succeeded: `wrpo sweep status {name}` shows why")
    _stage(console, "comparison", started)
    commands = [compare_command(runs, out / "variants")]
    _wrpo(commands[0])
    margins: Document = {"rows": []}
    if any(variant in runs for variant in MARGINS):
        commands.append(margins_command(runs, out / "margins"))
        _wrpo(commands[1])
        margins = _comparison(out / "margins")
    return {
        "commands": [f"make {name}", " ".join(follow)],
        "runs": runs,
        "missing": missing,
        "comparison": _comparison(out / "variants"),
        "margins": margins,
    }


def _stage(console: Console, title: str, started: float) -> None:
    console.print(f"[{(time.monotonic() - started) / 60:.1f} min] {title}", markup=False, highlight=False)


def _wrpo(command: Sequence[str], *, must_succeed: bool = True) -> None:
    """Run `wrpo` of this environment; SystemExit if it fails and that matters."""
    done = subprocess.run([str(Path(sys.executable).with_name("wrpo")), *command[1:]], cwd=ROOT, check=False)
    if must_succeed and done.returncode:
        raise SystemExit(f"`{' '.join(command[:2])}` failed with exit code {done.returncode}")


def _comparison(directory: Path) -> Document:
    found: Document = json.loads((directory / "comparison.json").read_text(encoding="utf-8"))
    return found


def write_page(target: Path = PAGE, results: Path = RESULTS) -> None:
    """Write the page from the last whole run, else from the last quick one."""
    found = load_result(NAME, directory=results) or load_result(QUICK_NAME, directory=results)
    target.write_text(page(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, four variants, fewer sources and prompts")
    parser.add_argument("--page", action="store_true", help="write docs/study.md from the last result, without a run")
    options = parser.parse_args()
    console = Console(width=160)
    if not options.page:
        machine = describe_machine()
        name = QUICK_NAME if options.quick else NAME
        path = save_result(name, machine, run(is_quick=options.quick, console=console))
        console.print(f"saved: {path}", markup=False, highlight=False)
    write_page()
    console.print(f"written: {PAGE}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
