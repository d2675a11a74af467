"""`wrpo plan`: what a file will do, and its manifests, without a cluster."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import yaml

from wrpo_operator.api import names
from wrpo_operator.api.object_rules import object_errors
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.yamlio import YamlError, load_all
from wrpo_operator.cli.measured import Rates
from wrpo_operator.runtime.resources import JsonObject, meta
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.offers import NodeFact

_ITEM = re.compile(r"(?P<product>[A-Za-z0-9._-]+)=(?P<nodes>[1-9][0-9]{0,4})x(?P<each>[1-9][0-9]?)")


namespace_option = click.option(
    "-n", "--namespace", default="default", show_default=True, help="Namespace of objects for which the file sets none."
)


def read_documents(path: str) -> list[JsonObject]:
    """Parse all YAML or JSON documents of a file, or of standard input for `-`, as kubectl does."""

    def doubled(where: str) -> None:
        click.echo(f"Warning: {path}: {where}; kubectl uses the last one.", err=True)

    documents = _load(path, doubled)
    if not all(isinstance(document, dict) for document in documents):
        raise click.ClickException(f"{path} contains a document that is not a Kubernetes object. Remove it.")
    return documents


def _load(path: str, doubled: Callable[[str], None] | None = None) -> list[Any]:
    """Return the documents of a file, or of standard input for `-`; ClickException if they cannot be read."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        return load_all(text, doubled=doubled)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error
    except YamlError as error:
        raise click.ClickException(f"{path} is not YAML: {error}") from error


def objects_in(path: str, kind: str) -> list[JsonObject]:
    """Return the objects of a kind in a file; it must hold at least one."""
    found = [document for document in read_documents(path) if document.get("kind") == kind]
    if not found:
        raise click.ClickException(f"{path} contains no {kind} (apiVersion {names.API_VERSION}).")
    return found


def refusal(kind: str, document: JsonObject, errors: Iterable[str]) -> click.ClickException:
    """Return the error of an object of a kind that cannot be accepted."""
    held = document.get("metadata")
    name = held.get("name") if isinstance(held, dict) else None
    lines = "\n".join(f"  - {problem}" for problem in errors)
    return click.ClickException(f"{kind} {name or '?'} cannot be accepted:\n{lines}")


def spec_of(document: JsonObject) -> ExperimentSpec:
    """Parse an experiment as API server and operator do; ClickException with all errors."""
    from wrpo_operator.plan.graph import graph_errors

    errors = object_errors(document)
    try:
        spec = parse_spec(document.get("spec") or {})
    except SpecError as error:
        errors = (*errors, *error.errors)
    else:
        errors = (*errors, *graph_errors(spec))
    if errors:
        raise refusal(names.KIND, document, errors)
    return spec


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
    type=click.Choice(["table", "wide", "json", "yaml", "manifests"]),
    default="table",
    show_default=True,
    help="table: the stages. wide: with the arithmetic of placements and what stages need. json: for programs. "
    "yaml or manifests: every manifest that the operator would apply, with uids of zeros.",
)
@namespace_option
@click.option(
    "--accelerators",
    metavar="PRODUCT=NODESxEACH,...",
    help="Accelerators of the cluster, e.g. h100=4x8,l40s=2x4. Default: spec.accelerator, if it is set.",
)
@click.option(
    "--profile",
    metavar="FILE",
    help="The same as a YAML list, as accelerators.profiles in the chart's values: names, memory, prices.",
)
@click.option(
    "--cluster",
    is_flag=True,
    help="Use the accelerators that the nodes of the cluster have, and the rates that its experiments reached.",
)
@click.option("--kubeconfig", metavar="FILE", help="Kubeconfig for --cluster; default as in `wrpo status`.")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig for --cluster.")
@click.option("--prompts", type=click.IntRange(min=1), help="Rows of the data set, if prompts.limit is not set.")
@click.option(
    "--storage",
    metavar="PATH|s3://BUCKET/PREFIX",
    help="Storage with finished stages, which are reused, and models: the directory of a mounted volume, or a bucket.",
)
@click.option("--hub/--no-hub", default=True, show_default=True, help="Read config.json of hub models from the hub.")
def plan_command(
    filename: str,
    output: str,
    namespace: str,
    accelerators: str | None,
    profile: str | None,
    cluster: bool,
    kubeconfig: str | None,
    context: str | None,
    prompts: int | None,
    storage: str | None,
    hub: bool,
) -> None:
    """Show what FILE will do: stages, accelerators, time, price, downloads. Only --cluster contacts a cluster.

    Of models only config.json and headers are read: from a directory, from the hub if accelerators are given, else from
    a catalogue of public models. Times are estimates, right within a factor of 2. A stage whose hash is unchanged after
    an edit does not re-run: compare the output before and after, or give --storage.

    \b
    Examples:
      wrpo plan -f examples/quickstart.yaml
      wrpo plan -f experiment.yaml --accelerators h100=4x8 --prompts 60000
      wrpo plan -f experiment.yaml -o manifests | less
    """  # noqa: D301  # click's mark for lines to keep
    from wrpo_operator.cli.forecast import forecast
    from wrpo_operator.cli.forecast_inputs import Assumed
    from wrpo_operator.cli.forecast_view import as_json, show
    from wrpo_operator.cli.model_sources import ModelSources
    from wrpo_operator.plan.placing import profiled
    from wrpo_operator.sizing.nodes import node_inventory
    from wrpo_operator.sizing.selection import selection_of

    documents = objects_in(filename, names.KIND)
    if output in ("yaml", "manifests"):
        made = [manifest for document in documents for manifest in manifests(document, namespace)]
        click.echo(yaml.safe_dump_all(made, sort_keys=False, width=120), nl=False)
        return
    if sum((accelerators is not None, profile is not None, cluster)) > 1:
        raise click.ClickException("--accelerators, --profile and --cluster exclude each other. Give one.")
    given = inventory_of(accelerators, profile)
    nodes, rates = _of_cluster(kubeconfig, context) if cluster else (None, None)
    finished = frozenset[str]() if storage is None else _finished(storage)
    found: list[JsonObject] = []
    for document in documents:
        spec, name = spec_of(document), str(meta(document).get("name", ""))
        if nodes is not None:
            given = node_inventory(nodes, selection_of(spec))
        inventory = given or (profiled(spec.accelerator) if spec.accelerator is not None else None)
        directory = Path(storage) if storage is not None and "://" not in storage else None
        sources = ModelSources(use_hub=hub and inventory is not None, storage=directory)
        assumed = Assumed(look_up=sources.facts, prompts=prompts, rates=rates or {})
        result = forecast(spec, inventory, assumed, finished)
        if output == "json":
            found.append(as_json(name, result, inventory, sources.faults))
        else:
            show(name, result, inventory, sources.faults, is_wide=output == "wide")
    if output == "json":
        click.echo(json.dumps(found if len(found) > 1 else found[0], indent=2))


def _finished(storage: str) -> frozenset[str]:
    """Return the addresses of the complete artifacts of a storage."""
    import os

    from wrpo_engine.storage import root_at
    from wrpo_operator.cli.connect import engine_errors_to_click

    with engine_errors_to_click():
        return frozenset(
            found.address for found in root_at(storage, os.environ).inventory().artifacts() if found.manifest
        )


def _of_cluster(kubeconfig: str | None, context: str | None) -> tuple[list[NodeFact], Rates]:
    """Return the nodes of a cluster that offer accelerators, and the rates that its experiments reached."""
    import asyncio

    from wrpo_operator.cli.connect import choose, errors_to_click, with_client
    from wrpo_operator.cli.measured import measured_rates
    from wrpo_operator.runtime.kube import HttpKube, list_all
    from wrpo_operator.runtime.resources import EXPERIMENTS, NODES
    from wrpo_operator.sizing.offers import node_fact

    target = choose(kubeconfig, context, None)

    async def read(client: HttpKube) -> tuple[list[JsonObject], list[JsonObject]]:
        return await list_all(client, NODES), await list_all(client, EXPERIMENTS, target.namespace)

    @errors_to_click
    def listed() -> tuple[list[JsonObject], list[JsonObject]]:
        return asyncio.run(with_client(target, read))

    nodes, experiments = listed()
    return [fact for fact in map(node_fact, nodes) if fact is not None], measured_rates(experiments)


def inventory_of(accelerators: str | None, profile: str | None) -> Inventory | None:
    """Return the accelerators of the command line; ClickException for what cannot be parsed."""
    from wrpo_operator.sizing.profiles import ProfileError, parse_profiles, profile_inventory

    if accelerators is not None:
        return Inventory(groups=tuple(map(_group, accelerators.split(","))), source="--accelerators")
    if profile is None:
        return None
    try:
        raw = _load(profile)
        profiles = parse_profiles(raw[0] if raw else [])
    except ProfileError as error:
        raise click.ClickException(f"{profile} {error}.") from error
    return replace(profile_inventory(profiles, {}), source=profile)


def _group(item: str) -> AcceleratorGroup:
    from wrpo_operator.sizing.products import known_memory_mib

    match = _ITEM.fullmatch(item.strip())
    if match is None:
        raise click.ClickException(f"--accelerators has {item!r}, which is not PRODUCT=NODESxEACH, e.g. h100=4x8.")
    product = match["product"]
    memory = known_memory_mib(product)
    if memory is None:
        raise click.ClickException(
            f"--accelerators has the product {product!r}, whose memory is not known. Describe it in a file: --profile."
        )
    vendors = {"mi": "amd.com/gpu", "max": "gpu.intel.com/i915", "flex": "gpu.intel.com/i915"}
    resource = next((name for start, name in vendors.items() if product.lower().startswith(start)), "nvidia.com/gpu")
    return AcceleratorGroup(
        name=product, resource=resource, memory_mib=memory, per_node=int(match["each"]), nodes=int(match["nodes"])
    )
