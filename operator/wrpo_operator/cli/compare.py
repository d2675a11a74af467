"""`wrpo compare`: the engine's comparison of experiments of a cluster, in a separate process."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wrpo_operator.api.status import parse_status
from wrpo_operator.cli.connect import Target, cluster_options, errors_to_click, with_client
from wrpo_operator.cli.engine import require_engine, run_tool
from wrpo_operator.cli.show import locate_artifact
from wrpo_operator.runtime.resources import EXPERIMENTS, JsonObject, name_of

if TYPE_CHECKING:
    from wrpo_operator.runtime.kube import HttpKube

EVALUATE = "evaluate"


@click.command("compare")
@click.argument("systems", nargs=-1, metavar="[SYSTEM...]")
@click.option(
    "-l", "--selector", metavar="SELECTOR", help="Compare the experiments with these labels, too, as in kubectl."
)
@click.option(
    "--baseline",
    metavar="NAME",
    help="Row that differences are taken from. Default: the first system; of a single one, the target.",
)
@click.option("--order", metavar="NAME,NAME...", help="Test the claim that these rows get better in this order.")
@click.option("--out", metavar="DIR", help="Write comparison.{html,md,csv,tex,json} to this directory.")
@click.option("--allow-unlike-prompts", is_flag=True, help="Compare on the common prompts where they differ.")
@click.option("--published", is_flag=True, help="Show the paper's figures next to rows of the same name.")
@cluster_options
@errors_to_click
def compare_command(
    systems: tuple[str, ...],
    selector: str | None,
    baseline: str | None,
    order: str | None,
    out: str | None,
    allow_unlike_prompts: bool,
    published: bool,
    target: Target,
) -> None:
    """Compare evaluated experiments on held-out prompts and benchmarks, with intervals and paired differences.

    Each SYSTEM is the name of an experiment, or NAME=EXPERIMENT,EXPERIMENT for runs of one system with different
    training seeds. The target, the SFT models and further systems get separate rows. All need the same reward and
    held-out prompts, and benchmarks of one name the same judge.

    \b
    Examples:
      wrpo compare dpo wrpo --out comparison
      wrpo compare dpo=dpo-1,dpo-2,dpo-3 wrpo=wrpo-1,wrpo-2,wrpo-3
      wrpo compare -l study=sources --order sources-1,sources-2,sources-5
    """  # noqa: D301  # click's mark for lines to keep
    require_engine()
    wanted = parse_systems(systems)

    async def read(client: HttpKube) -> tuple[list[JsonObject], list[JsonObject]]:
        from wrpo_operator.runtime.kube import list_all

        everything = await list_all(client, EXPERIMENTS, target.namespace)
        chosen = await list_all(client, EXPERIMENTS, target.namespace, label_selector=selector) if selector else []
        return everything, chosen

    everything, chosen = asyncio.run(with_client(target, read))
    known = {name_of(obj): obj for obj in everything}
    if selector and not chosen:
        raise click.ClickException(f"no experiment in namespace {target.namespace} has the labels {selector}.")
    for name in sorted(map(name_of, chosen)):
        wanted.setdefault(name, [name])
    if not wanted:
        raise click.UsageError("name at least one experiment, or select some with -l.")
    arguments, seconds = gather(wanted, known, target)
    options = {"--baseline": baseline, "--order": order, "--out": out}
    arguments += [f"{option}={value}" for option, value in options.items() if value is not None]
    arguments += ["--allow-unlike-prompts"] if allow_unlike_prompts else []
    arguments += ["--published"] if published else []
    with tempfile.TemporaryDirectory() as scratch:
        if seconds:
            costs = Path(scratch) / "gpu-seconds.json"
            costs.write_text(json.dumps(seconds), encoding="utf-8")
            arguments.append(f"--gpu-seconds={costs}")
        code = run_tool("compare", arguments)
    raise SystemExit(code)


def parse_systems(systems: Sequence[str]) -> dict[str, list[str]]:
    """Return the experiments of each system by its name."""
    found: dict[str, list[str]] = defaultdict(list)
    for text in systems:
        name, mark, experiments = text.partition("=")
        names = experiments.split(",") if mark else [name]
        if not name or not all(names):
            raise click.UsageError(f"{text!r} is no system: write EXPERIMENT or NAME=EXPERIMENT,EXPERIMENT.")
        found[name] += names
    return dict(found)


def gather(
    wanted: Mapping[str, Sequence[str]], known: Mapping[str, JsonObject], target: Target
) -> tuple[list[str], dict[str, float]]:
    """Return the engine's arguments, NAME=ARTIFACT[,ARTIFACT...], and the mean GPU seconds of a run by system.

    ClickException for an experiment that does not exist, is not evaluated yet, or whose storage is not readable here.
    """
    arguments, seconds = [], {}
    for name, experiments in wanted.items():
        found = [_experiment(known, experiment, target) for experiment in experiments]
        arguments.append(f"{name}={','.join(_location(obj, target) for obj in found)}")
        used = [sum(stage.gpu_seconds or 0 for stage in parse_status(obj.get("status")).stages) for obj in found]
        if any(used):
            seconds[name] = sum(used) / len(used)
    return arguments, seconds


def _experiment(known: Mapping[str, JsonObject], name: str, target: Target) -> JsonObject:
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise click.ClickException(f"there is no experiment {name} in namespace {target.namespace}; it has {names}.")
    return known[name]


def _location(obj: JsonObject, target: Target) -> str:
    where = locate_artifact(obj, EVALUATE, target)
    if where is None:
        stage = parse_status(obj.get("status")).stage_named(EVALUATE)
        state = stage.state.value if stage else "not part of it (spec.evaluation.enabled)"
        raise click.ClickException(f"{name_of(obj)} cannot be compared yet: stage {EVALUATE} is {state}.")
    if where.startswith("claim "):
        raise click.ClickException(
            f"the evaluation of {name_of(obj)} is on a volume that is not mounted here ({where}). Mount it, and run "
            "`wrpo-engine compare NAME=DIRECTORY ...` with the directories of the artifacts."
        )
    return where
