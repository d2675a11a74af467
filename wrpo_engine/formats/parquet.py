"""Reader of Parquet files of other tools: every fault of a file is a DataError that names it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.errors import DataError
from wrpo_engine.formats.lines import unreadable

PARQUET_FAULTS: tuple[type[BaseException], ...] = (
    pl.exceptions.PolarsError,
    # Polars' reader panics on some damaged files; Python sees that as a BaseException.
    pl.exceptions.PanicException,
    OSError,
    # Of values that Python cannot hold, such as the year 300,000.
    ValueError,
    OverflowError,
)
_SLICE_ROWS = 4096


def parquet_columns(path: Path, *, field: str | None = None) -> list[str]:
    """Return the names of a file's columns."""
    try:
        return list(pl.read_parquet_schema(path))
    except PARQUET_FAULTS as error:
        raise _damaged(path, error, field) from error


def read_parquet(path: Path, *, columns: Sequence[str] | None = None, field: str | None = None) -> pl.DataFrame:
    """Return these columns of a file, or all of them."""
    try:
        return pl.read_parquet(path, columns=None if columns is None else list(columns), glob=False)
    except PARQUET_FAULTS as error:
        raise _damaged(path, error, field) from error


def dicts_of(frame: pl.DataFrame, where: Path | str, *, field: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows as Python values, a slice at a time."""
    for part in frame.iter_slices(_SLICE_ROWS):
        try:
            rows = part.to_dicts()
        except PARQUET_FAULTS as error:
            raise _damaged(where, error, field) from error
        yield from rows


def _damaged(path: Path | str, error: BaseException, field: str | None) -> DataError:
    return unreadable(path, error, field=field)
