"""Stages in parts: the pending parts, and the manifest once none is. The same for every number of shards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import polars as pl

from wrpo_engine.artifacts.checks import address
from wrpo_engine.artifacts.store import ArtifactWriter
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.contract.storage import StorageField
from wrpo_engine.errors import DataError
from wrpo_engine.process.progress import Progress

log = logging.getLogger("wrpo_engine")

T = TypeVar("T")
Measure = Callable[[Iterable[pl.DataFrame]], dict[str, float]]
PARTS = "parts/"
"""Directory of the parts in every such stage's artifact."""


class Stop(Protocol):
    """The request to end the work."""

    def raise_if_requested(self) -> None:
        """Raise Interrupted if the stage should stop."""
        ...


class PartsContext(Protocol):
    """The fields of `wrpo_engine.stage.StageContext` that parts need."""

    @property
    def config(self) -> StageConfig:
        """Configuration: the runtime has the number of shards."""
        ...

    @property
    def output(self) -> ArtifactWriter:
        """Artifact that gets the parts."""
        ...

    @property
    def shard(self) -> int:
        """Shard of this pod, from 0."""
        ...

    @property
    def progress(self) -> Progress:
        """Receiver of the finished units."""
        ...

    @property
    def stop(self) -> Stop:
        """Request to end the work."""
        ...


def part_name(index: int) -> str:
    """Return the name of a part's file, e.g. parts/part-00003.parquet."""
    return f"{PARTS}part-{index:05d}.parquet"


def parts_of_shard(parts: Sequence[T], shard: int, shards: int) -> Sequence[T]:
    """Return a shard's share. Of every `shards` parts in a row each shard has one, another one in each row.

    With k % shards, what one of 8 shards left undone would all belong to one of 16, and to one of 4.
    """
    return [part for index, part in enumerate(parts) if (index + index // shards) % shards == shard]


def own_parts(ctx: PartsContext, parts: Sequence[T]) -> Sequence[T]:
    """Return the share of this shard."""
    return parts_of_shard(parts, ctx.shard, ctx.config.runtime.shards)


def pending_parts(ctx: PartsContext, names: Sequence[str]) -> list[str]:
    """Return this shard's parts that are not published yet, by any pod."""
    own = own_parts(ctx, names)
    published = frozenset(ctx.output.published(PARTS))
    return [name for name in own if name not in published]


def count_progress(
    ctx: PartsContext, sizes: Mapping[str, int], todo: Sequence[str], *, message: str = ""
) -> Callable[[int], None]:
    """Return what reports a further number of finished units of this shard and ends the work on request.

    `sizes` are the units of each of its parts, of which `todo` are not published yet. `message` says what is done
    before the first unit.
    """
    total = sum(sizes.values())
    done = total - sum(sizes[name] for name in todo)

    def report(count: int) -> None:
        nonlocal done
        ctx.stop.raise_if_requested()
        done += count
        ctx.progress.update(done, total)

    ctx.progress.update(done, total, message=message)
    return report


def commit_when_complete(
    ctx: PartsContext,
    names: Sequence[str],
    *,
    details: Mapping[str, Any],
    measure: Measure,
    further: Callable[[], Iterable[str]] = tuple,
) -> dict[str, float]:
    """Commit if every part of every shard is there, and return the metrics; otherwise another shard will.

    A shard publishes its last part before it looks, so the shard that looks last sees all of them; two that look at
    the same time write the same manifest and the first one stays. Parts are read one by one. `further` publishes other
    files after all parts were read, and returns their names.
    """
    published = frozenset(ctx.output.published(PARTS))
    missing = [name for name in names if name not in published]
    if missing:
        log.info("this shard is done; %d parts of other shards are not there yet", len(missing))
        return {}
    rows: dict[str, int] = {}

    def frames() -> Iterator[pl.DataFrame]:
        for name, path in zip(names, ctx.output.fetch_all(names), strict=True):
            frame = _read(ctx, name, path)
            rows[name] = frame.height
            yield frame

    reading = frames()
    metrics = measure(reading)
    # A measure that needs fewer parts must not leave the others out of the manifest's counts.
    for _ in reading:
        pass
    ctx.output.commit(files=[*names, *further()], rows=rows, metrics=metrics, details=details)
    return metrics


def _read(ctx: PartsContext, name: str, path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"part {name} of {address(ctx.output.ref)} ({path}) cannot be read: {str(error).splitlines()[0]}",
            code="ArtifactDamaged",
            field=StorageField.STORAGE,
            hint=f"Remove {address(ctx.output.ref)}/{name} below the storage root; the stage recreates it.",
        ) from error
