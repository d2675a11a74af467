"""`wrpo sweep`: plan, run and show sweeps."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from wrpo_operator.api import names
from wrpo_operator.api.parsing import SpecError
from wrpo_operator.api.status import FINISHED, Phase
from wrpo_operator.api.sweep import SweepSpec, parse_sweep
from wrpo_operator.api.sweep_status import SweepStatus, VariantStatus, parse_sweep_status
from wrpo_operator.cli.connect import Target, cluster_options, errors_to_click, with_client
from wrpo_operator.cli.forecast_view import UNLIMITED
from wrpo_operator.cli.planning import inventory_of, namespace_option, objects_in, refusal
from wrpo_operator.cli.sweep_plan import SweepForecast, expanded, forecast_sweep
from wrpo_operator.runtime.resources import SWEEPS, JsonObject, meta, name_of

if TYPE_CHECKING:
    from wrpo_operator.plan.sweep_expand import Expansion
    from wrpo_operator.runtime.kube import HttpKube

POLL_S = 1.0
SHOWN_STAGES = 4
file_option = click.option(
    "-f", "--filename", required=True, metavar="FILE", help="File with a WRPOSweep; - for standard input."
)


@click.group("sweep")
def sweep_group() -> None:
    """Plan, run and show sweeps: many variants of one experiment, whose equal stages run once.

    \b
    Examples:
      wrpo sweep plan -f examples/paper/main.yaml
      wrpo sweep run -f examples/sweep-laptop.yaml
      wrpo sweep status paper
    """  # noqa: D301  # click's mark for lines to keep


@sweep_group.command("plan")
@file_option
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--accelerators",
    metavar="PRODUCT=NODESxEACH,...",
    help="Accelerators of the cluster, e.g. h100=4x8, for GPU hours. Default: spec.experiment.accelerator.",
)
@click.option("--prompts", type=click.IntRange(min=1), help="Rows of the data set, if prompts.limit is not set.")
@click.option("--hub/--no-hub", default=True, show_default=True, help="Read config.json of hub models from the hub.")
def plan_command(filename: str, output: str, accelerators: str | None, prompts: int | None, hub: bool) -> None:
    """Show the stages that the sweeps of FILE need, those that variants share, and GPU hours. Contacts no cluster."""
    from wrpo_operator.cli.forecast_inputs import Assumed
    from wrpo_operator.cli.model_sources import ModelSources
    from wrpo_operator.plan.placing import profiled

    told = list[dict[str, Any]]()
    for document in objects_in(filename, names.SWEEP_KIND):
        spec, found, is_assumed = accepted(document)
        given = spec.experiment.accelerator
        inventory = inventory_of(accelerators, None) or (profiled(given) if given is not None else None)
        sources = ModelSources(use_hub=hub and inventory is not None, storage=None)
        assumed = Assumed(look_up=sources.facts, prompts=prompts)
        result = forecast_sweep(found, inventory, assumed, is_order_assumed=is_assumed)
        if output == "json":
            told.append({"name": name_of(document), **asdict(result)})
        else:
            _show_plan(name_of(document), result)
    if output == "json":
        click.echo(json.dumps(told if len(told) > 1 else told[0], indent=2))


@sweep_group.command("run")
@file_option
@namespace_option
@errors_to_click
def run_command(filename: str, namespace: str) -> None:
    """Run the sweeps of FILE on the embedded cluster: start it, install the operator, apply, and watch to the end.

    The exit code is 0 if every variant succeeded, else 1. Ctrl-C stops watching but not the sweep; run the command
    again to resume watching. `wrpo dev down` stops everything and keeps finished work.
    """
    from wrpo_operator.cli.local import started

    documents = objects_in(filename, names.SWEEP_KIND)
    for document in documents:
        accepted(document)
    phases = [follow(name, target) for name, target in started(filename, documents, namespace)]
    raise SystemExit(0 if all(phase is Phase.SUCCEEDED for phase in phases) else 1)


@sweep_group.command("status")
@click.argument("name")
@click.option("-w", "--watch", is_flag=True, help="Follow until the sweep has ended; exit code 1 if a variant failed.")
@cluster_options
@errors_to_click
def status_command(name: str, watch: bool, target: Target) -> None:
    """Show the variants of sweep NAME: phase, progress, headline metrics, and why some failed or wait."""
    if watch:
        raise SystemExit(0 if follow(name, target) is Phase.SUCCEEDED else 1)
    sweep = _read(name, target)
    baseline = ((sweep.get("spec") or {}).get("report") or {}).get("baseline")
    show_status(name, parse_sweep_status(sweep.get("status")), baseline)


def accepted(document: JsonObject) -> tuple[SweepSpec, Expansion, bool]:
    """Return spec and experiments of a sweep as the operator does, and whether an order of sources was assumed.

    ClickException with all errors.
    """
    errors, name = tuple[str, ...](), name_of(document) or "?"
    raw = document.get("spec") or {}
    try:
        spec = parse_sweep(raw)
        found, is_assumed = expanded(name, raw, spec)
        errors = found.errors
    except SpecError as error:
        errors = error.errors
    if document.get("apiVersion") != names.API_VERSION:
        errors = (f"apiVersion is {document.get('apiVersion')!r}; set it to {names.API_VERSION}.", *errors)
    if errors:
        raise refusal(names.SWEEP_KIND, document, errors)
    return spec, found, is_assumed


def follow(name: str, target: Target) -> Phase:
    """Print a line for each change of a variant until the sweep has ended; return its phase."""
    from wrpo_operator.runtime.kube import KubeError

    shown = dict[str, str]()
    while True:
        try:
            sweep = _read(name, target)
        except KubeError as error:
            if not (error.unreachable or error.code >= 500 or error.code == 429):
                raise
            time.sleep(POLL_S)
            continue
        status = parse_sweep_status(sweep.get("status"))
        for line in _changes(status, shown):
            click.echo(line)
        is_current = status.observed_generation == meta(sweep).get("generation")
        if is_current and status.phase is not None and status.phase in FINISHED | {Phase.INVALID}:
            show_status(name, status, None)
            return status.phase
        time.sleep(POLL_S)


def _read(name: str, target: Target) -> JsonObject:
    async def read(client: HttpKube) -> JsonObject:
        return await client.get(SWEEPS, name, target.namespace)

    return asyncio.run(with_client(target, read))


def _changes(status: SweepStatus, shown: dict[str, str]) -> Iterator[str]:
    for row in status.variants:
        text = f"{row.phase.value} {row.experiments}"
        if shown.get(row.name) != text:
            shown[row.name] = text
            yield f"{row.name}: {text}{f'  {row.message}' if row.message else ''}"


def show_status(name: str, status: SweepStatus, baseline: str | None) -> None:
    """Print the sweep as a table, with differences of metrics from the baseline."""
    counts = status.experiments
    phase = status.phase.value if status.phase else "not seen by an operator yet"
    click.echo(f"{name}  {phase}  {counts.succeeded}/{counts.total} experiments succeeded, {counts.failed} failed")
    accepted_ = status.condition("Accepted")
    if accepted_ is not None and accepted_.status == "False":
        click.echo(f"Invalid: {accepted_.message}")
    metrics = list(dict.fromkeys(key for row in status.variants for key in row.metrics))
    base = next((row.metrics for row in status.variants if row.name == baseline), {})
    table = _table("Variant", "Phase", "Done", "Progress", "Sources", *metrics, "")
    for row in status.variants:
        values = [_value(row, key, base) for key in metrics]
        sources = "" if row.sources is None else str(row.sources)
        table.add_row(
            row.name, row.phase.value, row.experiments, f"{row.progress}%", sources, *values, row.message or ""
        )
    _print(table)
    if status.source_order is not None:
        click.echo(f"Sources by mean reward: {', '.join(status.source_order.sources)}")


def _value(row: VariantStatus, key: str, base: Any) -> str:
    if key not in row.metrics:
        return ""
    text = f"{row.metrics[key]:.4g}"
    return f"{text} ({row.metrics[key] - base[key]:+.3g})" if key in base and row.metrics is not base else text


def _show_plan(name: str, result: SweepForecast) -> None:
    experiments = sum(len(row.experiments) for row in result.variants)
    click.echo(f"{name}: {len(result.variants)} variants, {experiments} experiments")
    table = _table("Variant", "Sources", "New stages", "GPU hours")
    for row in result.variants:
        rest = len(row.own) - SHOWN_STAGES
        own = ", ".join(row.own[:SHOWN_STAGES]) + (f" and {rest} more" if rest > 0 else "")
        table.add_row(row.variant, str(row.sources), own or "none: all shared", _hours(row.gpu_hours))
    _print(table)
    table = _table("Stage", "Needed", "Run", "Shared", "GPU hours")
    for kind in result.kinds:
        cells = (kind.kind, str(kind.needed), str(kind.run), str(kind.needed - kind.run), _hours(kind.gpu_hours))
        table.add_row(*cells)
    _print(table)
    click.echo(f"{result.needed} stages needed, {result.run} run, {result.needed - result.run} shared.")
    if result.gpu_hours is None:
        click.echo("GPU hours are unknown without accelerators: set --accelerators, e.g. h100=4x8.")
    else:
        click.echo(f"About {result.gpu_hours:,.0f} GPU hours, right within a factor of 2.")
    if result.is_order_assumed:
        click.echo("The order of sources by mean reward is not known yet; the plan assumes the order of the list.")


def _hours(hours: float | None) -> str:
    return "" if hours is None else f"{hours:,.1f}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in columns:
        table.add_column(title, overflow="fold", no_wrap=not sys.stdout.isatty())
    return table


def _print(table: Table) -> None:
    is_terminal = sys.stdout.isatty()
    Console(width=None if is_terminal else UNLIMITED, soft_wrap=not is_terminal).print(table)
