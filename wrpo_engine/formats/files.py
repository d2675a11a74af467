"""The rows of one data file, with their numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wrpo_engine.errors import DataError
from wrpo_engine.formats.lines import decoded_lines, json_objects, unreadable
from wrpo_engine.formats.parquet import dicts_of, parquet_columns, read_parquet
from wrpo_engine.formats.shown import names, shown

TABLES = (".parquet", ".jsonl", ".json", ".ndjson", ".csv", ".tsv")
"""File types whose rows have columns."""
LINES = ".txt"
_MAX_CSV_CHARS = 1 << 30
"""Of one value: the csv module's own limit of 128 Ki is below the length of real prompts."""


def rows_of(path: Path, *, only: Sequence[str] = (), field: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of a file with columns; of a Parquet file only the named columns, if any of them is there.

    The number is the line in a file of JSON lines, else the position, 1 the first.
    """
    match path.suffix.lower():
        case ".parquet":
            columns = [name for name in only if name in parquet_columns(path, field=field)]
            frame = read_parquet(path, columns=columns or None, field=field)
            yield from enumerate(dicts_of(frame, path, field=field), start=1)
        case ".csv" | ".tsv":
            yield from _csv_rows(path, "," if path.suffix.lower() == ".csv" else "\t", field)
        case _:
            yield from json_objects(path, field=field)


def lines_of(path: Path, *, field: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file without their ends. JSON lines under this name are refused: they have columns."""
    for number, line in enumerate(decoded_lines(path, field=field), start=1):
        if number == 1 and _is_object(line):
            raise DataError(
                f"line 1 of {path} is a JSON object, but of a {LINES} file each line is a prompt, verbatim",
                code="DatasetFormat",
                field=field,
                hint="Rename the file so that it ends with .jsonl.",
            )
        yield line.rstrip("\r\n")


def _is_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _csv_rows(path: Path, delimiter: str, field: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(_MAX_CSV_CHARS)
    # Strict, as a quote that is never closed would make the rest of the file one value.
    reader = csv.reader(decoded_lines(path, field=field), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if twice := {name for name in header if header.count(name) > 1}:
            raise unreadable(path, ValueError(f"its header has {shown(min(twice))} twice"), line=1, field=field)
        number = 0
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) != len(header):
                what = f"it has {len(cells)} values for {len(header)} columns ({names(header)})"
                raise unreadable(path, ValueError(what), line=reader.line_num, field=field)
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise unreadable(path, error, line=reader.line_num, field=field) from error
