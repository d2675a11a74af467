"""`wrpo status`, `wrpo logs` and `wrpo report`: commands that show an experiment in a cluster."""

from __future__ import annotations

import asyncio
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wrpo_engine.storage import scheme_of
from wrpo_operator.api import names
from wrpo_operator.api.status import StageState, parse_status
from wrpo_operator.cli.connect import (
    Target,
    cluster_options,
    engine_errors_to_click,
    errors_to_click,
    with_client,
)
from wrpo_operator.cli.storage import UnmountedVolume, read_remote, storage_of
from wrpo_operator.cli.view import outcome_of, tree_lines
from wrpo_operator.runtime.resources import EXPERIMENTS, PODS, JsonObject, labels_of, meta, name_of

if TYPE_CHECKING:
    from wrpo_operator.runtime.kube import HttpKube

REPORT_FILE = "report.html"
POLL_S = 1.0


@click.command("status")
@click.argument("name")
@click.option("-w", "--watch", is_flag=True, help="Follow until the experiment has ended; exit code 1 if it failed.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["tree", "wide"]),
    default="tree",
    show_default=True,
    help="wide: also why each stage has its accelerators, what else would fit, and more about the results.",
)
@cluster_options
@errors_to_click
def status_command(name: str, watch: bool, output: str, target: Target) -> None:
    """Show the stages and attempts of experiment NAME, its accelerators and progress, what blocks it, and its results.

    \b
    Examples:
      wrpo status fusion
      wrpo status fusion -o wide
      wrpo status fusion --watch
    """  # noqa: D301
    if watch:
        from wrpo_operator.cli.watch import follow

        raise SystemExit(0 if follow(name, target).succeeded else 1)

    async def read(client: HttpKube) -> JsonObject:
        return await client.get(EXPERIMENTS, name, target.namespace)

    for line in tree_lines(asyncio.run(with_client(target, read)), wide=output == "wide"):
        click.echo(line)


@click.command("logs")
@click.argument("name")
@click.argument("stage", required=False)
@click.option(
    "-f",
    "--follow",
    is_flag=True,
    help="Follow logs, including those of pods created later, until the experiment has ended.",
)
@click.option("--tail", type=click.IntRange(min=0), help="Last lines of each pod. Default: all.")
@cluster_options
@errors_to_click
def logs_command(name: str, stage: str | None, follow: bool, tail: int | None, target: Target) -> None:
    """Print the logs of experiment NAME's pods, of all stages or of one, e.g. sample/qwen.

    \b
    Examples:
      wrpo logs fusion train -f
      wrpo logs fusion --tail 5
    """  # noqa: D301

    async def show(client: HttpKube) -> int:
        return await print_logs(client, target.namespace, name, stage, LogOptions(follow=follow, tail=tail))

    if asyncio.run(with_client(target, show)) == 0:
        what = f"stage {stage} of {name}" if stage else name
        raise click.ClickException(
            f"there is no pod of {what} in namespace {target.namespace}. `wrpo status {name}` shows its stages; pods "
            "are deleted with their Job."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """How logs are read."""

    follow: bool
    """Until the experiment has ended."""
    tail: int | None
    """Last lines of each pod; None: all."""


async def print_logs(client: HttpKube, namespace: str, name: str, stage: str | None, options: LogOptions) -> int:
    """Print the logs of all matching pods, oldest first (with `follow`: as they arrive); return the number of pods."""
    from wrpo_operator.runtime.kube import list_all

    selector = f"{names.LABEL_MANAGED_BY}={names.MANAGER},{names.LABEL_EXPERIMENT}={name}"
    if stage:
        selector += f",{names.LABEL_STAGE}={names.stage_label(stage)}"
    seen: dict[str, asyncio.Task[None]] = {}
    try:
        while True:
            pods = await list_all(client, PODS, namespace, label_selector=selector)
            for pod in sorted(pods, key=lambda pod: (meta(pod).get("creationTimestamp", ""), name_of(pod))):
                if name_of(pod) in seen or (options.follow and not _has_started(pod)):
                    continue
                task = asyncio.create_task(_print_pod(client, namespace, pod, options))
                seen[name_of(pod)] = task
                if not options.follow:
                    await task
            if not options.follow or await _ended(client, namespace, name):
                await asyncio.gather(*seen.values())
                return len(seen)
            await asyncio.sleep(POLL_S)
    finally:
        for task in seen.values():
            task.cancel()


def _has_started(pod: JsonObject) -> bool:
    return (pod.get("status") or {}).get("phase") in {"Running", "Succeeded", "Failed"}


async def _ended(client: HttpKube, namespace: str, name: str) -> bool:
    return outcome_of(await client.get(EXPERIMENTS, name, namespace)) is not None


async def _print_pod(client: HttpKube, namespace: str, pod: JsonObject, options: LogOptions) -> None:
    from wrpo_operator.runtime.kube import KubeError

    container = next(entry["name"] for entry in pod["spec"]["containers"] if entry["name"] in {"stage", "pytorch"})
    query: Mapping[str, str] = {
        "container": container,
        "follow": "true" if options.follow else "",
        "tailLines": "" if options.tail is None else str(options.tail),
    }
    prefix = f"[{names.stage_from_label(labels_of(pod).get(names.LABEL_STAGE, ''))} {name_of(pod)}]"
    try:
        async for line in client.stream_lines(f"{PODS.path(namespace, name_of(pod))}/log", query):
            click.echo(f"{prefix} {line.decode(errors='replace').rstrip()}")
    except KubeError as error:
        click.echo(f"{prefix} no log: {error.message}")


@click.command("report")
@click.argument("name")
@click.option("--open", "open_it", is_flag=True, help="Open the report in a browser; from S3 only with --save.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Copy the report to this file first.")
@cluster_options
@errors_to_click
def report_command(name: str, open_it: bool, save: Path | None, target: Target) -> None:
    """Print the location of the HTML report of experiment NAME.

    With a volume of the embedded cluster it is a file on this machine, otherwise an address in the experiment's
    storage. --save copies it from there; for S3 with the credentials of your environment (AWS_...).

    \b
    Examples:
      wrpo report fusion --open
      wrpo report fusion --save report.html --open
    """  # noqa: D301  # click's mark for lines to keep

    async def read(client: HttpKube) -> JsonObject:
        return await client.get(EXPERIMENTS, name, target.namespace)

    obj = asyncio.run(with_client(target, read))
    where = locate_artifact(obj, "report", target)
    if where is None:
        stage = parse_status(obj.get("status")).stage_named("report")
        state = stage.state.value if stage else "not part of this experiment (spec.report.enabled)"
        raise click.ClickException(f"{name} has no report yet: stage report is {state}.")
    location = f"{where}/{REPORT_FILE}"
    if save is not None:
        content = read_artifact_file(obj, where, REPORT_FILE)
        try:
            save.write_bytes(content)
        except OSError as error:
            raise click.ClickException(f"{save} cannot be written: {error.strerror}.") from error
        location = str(save)
    click.echo(location)
    if open_it:
        if not Path(location).exists():
            raise click.ClickException(
                f"{location} is not on this machine; use --save FILE for S3, or copy it from the experiment's storage."
            )
        webbrowser.open(Path(location).resolve().as_uri())


def locate_artifact(obj: JsonObject, stage: str, target: Target) -> str | None:
    """Return the path (embedded cluster), URI (S3) or claim and path of a stage's artifact; None until it succeeded."""
    entry = parse_status(obj.get("status")).stage_named(stage)
    if entry is None or entry.state is not StageState.SUCCEEDED or not entry.artifact:
        return None
    root = storage_of(obj, target)
    return root.below(entry.artifact) if isinstance(root, UnmountedVolume) else f"{root.location}/{entry.artifact}"


def read_artifact_file(obj: JsonObject, where: str, name: str) -> bytes:
    """Return a file of the artifact at `where`, a result of `locate_artifact`; from S3 with the user's credentials."""
    if scheme_of(where) is not None:
        with engine_errors_to_click():
            content = read_remote(obj, f"{where}/{name}")
        if content is None:
            raise click.ClickException(f"{where}/{name} does not exist.")
        return content
    try:
        return (Path(where) / name).read_bytes()
    except OSError as error:
        raise click.ClickException(f"{where}/{name} cannot be read from here: {error.strerror}.") from error
