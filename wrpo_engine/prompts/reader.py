"""Reads prompts from wherever the experiment says: a hub data set, a file, a directory of files or a saved data set."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.formats.lines import decoded_lines, json_objects, unreadable
from wrpo_engine.formats.saved import is_saved, load_saved
from wrpo_engine.hub_data import load_from_hub

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt")
_MAX_CSV_CHARS = 1 << 30
"""Of one value: the csv module's own limit of 128 Ki is below what people ask."""
_TEXT_COLUMN = "prompt"
"""What a .txt file's lines are called."""


def read_values(
    dataset: str, path: str, *, config: str | None, split: str, column: str, field: str = "prompts.dataset"
) -> Iterator[Any]:
    """Yield the column's raw value of every row, in the data set's order.

    `dataset` is what the experiment says (for messages), `path` what it resolves to: absolute for local files.
    """
    local = Path(path)
    if not local.is_absolute():
        yield from _hub_rows(dataset, config, split, column, field)
        return
    if not local.exists():
        raise ConfigError(
            field,
            dataset,
            f"there is no file or directory {path}",
            "Check the path and its volume.",
            code="DatasetNotFound",
        )
    if is_saved(local):
        rows = load_saved(local, split, split_field="prompts.split", field=field)
        _check_column(column, rows.column_names, local)
        yield from rows[column]
        return
    for file in _files(local, dataset, field):
        yield from _file_values(file, column, field)


def _files(path: Path, dataset: str, field: str) -> Sequence[Path]:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ConfigError(
                field,
                dataset,
                f"files of type {path.suffix or 'none'} are not read",
                f"Use one of {', '.join(SUFFIXES)}.",
                code="DatasetFormat",
            )
        return [path]
    # Sorted, as the order of a listing must not decide anything.
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and not file.name.startswith("."))
    if not files:
        raise ConfigError(
            field,
            dataset,
            f"the directory holds no file of type {', '.join(SUFFIXES)}",
            "Put the prompts there, one object or line each.",
            code="DatasetEmpty",
        )
    return files


def _file_values(file: Path, column: str, field: str) -> Iterator[Any]:
    match file.suffix:
        case ".txt":
            # A line is a prompt; the column has no meaning here.
            yield from (line.rstrip("\r\n") for line in decoded_lines(file, field=field))
        case ".parquet":
            yield from _parquet_values(file, column, field)
        case ".csv":
            yield from _csv_values(file, column, field)
        case _:
            yield from _object_values(json_objects(file, field=field), column, file, field)


def _csv_values(file: Path, column: str, field: str) -> Iterator[Any]:
    csv.field_size_limit(_MAX_CSV_CHARS)
    reader = csv.DictReader(decoded_lines(file, field=field))
    try:
        _check_column(column, reader.fieldnames or (), file)
        yield from (row[column] for row in reader)
    except csv.Error as error:
        raise unreadable(file, error, line=reader.line_num, field=field) from error


def _parquet_values(file: Path, column: str, field: str) -> Iterator[Any]:
    import polars as pl

    try:
        names = pl.read_parquet_schema(file).keys()
        _check_column(column, tuple(names), file)
        values = pl.read_parquet(file, columns=[column], glob=False)[column]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(file, error, field=field) from error
    yield from values


def _object_values(objects: Iterable[tuple[int, Any]], column: str, file: Path, field: str) -> Iterator[Any]:
    for number, row in objects:
        if not isinstance(row, dict):
            raise DataError(
                f"row {number} of {file} is a {type(row).__name__}, but rows are objects",
                code="DatasetFormat",
                field=field,
                hint='Write rows like {"prompt": "..."}.',
            )
        _check_column(column, tuple(row), file)
        yield row[column]


def _hub_rows(dataset: str, config: str | None, split: str, column: str, field: str) -> Iterator[Any]:
    rows = load_from_hub(dataset, config=config, split=split, field=field, split_field="prompts.split")
    _check_column(column, rows.column_names, dataset)
    yield from rows[column]


def _check_column(column: str, names: Iterable[str], where: Path | str) -> None:
    if column not in names:
        raise ConfigError(
            "prompts.column",
            column,
            f"{where} has no such column; its columns: {', '.join(names) or 'none'}",
            "Name one of them.",
            code="ColumnNotFound",
        )
