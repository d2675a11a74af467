"""`wrpo-engine compare`, which `wrpo compare` calls for experiments of a cluster."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wrpo_engine.comparison.outcomes import Outcome, read_outcomes
from wrpo_engine.comparison.render import FORMATS, cells, notes, ordering_lines
from wrpo_engine.comparison.statistics import RESAMPLES
from wrpo_engine.comparison.table import Comparison, Settings, compare
from wrpo_engine.config import ExitCode
from wrpo_engine.errors import UsageError
from wrpo_engine.formats.location import Locator
from wrpo_engine.process.command_line import run_command

UNLIMITED = 10_000
_HELP = """Compare evaluated experiments on held-out prompts and benchmarks, with intervals and paired differences.

Each SYSTEM is NAME=ARTIFACT, where ARTIFACT is an artifact of evaluate: its directory, its S3 address, or its address
(evaluate/HASH) with --storage. Several artifacts, separated by commas, are runs of one system with different training
seeds. The target, the SFT model and every further system of each experiment get separate rows; one that all share gets
one row.

All systems need the same reward and the same held-out prompts, and benchmarks of one name the same judge.

\b
Example:
  wrpo-engine compare dpo=evaluate/0123456789abcdef wrpo=evaluate/fedcba9876543210,evaluate/0f1e2d3c4b5a6978 \\
    --storage s3://bucket/experiments --baseline dpo --out comparison
"""


@click.command(name="compare", help=_HELP, context_settings={"max_content_width": 120})
@click.argument("systems", nargs=-1, required=True, metavar="SYSTEM...")
@click.option("--storage", metavar="DIR|s3://BUCKET/PREFIX", help="Storage that addresses refer to.")
@click.option(
    "--baseline",
    metavar="NAME",
    help="Row that differences are taken from. Default: the first system; of a single one, the target.",
)
@click.option("--order", metavar="NAME,NAME...", help="Test the claim that these rows get better in this order.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help=f"Write comparison.{{{','.join(FORMATS)}}}."
)
@click.option(
    "--gpu-seconds", type=click.Path(path_type=Path, exists=True), metavar="FILE", help="JSON: name -> seconds."
)
@click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Seed of the resampling.")
@click.option("--resamples", type=click.IntRange(min=100), default=RESAMPLES, show_default=True)
@click.option("--allow-unlike-prompts", is_flag=True, help="Compare on the common prompts where they differ.")
@click.option("--published", is_flag=True, help="Show the paper's figures next to rows of the same name.")
def command(
    systems: tuple[str, ...],
    storage: str | None,
    baseline: str | None,
    order: str | None,
    out: Path | None,
    gpu_seconds: Path | None,
    seed: int,
    resamples: int,
    allow_unlike_prompts: bool,
    published: bool,
) -> int:
    """Read the artifacts, print the table and write the files."""
    locator = Locator(storage, os.environ, lambda: datetime.now(UTC))
    found = rows_of(named_runs(systems, locator))
    settings = Settings(
        baseline=baseline or (systems[0].partition("=")[0] if len(systems) > 1 else None),
        order=tuple(order.split(",")) if order else (),
        seed=seed,
        resamples=resamples,
        allow_unlike_prompts=allow_unlike_prompts,
        published=published,
    )
    costs = json.loads(gpu_seconds.read_text(encoding="utf-8")) if gpu_seconds else None
    comparison = compare(found, settings, costs)
    # Into a pipe no row wraps.
    show(comparison, Console(highlight=False, width=None if sys.stdout.isatty() else UNLIMITED))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for extension, write in FORMATS.items():
            (out / f"comparison.{extension}").write_text(write(comparison), encoding="utf-8")
        click.echo(f"written: {out}/comparison.{{{','.join(FORMATS)}}}")
    return ExitCode.OK


def named_runs(systems: Sequence[str], locator: Locator) -> dict[str, list[list[Outcome]]]:
    """Return the outcomes of every artifact by the name of its system; UsageError for an argument that is none."""
    found: dict[str, list[list[Outcome]]] = {}
    for text in systems:
        name, mark, locations = text.partition("=")
        if not mark or not name or not all(locations.split(",")):
            raise UsageError(f"{text} is no system", hint="Write NAME=ARTIFACT or NAME=ARTIFACT,ARTIFACT.")
        if name in found:
            raise UsageError(
                f"two systems are named {name}",
                hint="Rename one, or write both artifacts of one system after one name.",
            )
        found[name] = [read_outcomes(location, locator) for location in locations.split(",")]
    return found


def rows_of(systems: Mapping[str, Sequence[Sequence[Outcome]]]) -> dict[str, list[Outcome]]:
    """Return the rows: models that the trained ones started from, then the trained models by the name of the system.

    A model that all experiments share is one row by its label, e.g. `target`; others are NAME/LABEL. Equal runs count
    once.
    """
    shared: dict[str, dict[str, list[Outcome]]] = {}
    for name, runs in systems.items():
        for outcomes in runs:
            for outcome in outcomes[:-1]:
                kept = shared.setdefault(outcome.label, {}).setdefault(name, [])
                if outcome.content not in {other.content for other in kept}:
                    kept.append(outcome)
    rows: dict[str, list[Outcome]] = {}
    for label, by_name in shared.items():
        contents = {outcome.content for kept in by_name.values() for outcome in kept}
        if len(contents) == 1:
            rows[label] = next(iter(by_name.values()))
        else:
            rows |= {f"{name}/{label}": kept for name, kept in by_name.items()}
    for name, runs in systems.items():
        if name in rows:
            raise UsageError(
                f"the system {name} has the name of a model of the experiments", hint="Give it another name."
            )
        rows[name] = [outcomes[-1] for outcomes in runs]
    return rows


def show(comparison: Comparison, console: Console) -> None:
    """Print the main columns and the notes; names are shown as they are, never as markup."""
    head, *rows = cells(comparison, main_only=True)
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(Text(name), justify="right" if index else "left", overflow="fold", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for line in (*ordering_lines(comparison), *notes(comparison)):
        console.print(Text(line))


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    return run_command(command, arguments, prog_name="wrpo-engine compare")
