"""Stages in parts: what is left to do, and the manifest once nothing is. The same for every number of shards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from wrpo_engine.errors import StorageError
from wrpo_engine.stage import StageContext

log = logging.getLogger("wrpo_engine")

T = TypeVar("T")
Measure = Callable[[Iterable[pl.DataFrame]], dict[str, float]]


def part_name(index: int) -> str:
    return f"parts/part-{index:05d}.parquet"


def parts_of_shard(parts: Sequence[T], shard: int, shards: int) -> Sequence[T]:
    """Return a shard's share. Of every `shards` parts in a row each shard has one, another one in each row.

    With k % shards, what one of 8 shards left undone would all belong to one of 16, and to one of 4.
    """
    return [part for index, part in enumerate(parts) if (index + index // shards) % shards == shard]


def pending_parts(ctx: StageContext, names: Sequence[str]) -> list[str]:
    """Return this shard's parts that are not there yet."""
    own = parts_of_shard(names, ctx.shard, ctx.config.runtime.shards)
    return [name for name in own if not (ctx.output.directory / name).exists()]


def commit_when_complete(
    ctx: StageContext, names: Sequence[str], *, details: Mapping[str, Any], measure: Measure
) -> dict[str, float]:
    """Commit if every part of every shard is there, and return the metrics; otherwise another shard will.

    A shard publishes its last part before it looks, so the shard that looks last sees all of them; two that look at
    the same time write the same manifest and the first one stays.
    """
    directory = ctx.output.directory
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        log.info("this shard is done; %d parts of other shards are not there yet", len(missing))
        return {}
    rows = {name: _height(directory / name) for name in names}
    metrics = measure(_frames(directory, names))
    ctx.output.commit(files=names, rows=rows, metrics=metrics, details=details)
    return metrics


def _frames(directory: Path, names: Sequence[str]) -> Iterator[pl.DataFrame]:
    for name in names:
        yield pl.read_parquet(directory / name)


def _height(path: Path) -> int:
    try:
        return int(pl.scan_parquet(path).select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StorageError(
            f"part {path} cannot be read: {str(error).splitlines()[0]}",
            code="ArtifactDamaged",
            field="storage",
            hint="Remove this file; the stage makes it again.",
        ) from error
