"""Columns of an artifact in parts, read a bounded number of bytes at a time; what cannot be read is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from wrpo_engine.artifacts import Artifact
from wrpo_engine.errors import DataError

BATCH_BYTES = 32 << 20
"""Size on disk of the parts that are read together. A part larger than this is read by itself."""


def batches_of(artifact: Artifact) -> list[list[str]]:
    """Return the names of the artifact's parts, sorted, in batches of at most BATCH_BYTES."""
    sizes = {entry.name: entry.size for entry in artifact.manifest.files}
    batches: list[list[str]] = []
    room = 0
    for name in sorted(artifact.files("parts/")):
        if not batches or sizes[name] > room:
            batches.append([])
            room = BATCH_BYTES
        batches[-1].append(name)
        room -= sizes[name]
    return batches


def read_columns(paths: Sequence[Path], schema: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    """Return these columns of all files, in their order; DataError names the first file that does not have them."""
    columns = list(schema)
    try:
        frame = pl.read_parquet(list(paths), columns=columns, glob=False)
        if dict(frame.schema) != dict(pl.Schema(schema)):
            frame = frame.cast(dict(schema))  # type: ignore[arg-type]
    except (pl.exceptions.PolarsError, OSError) as error:
        for path in paths:
            check_parquet(path, schema)
        raise _unreadable(paths[0], error) from error
    return frame


def check_parquet(path: Path, schema: Mapping[str, pl.DataType | type[pl.DataType]]) -> None:
    """Raise DataError if the file is no Parquet file or lacks a column, or a column holds something else."""
    try:
        found = pl.read_parquet_schema(path)
        absent = [name for name in schema if name not in found]
        if absent:
            raise DataError(
                f"{path} has no column {', '.join(absent)}; its columns: {', '.join(found) or 'none'}",
                code="ColumnMissing",
                hint="It must be an artifact of the same engine version; remove it and let its stage run again.",
            )
        frame = pl.read_parquet(path, columns=list(schema))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error
    for name, wanted in schema.items():
        try:
            frame[name].cast(wanted)
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"column {name} of {path} holds {found[name]}, but {wanted} is needed",
                code="ColumnType",
                hint="It must be an artifact of the same engine version; remove it and let its stage run again.",
            ) from error


def read_batches(artifact: Artifact, schema: Mapping[str, pl.DataType | type[pl.DataType]]) -> Iterator[pl.DataFrame]:
    """Yield these columns of all parts, batch by batch."""
    for names in batches_of(artifact):
        yield read_columns(artifact.fetch_all(names), schema)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}",
        code="PartDamaged",
        hint="Remove its artifact; the stage that made it runs again.",
    )
