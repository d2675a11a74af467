"""`wrpo artifacts`: list, measure and remove the artifacts in the storage of experiments."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from wrpo_engine.storage import DirectoryRoot, Found, Inventory, S3Server, StorageRoot, root_at
from wrpo_operator.cli.connect import (
    Target,
    cluster_options,
    engine_errors_to_click,
    errors_to_click,
    with_client,
)
from wrpo_operator.cli.references import References, references_of, removable, with_inputs
from wrpo_operator.cli.storage import UnmountedVolume, storage_of
from wrpo_operator.runtime.resources import EXPERIMENTS, JsonObject, name_of

if TYPE_CHECKING:
    from wrpo_operator.runtime.kube import HttpKube

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
UNASKED = "--assume-no-experiments"


@click.group("artifacts")
def artifacts_group() -> None:
    """List the artifacts of a storage, sum up their sizes, and remove those that no experiment refers to.

    The storage is that of EXPERIMENT, of all experiments in the namespace, or of --storage: the directory
    of a mounted volume, or an S3 URI. Credentials for S3 come from your environment (AWS_...).

    \b
    Examples:
      wrpo artifacts ls fusion
      wrpo artifacts du --storage s3://bucket/prefix --endpoint https://s3.example.org
      wrpo artifacts gc                 dry run
      wrpo artifacts gc --yes
    """  # noqa: D301  # click's mark for lines to keep


@dataclass(frozen=True, slots=True)
class _Place:
    """The storages that a command is about."""

    experiment: str | None
    storage: str | None
    """Storage to use instead of the experiments'."""
    endpoint: str | None
    region: str | None
    target: Target

    @property
    def server(self) -> S3Server:
        return S3Server(self.endpoint, self.region)


def _storage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add EXPERIMENT, --storage and the cluster's options, which the command gets as one `place`.

    Errors of the engine become errors of the command.
    """

    @click.argument("experiment", required=False)
    @click.option("--storage", metavar="PATH|s3://BUCKET/PREFIX", help="Storage to use instead of the experiments'.")
    @click.option("--endpoint", metavar="URL", help="URL of the S3 server; unset: AWS. Only with --storage s3://...")
    @click.option("--region", metavar="NAME", help="Region of the bucket. Only with --storage s3://...")
    @cluster_options
    @errors_to_click
    @functools.wraps(command)
    def guarded(
        *,
        experiment: str | None,
        storage: str | None,
        endpoint: str | None,
        region: str | None,
        target: Target,
        **rest: Any,
    ) -> Any:
        place = _Place(experiment, storage, endpoint, region, target)
        try:
            with engine_errors_to_click():
                return command(place=place, **rest)
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'the storage'}: {error.strerror}") from error

    return guarded


@artifacts_group.command("ls")
@_storage_options
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def ls_command(place: _Place, output: str) -> None:
    """List artifacts with size, age, state and the experiments that refer to them.

    The last column is unknown (?) if --storage is set and no cluster is reachable.
    """
    asked = _ask(place.target, needed=place.storage is None)
    rows = []
    for inventory in _inventories(place, asked):
        found = inventory.artifacts()
        references = with_inputs(references_of(asked or ()), found)
        rows += [_row(inventory, each, references, known=asked is not None) for each in found]
    if output == "json":
        click.echo(json.dumps(rows, indent=1))
        return
    columns = ("stage", "hash", "state", "size", "files", "modified", "experiments")
    lines = [
        [
            row["stage"],
            row["hash"],
            row["state"],
            size_text(row["size"]),
            str(row["files"]),
            row["modified"],
            ", ".join(row["experiments"] or ()) or ("-" if asked is not None else "?"),
        ]
        for row in rows
    ]
    _print_table(columns, lines)


@artifacts_group.command("du")
@_storage_options
def du_command(place: _Place) -> None:
    """Sum up sizes by stage, in total and of artifacts that no experiment refers to."""
    asked = _ask(place.target, needed=place.storage is None)
    for inventory in _inventories(place, asked):
        found = inventory.artifacts()
        references = with_inputs(references_of(asked or ()), found)
        sizes: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        unused: Counter[str] = Counter()
        for each in found:
            sizes[each.ref.stage] += each.size
            counts[each.ref.stage] += 1
            unused[each.ref.stage] += 0 if references.of(each.address) else each.size
        click.echo(inventory.location)
        lines = [
            [stage, str(counts[stage]), size_text(size), size_text(unused[stage]) if asked is not None else "?"]
            for stage, size in sizes.most_common()
        ]
        total = size_text(unused.total()) if asked is not None else "?"
        lines.append(["total", str(counts.total()), size_text(sizes.total()), total])
        _print_table(("stage", "artifacts", "size", "unreferenced"), lines)


@artifacts_group.command("gc")
@_storage_options
@click.option(
    "--min-age",
    default="1d",
    show_default=True,
    metavar="AGE",
    help="Keep artifacts modified within this period: 30m, 12h, 7d.",
)
@click.option("--yes", is_flag=True, help="Remove the artifacts. Without it, only list them.")
@click.option(
    UNASKED,
    "unasked",
    is_flag=True,
    help="Treat every artifact of --storage as unreferenced without contacting a cluster. "
    "For storages whose cluster no longer exists.",
)
def gc_command(place: _Place, min_age: str, yes: bool, unasked: bool) -> None:
    """Remove artifacts that no experiment of any namespace refers to and that did not change within --min-age.

    An experiment refers to its results, to all artifacts that its spec would create, and to the inputs of both. Without
    --yes this is a dry run. The command fails if it cannot list the experiments of all namespaces.
    """
    age = parse_age(min_age)
    if unasked and place.storage is None:
        raise click.UsageError(f"{UNASKED} needs --storage.")
    asked = None if unasked else _ask(place.target, needed=True)
    for inventory in _inventories(place, asked):
        _collect(inventory, place.target, age, asked=asked, yes=yes)


def _collect(
    inventory: Inventory, target: Target, age: timedelta, *, asked: list[JsonObject] | None, yes: bool
) -> None:
    found = inventory.artifacts()
    now = datetime.now(UTC)

    def spared(experiments: list[JsonObject] | None) -> References:
        references = references_of(experiments or ())
        if references.unreadable:
            raise click.ClickException(
                f"{', '.join(references.unreadable)}: this version cannot read the spec, so its artifacts are "
                "not known. Nothing was removed. Correct or delete it, or use the operator's version of wrpo."
            )
        return with_inputs(references, found)

    candidates = removable(found, spared(asked), now=now, min_age=age)
    if yes and asked is not None and candidates:
        # An experiment may have been created since the listing; artifacts that it refers to are kept.
        candidates = removable(candidates, spared(_ask(target, needed=True)), now=now, min_age=age)
    uploads = [upload for upload in inventory.uploads() if now - upload.begun >= age]
    for each in candidates:
        click.echo(f"{'removing' if yes else 'would remove'} {each.address}  {size_text(each.size)}  {each.state}")
        if yes:
            inventory.remove(each)
    for upload in uploads:
        click.echo(f"{'aborting' if yes else 'would abort'} the unfinished upload of {upload.key}")
        if yes:
            inventory.abort(upload)
    freed = size_text(sum(each.size for each in candidates))
    kept = len(found) - len(candidates)
    if yes:
        click.echo(f"{inventory.location}: removed {len(candidates)} artifacts, {freed}; kept {kept}")
    else:
        click.echo(
            f"{inventory.location}: {len(candidates)} artifacts, {freed}, removable; {kept} kept. --yes removes them."
        )


def _ask(target: Target, *, needed: bool) -> list[JsonObject] | None:
    """Return the experiments of all namespaces; None if no cluster is reachable and none is needed."""
    from wrpo_operator.runtime.kube import KubeError, list_all

    async def read(client: HttpKube) -> list[JsonObject]:
        return await list_all(client, EXPERIMENTS)

    try:
        return asyncio.run(with_client(target, read))
    except (KubeError, OSError, ValueError) as error:
        if not needed:
            return None
        message = error.message if isinstance(error, KubeError) else str(error)
        raise click.ClickException(
            f"the experiments of all namespaces cannot be listed ({message}), so references are not known. "
            "Use a kubeconfig that may list wrpoexperiments.wrpo.ai in all namespaces; for a storage whose cluster no "
            f"longer exists, run `wrpo artifacts gc --storage ... {UNASKED}`."
        ) from error


def _inventories(place: _Place, asked: list[JsonObject] | None) -> list[Inventory]:
    target, experiment = place.target, place.experiment
    if place.storage is not None:
        return [_inventory(root_at(place.storage, os.environ, server=place.server))]
    chosen = [
        obj
        for obj in asked or ()
        if obj["metadata"].get("namespace") == target.namespace and experiment in {None, name_of(obj)}
    ]
    if not chosen:
        what = f"experiment {experiment}" if experiment else "experiment"
        raise click.ClickException(f"there is no {what} in namespace {target.namespace}. Set --storage to its storage.")
    storages = {json.dumps(obj["spec"]["storage"], sort_keys=True): obj for obj in chosen}
    return [_of_spec(each, target) for each in storages.values()]


def _of_spec(obj: JsonObject, target: Target) -> Inventory:
    root = storage_of(obj, target)
    if isinstance(root, UnmountedVolume):
        raise click.ClickException(
            f"the storage is the claim {root.claim}, which is not mounted here. Mount it and set --storage PATH."
        )
    return _inventory(root)


def _inventory(root: StorageRoot) -> Inventory:
    if isinstance(root, DirectoryRoot) and not root.path.is_dir():
        raise click.ClickException(f"{root.path} is not a directory. Set --storage to an existing one.")
    return root.inventory()


def _row(inventory: Inventory, found: Found, references: References, *, known: bool) -> dict[str, Any]:
    return {
        "storage": inventory.location,
        "stage": found.ref.stage,
        "hash": found.ref.hash,
        "state": found.state,
        "size": found.size,
        "files": found.files,
        "modified": found.modified.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "experiments": sorted(references.of(found.address)) if known else None,
        **({"fault": found.fault} if found.fault else {}),
    }


def _print_table(columns: tuple[str, ...], lines: list[list[str]]) -> None:
    table = [[column.upper() for column in columns], *lines]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def size_text(size: float) -> str:
    """Format a number of bytes as 17 B, 4.0 KiB or 1.2 GiB."""
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"


def parse_age(text: str) -> timedelta:
    """Parse 90s, 30m, 12h or 7d as a duration."""
    match = re.fullmatch(r"(\d+)([smhd])", text.strip())
    if match is None:
        raise click.BadParameter(
            f"{text!r} is not an age: write a number and s, m, h or d, e.g. 12h.", param_hint="--min-age"
        )
    return timedelta(seconds=int(match.group(1)) * _SECONDS[match.group(2)])
