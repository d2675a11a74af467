"""Reader of the columns of an artifact in parts, a bounded number of bytes at a time; errors name the file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from wrpo_engine.artifacts import Artifact
from wrpo_engine.errors import DataError
from wrpo_engine.formats.parquet import PARQUET_FAULTS

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


Schema = Mapping[str, pl.DataType | type[pl.DataType]]


def read_columns(paths: Sequence[Path], schema: Schema, *, nullable: Collection[str] = ()) -> pl.DataFrame:
    """Return these columns of all files, in their order.

    DataError names the first file that does not have them, and the first row without a value in one that is not
    nullable.
    """
    columns = list(schema)
    try:
        frame = pl.read_parquet(list(paths), columns=columns, glob=False)
        if dict(frame.schema) != dict(pl.Schema(schema)):
            frame = frame.cast(dict(schema))  # type: ignore[arg-type]
    except PARQUET_FAULTS as error:
        for path in paths:
            check_parquet(path, schema)
        raise _unreadable(paths[0], error) from error
    if needed := [name for name in columns if name not in nullable and frame[name].null_count()]:
        raise _without_value(paths, needed[0])
    return frame


def _without_value(paths: Sequence[Path], column: str) -> DataError:
    """Return the error for the first row of these files without a value in the column."""
    for path in paths:
        rows = pl.read_parquet(path, columns=[column], glob=False)[column].is_null().arg_true()
        if len(rows):
            break
    return DataError(
        f"row {rows[0] + 1} of {path} has no value in column {column}; {len(rows)} rows in all",
        code="ValueMissing",
        hint="It must be an artifact of this engine; remove it and let its stage run again.",
    )


def check_parquet(path: Path, schema: Schema) -> None:
    """Raise DataError if the file is not a Parquet file, lacks a column, or has a column of another type."""
    try:
        found = pl.read_parquet_schema(path)
        absent = [name for name in schema if name not in found]
        if absent:
            raise DataError(
                f"{path} has no column {', '.join(absent)}; its columns: {', '.join(found) or 'none'}",
                code="ColumnMissing",
                hint="It must be an artifact of the same engine version; remove it and let its stage run again.",
            )
        frame = pl.read_parquet(path, columns=list(schema), glob=False)
    except PARQUET_FAULTS as error:
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


def read_batches(artifact: Artifact, schema: Schema, *, nullable: Collection[str] = ()) -> Iterator[pl.DataFrame]:
    """Yield these columns of all parts, batch by batch."""
    for names in batches_of(artifact):
        yield read_columns(artifact.fetch_all(names), schema, nullable=nullable)


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(
        f"{path} cannot be read as Parquet: {reason}",
        code="PartDamaged",
        hint="Remove its artifact; the stage that made it runs again.",
    )
