"""Reads prompts as text from wherever the experiment says: a hub data set, a file, a directory of files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wrpo_engine.errors import ConfigError, DataError, TemporaryError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt")
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
    for file in _files(local, dataset, field):
        yield from _file_values(file, column)


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


def _file_values(file: Path, column: str) -> Iterator[Any]:
    match file.suffix:
        case ".txt":
            # A line is a prompt; the column has no meaning here.
            with file.open(encoding="utf-8") as stream:
                yield from (line.rstrip("\n") for line in stream)
        case ".parquet":
            yield from _parquet_values(file, column)
        case ".csv":
            with file.open(encoding="utf-8", newline="") as stream:
                reader = csv.DictReader(stream)
                _check_column(column, reader.fieldnames or (), file)
                yield from (row[column] for row in reader)
        case _:
            yield from _object_values(_json_objects(file), column, file)


def _parquet_values(file: Path, column: str) -> Iterator[Any]:
    import polars as pl

    try:
        names = pl.read_parquet_schema(file).keys()
        _check_column(column, tuple(names), file)
        values = pl.read_parquet(file, columns=[column])[column]
    except (pl.exceptions.ComputeError, OSError) as error:
        raise _unreadable(file, error) from error
    yield from values


def _json_objects(file: Path) -> Iterator[Any]:
    """Yield the rows of a JSON list, or of one object a line: both are common under either name."""
    with file.open(encoding="utf-8") as stream:
        is_list = stream.read(1024).lstrip().startswith("[")
    if is_list:
        try:
            yield from json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise _unreadable(file, error) from error
        return
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise _unreadable(file, error, line=number) from error


def _object_values(objects: Iterable[Any], column: str, file: Path) -> Iterator[Any]:
    for number, row in enumerate(objects, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"row {number} of {file} is a {type(row).__name__}, but rows are objects",
                code="DatasetFormat",
                field="prompts.dataset",
                hint='Write rows like {"prompt": "..."}.',
            )
        _check_column(column, tuple(row), file)
        yield row[column]


def _hub_rows(dataset: str, config: str | None, split: str, column: str, field: str) -> Iterator[Any]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(dataset, config, split=split)
    except DatasetNotFoundError as error:
        raise ConfigError(
            field,
            dataset,
            "there is no such data set on the hub, or it is private",
            "Check the spelling, or write an absolute path or storage://PATH.",
            code="DatasetNotFound",
        ) from error
    except ValueError as error:
        # An unknown split or configuration; the message lists those there are.
        raise ConfigError(
            field, dataset, str(error).splitlines()[0], "Set prompts.split and prompts.config."
        ) from error
    except (ConnectionError, TimeoutError) as error:
        if "OfflineModeIsEnabled" in str(error):
            raise ConfigError(
                field,
                dataset,
                "it is not in the local cache, and HF_HUB_OFFLINE forbids downloading",
                "Put the data on the storage volume (storage://PATH) or allow downloads.",
                code="DatasetNotFound",
            ) from error
        raise TemporaryError(
            f"{field} is {dataset!r}: it cannot be downloaded now ({error})",
            code="HubUnreachable",
            field=field,
            hint="Check the network, or put the data on the storage volume and name it storage://PATH.",
        ) from error
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


def _unreadable(file: Path, error: Exception, line: int | None = None) -> DataError:
    where = f"line {line} of {file}" if line else f"{file}"
    return DataError(
        f"{where} cannot be read: {str(error).splitlines()[0]}",
        code="DatasetDamaged",
        field="prompts.dataset",
        hint="Correct or replace the file.",
    )
