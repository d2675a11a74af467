"""`wrpo plan`: stages and manifests of a file, without a cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import yaml

from wrpo_operator.api import names
from wrpo_operator.api.object_rules import object_errors
from wrpo_operator.api.spec import ExperimentSpec, SpecError, parse_spec
from wrpo_operator.api.yamlio import YamlError, load_all
from wrpo_operator.runtime.resources import JsonObject, meta


def read_documents(path: str) -> list[JsonObject]:
    """Parse all YAML or JSON documents of a file, or of standard input for `-`, as kubectl does."""

    def doubled(where: str) -> None:
        click.echo(f"Warning: {path}: {where}; kubectl uses the last one.", err=True)

    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        documents = load_all(text, doubled=doubled)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error
    except YamlError as error:
        raise click.ClickException(f"{path} is not YAML: {error}") from error
    if not all(isinstance(document, dict) for document in documents):
        raise click.ClickException(f"{path} contains a document that is not a Kubernetes object. Remove it.")
    return documents


def experiments_in(path: str) -> list[JsonObject]:
    """Return the WRPOExperiments of a file; it must hold at least one."""
    found = [document for document in read_documents(path) if document.get("kind") == names.KIND]
    if not found:
        raise click.ClickException(f"{path} contains no {names.KIND} (apiVersion {names.API_VERSION}).")
    return found


def spec_of(document: JsonObject) -> ExperimentSpec:
    """Parse an experiment as API server and operator do; ClickException with all errors."""
    errors = object_errors(document)
    try:
        spec = parse_spec(document.get("spec") or {})
    except SpecError as error:
        errors = (*errors, *error.errors)
    if errors:
        held = document.get("metadata")
        name = held.get("name", "?") if isinstance(held, dict) else "?"
        lines = "\n".join(f"  - {problem}" for problem in errors)
        raise click.ClickException(f"{names.KIND} {name} cannot be accepted:\n{lines}")
    return spec


def plan_lines(document: JsonObject) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (stage, becomes, shards, hash, inputs) for every stage."""
    from wrpo_operator.plan.graph import build_graph

    for node in build_graph(spec_of(document)):
        inputs = ", ".join(sorted({str(upstream) for upstream in node.inputs.values()}))
        yield str(node.id), node.shape.value, str(node.runtime.shards), node.hash, inputs


def manifests(document: JsonObject, namespace: str) -> list[JsonObject]:
    """Return the manifests of the first attempt of every stage."""
    from datetime import UTC, datetime

    from wrpo_operator.api.status import ExperimentStatus
    from wrpo_operator.plan.graph import build_graph
    from wrpo_operator.plan.model import Experiment, Snapshot
    from wrpo_operator.plan.starts import planned_attempt
    from wrpo_operator.render import RenderSettings, render_attempt

    spec = spec_of(document)
    metadata = meta(document)
    name = str(metadata.get("name", "experiment"))
    experiment = Experiment(
        name=name,
        namespace=str(metadata.get("namespace") or namespace),
        uid="00000000-0000-0000-0000-000000000000",
        generation=1,
        deleting=False,
        created_at=datetime.fromtimestamp(0, UTC),
        spec=spec,
        status=ExperimentStatus(),
    )
    graph = build_graph(spec)
    hashes = {node.id: node.hash for node in graph}
    snapshot = Snapshot(experiment)
    made: list[JsonObject] = []
    for node in graph:
        made += render_attempt(experiment, planned_attempt(snapshot, spec, node, hashes, 1), RenderSettings())
    return made


@click.command("plan")
@click.option("-f", "--filename", required=True, metavar="FILE", help="Experiment file; - for standard input.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "yaml"]),
    default="table",
    show_default=True,
    help="table: the stages. yaml: every manifest that the operator would apply, with uids of zeros.",
)
@click.option(
    "-n", "--namespace", default="default", show_default=True, help="Namespace of objects for which the file sets none."
)
def plan_command(filename: str, output: str, namespace: str) -> None:
    """Show the stages, hashes and manifests of FILE without contacting a cluster.

    A stage whose hash is unchanged after an edit does not re-run: compare the output before and after.

    \b
    Examples:
      wrpo plan -f examples/quickstart.yaml
      wrpo plan -f experiment.yaml -o yaml | less
    """  # noqa: D301  # click's mark for lines to keep
    from rich.console import Console
    from rich.table import Table

    documents = experiments_in(filename)
    if output == "yaml":
        made = [manifest for document in documents for manifest in manifests(document, namespace)]
        click.echo(yaml.safe_dump_all(made, sort_keys=False, width=120), nl=False)
        return
    console = Console()
    for document in documents:
        table = Table(title=str(meta(document).get("name", "")), title_justify="left", box=None, pad_edge=False)
        for column in ("Stage", "Becomes", "Shards", "Hash", "Needs"):
            table.add_column(column, overflow="fold")
        for row in plan_lines(document):
            table.add_row(*row)
        console.print(table)
