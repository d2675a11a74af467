"""Readers of lines of UTF-8 text and JSON objects; decoding errors name file, line and byte."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wrpo_engine.errors import DataError
from wrpo_engine.formats.shown import shown

_PEEK_BYTES = 4096
_MAX_DEPTH = 100
"""Of one row's lists and objects. Rows of messages are five deep; libraries recurse, and end at a thousand."""
_BEGINNINGS = {
    b"\x1f\x8b": "a gzip file",
    b"(\xb5/\xfd": "a Zstandard file",
    b"PK\x03\x04": "a ZIP file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"version https://git-lfs.github.com/": "a Git LFS pointer, not the file itself (`git lfs pull` fetches it)",
}


def refuse_disguised(path: Path, *, field: str | None = None) -> None:
    """Raise DataError if a text file is something else by its first bytes: compressed, binary, a Git LFS pointer."""
    with path.open("rb") as stream:
        first = stream.read(64)
    kind = next((name for mark, name in _BEGINNINGS.items() if first.startswith(mark)), None)
    if kind is not None:
        raise DataError(
            f"{path} is {kind}, but its name ends with {path.suffix or 'no suffix'}",
            code="DatasetFormat",
            field=field,
            hint="Decompress it, fetch it, or give it the name of what it is.",
        )


def decoded_lines(path: Path, *, field: str | None = None) -> Iterator[str]:
    """Yield the lines with their ends; a byte order mark at the start is dropped.

    Raises DataError, naming file, line and byte, where a line is not UTF-8.
    """
    refuse_disguised(path, field=field)
    offset = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            content = line
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                content = line[len(codecs.BOM_UTF8) :]
            try:
                yield content.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + len(line) - len(content) + error.start
                byte = content[error.start]
                raise DataError(
                    f"line {number} of {path} is not UTF-8: byte 0x{byte:02x} at offset {at} of the file",
                    code="NotUtf8",
                    field=field,
                    hint="Convert the file to UTF-8, for example with `iconv -f LATIN1 -t UTF-8`.",
                ) from error
            offset += len(line)


def json_objects(path: Path, *, field: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number, object) of a JSON list, or of one object a line: both are common under either name.

    The number is the position in the list, or the line. Raises DataError if a value is not an
    object, if an object has a key twice, and if values are nested deeper than a hundred levels.
    """
    with path.open("rb") as stream:
        is_list = stream.read(_PEEK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    if is_list:
        values = _parsed("".join(decoded_lines(path, field=field)), path, field=field)
        for number, value in enumerate(values, start=1):
            yield number, _object(value, number, path, field)
        return
    for number, line in enumerate(decoded_lines(path, field=field), start=1):
        if line.strip():
            yield number, _object(_parsed(line, path, line=number, field=field), number, path, field)


def _parsed(text: str, path: Path, *, line: int | None = None, field: str | None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise unreadable(path, _TOO_DEEP, line=line, field=field) from error
    except ValueError as error:
        raise unreadable(path, error, line=line, field=field) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return values


def _object(value: Any, number: int, path: Path, field: str | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"row {number} of {path} is {shown(value)}, but rows are objects",
            code="RowFormat",
            field=field,
            hint='Write rows like {"prompt": ".."}; `wrpo-engine convert --help` shows the row formats.',
        )
    for name, content in value.items():
        if isinstance(content, dict | list) and _is_deep(content):
            raise DataError(
                f"row {number} of {path}: column {shown(name)} is nested deeper than {_MAX_DEPTH} levels",
                code="RowFormat",
                field=field,
                hint="Write texts, messages or lists of messages.",
            )
    return value


def _is_deep(value: dict[str, Any] | list[Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


_TOO_DEEP = ValueError("its lists or objects are nested too deep")


def unreadable(
    path: Path | str, error: BaseException, *, line: int | None = None, field: str | None = None
) -> DataError:
    """Return the error for a file that is damaged."""
    where = f"line {line} of {path}" if line else f"{path}"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(
        f"{where} cannot be read: {reason}", code="DatasetDamaged", field=field, hint="Correct or replace the file."
    )
